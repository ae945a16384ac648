"""Ray's token: whoever holds it may run code in the cluster, so that only this user may read it."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from ray._private.authentication import authentication_token_setup as ray_tokens
from ray._private.authentication.authentication_token_generator import generate_new_authentication_token
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined] # an extension without a stub
from ray.exceptions import AuthenticationError, RayError

from genai_ray.errors import ConfigError
from genai_ray.files import home_folder

__all__ = ["check_token", "forget_token", "make_token", "use_token"]

_log = logging.getLogger(__name__)

_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_DO = "Put the cluster's token into ~/.ray/auth_token, or into RAY_AUTH_TOKEN."

_forgotten: list[str] = []
"""Variables of the environment that ``make_token`` set."""


def use_token() -> None:
    """Send this user's token to the cluster that is joined, if there is one; a cluster that wants none takes any.

    Ray by itself does so only for a cluster that it found without an address. ``RAY_AUTH_MODE`` is left as it is if it is set.
    """
    if _MODE not in os.environ and AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        ray_tokens._enable_token_auth()  # its public caller warns of it


def make_token(folder: Path) -> None:
    """Make sure that there is a token for a cluster of our own, which nobody else can read; Ray by itself lets all users of the machine read it.

    Args:
        folder: Where to keep one if it cannot be kept in this user's home; a folder that only this user can enter.
    """
    if os.environ.get(_MODE, "token").lower() != "token" or any(os.environ.get(name) for name in (_TOKEN, _PATH)):
        return
    try:
        path = home_folder() / ".ray" / "auth_token"
        _keep_token(path)
    except OSError:  # a home that cannot be written, or none
        os.environ[_PATH] = str(folder / "token")
        _keep_token(folder / "token")
        _forgotten.append(_PATH)
    if _MODE not in os.environ:
        _forgotten.append(_MODE)
    ray_tokens._enable_token_auth()  # Ray warns of it if it does so by itself
    AuthenticationTokenLoader.instance().reset_cache()


def forget_token() -> None:
    """Take back what ``make_token`` said in the environment."""
    if not _forgotten:
        return
    while _forgotten:
        os.environ.pop(_forgotten.pop(), None)
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _keep_token(path: Path) -> None:
    """Make a token if there is none, whole and for this user alone at every moment; else let nobody else read the one that there is."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists() or not path.stat().st_size:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f"{path.name}.", delete=False
        ) as file:  # of mode 0600
            part = Path(file.name)
            file.write(generate_new_authentication_token())
        try:
            os.link(part, path)  # else another process was faster, and both must have the same
        except FileExistsError:
            if not path.stat().st_size:
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    with path.open("rb") as opened:
        found = os.fstat(opened.fileno())
    mode, strangers = found.st_mode, {found.st_uid, path.parent.stat().st_uid} - {0, os.geteuid()}
    if strangers:  # who wrote it, or may do so, could run code as this user
        _log.warning(
            "Ray's token in %s is another user's (uid %d): this cluster gets one of its own", path, min(strangers)
        )
        raise PermissionError(path)
    if mode & 0o077:
        try:
            path.chmod(0o600)
        except OSError as exc:
            _log.warning(
                "other users can read Ray's token in %s (mode %03o), and run code in this user's clusters with it: %s",
                path,
                mode & 0o777,
                exc,
            )


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
    except (RayError, OSError, RuntimeError):  # all else is for ray.init to judge, which tries more than once
        return
