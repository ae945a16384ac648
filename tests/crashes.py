"""Where this process crashed is printed also after Ray was started or ended, which takes the handlers of such signals
away."""

import faulthandler
import os

_OUT = os.dup(2)


def use_stderr():
    """Print to what is standard error now, while nothing captures it."""
    os.dup2(2, _OUT)


def trace_crashes():
    """Put the handlers back."""
    faulthandler.disable()
    faulthandler.enable(_OUT)
