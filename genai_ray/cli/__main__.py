"""``python -m genai_ray.cli``."""

import os
import sys

import genai_ray
from genai_ray.cli import main

if sys.path[0] == os.getcwd() and not genai_ray.__file__.startswith(os.path.join(sys.path[0], "")):
    # Python puts the working folder first, and a user's script there may have the name of any package.
    del sys.path[0]
main()
