"""Ray's token: whoever holds it may run code in the cluster, so that only this user may read it."""

from __future__ import annotations

import os

from ray._private.authentication import authentication_token_setup as ray_tokens
from ray._raylet import AuthenticationTokenLoader, GcsClient  # type: ignore[attr-defined] # an extension without a stub
from ray.exceptions import AuthenticationError

from genai_ray.errors import ConfigError

__all__ = ["check_token", "use_token"]

_MODE = "RAY_AUTH_MODE"
_DO = "Put the cluster's token into ~/.ray/auth_token, or into RAY_AUTH_TOKEN."


def use_token() -> None:
    """Send this user's token to the cluster that is joined, if there is one; a cluster that wants none takes any.

    Ray by itself does so only for a cluster that it found without an address. ``RAY_AUTH_MODE`` is left as it is if it is set.
    """
    if _MODE not in os.environ and AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        ray_tokens._enable_token_auth()  # its public caller warns of it


def check_token(address: str) -> None:
    """Ask a cluster once whether it takes this user's token; Ray itself would ask for 20 s, and print every refusal.

    Args:
        address: ``host:port`` of its GCS.

    Raises:
        ConfigError: If the cluster wants a token, and this user has none, or another one.
    """
    try:
        GcsClient(address=address)
    except AuthenticationError as exc:
        has_token = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
        whose = "refuses this user's token" if has_token else "wants a token, and this user has none"
        raise ConfigError(f"the Ray cluster at {address} {whose}", "the token that it was started with", _DO) from exc
    except Exception:  # noqa: BLE001 - all else is for ray.init to judge, which tries more than once
        return
