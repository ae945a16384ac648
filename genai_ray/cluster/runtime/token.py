"""Ray's authentication token: its holder may run code in the cluster, so only this user may read it."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from ray._private.authentication import authentication_token_setup as ray_tokens
from ray._private.authentication.authentication_token_generator import generate_new_authentication_token

# An extension without a stub.
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from genai_ray.errors import ConfigError
from genai_ray.files import home_folder

__all__ = ["CLIENT", "check_token", "forget_token", "make_token", "use_token"]

_log = logging.getLogger(__name__)

_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_DO = "Put the cluster's token into ~/.ray/auth_token, or into RAY_AUTH_TOKEN."

CLIENT = "ray://"
"""What an address of Ray Client begins with: a process of the head runs what this one calls."""

_METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_CLIENT_METHOD = "/ray.rpc.RayletDriver/ClusterInfo"
"""The first call of a client of either kind; neither needs a request."""
_WITHIN_S = 10.0

_forgotten: list[str] = []
"""Variables of the environment that ``make_token`` set."""


def use_token() -> None:
    """Send this user's token, if there is one, to the cluster that is joined.

    A cluster without authentication accepts any token. Ray itself sends it only if it found the cluster without an
    address. ``RAY_AUTH_MODE`` is respected.

    Raises:
        ConfigError: If the environment says that there is a token, and there is none: Ray would abort this process.
    """
    has_token = _has_token()
    if _MODE not in os.environ and has_token:
        ray_tokens._enable_token_auth()  # its public caller logs a warning
    if os.environ.get(_MODE, "").lower() == "token" and not has_token:
        raise ConfigError(f"{_MODE}=token, and this user has no token", "the token of the cluster", _DO)


def make_token(folder: Path) -> None:
    """Make a token for our own cluster, unless there is one.

    Only this user can read it; all users could read one that Ray makes.

    Args:
        folder: Folder for the token if this user's home is not writable; only this user can enter it.

    Raises:
        ConfigError: If the environment names a file with a token that cannot be read.
    """
    if os.environ.get(_MODE, "token").lower() != "token":
        return
    if any(os.environ.get(name) for name in (_TOKEN, _PATH)):
        _has_token()
        return
    try:
        path = home_folder() / ".ray" / "auth_token"
        _keep_token(path)
    except OSError:  # no home, or not writable
        os.environ[_PATH] = str(folder / "token")
        _keep_token(folder / "token")
        _forgotten.append(_PATH)
    if _MODE not in os.environ:
        _forgotten.append(_MODE)
    ray_tokens._enable_token_auth()  # Ray would log a warning
    AuthenticationTokenLoader.instance().reset_cache()


def forget_token() -> None:
    """Remove the environment variables that ``make_token`` set."""
    if not _forgotten:
        return
    while _forgotten:
        os.environ.pop(_forgotten.pop(), None)
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _has_token() -> bool:
    """Tell whether this user has a token."""
    try:
        return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    except AuthenticationError as exc:
        file = os.environ.get(_PATH)
        do = "Name a file that this user can read, or unset the variable."
        raise ConfigError(f"{_PATH}={file}: this file cannot be read, or is empty", "a file with a token", do) from exc


def _keep_token(path: Path) -> None:
    """Make a token if there is none; it is complete, and readable for this user alone, at every moment.

    Protect one that is there.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists() or not path.stat().st_size:
        # Such a file has mode 0600.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
            part = Path(file.name)
            file.write(generate_new_authentication_token())
        try:
            os.link(part, path)  # fails if another process was faster: both must use the same token
        except FileExistsError:
            if not path.stat().st_size:
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    with path.open("rb") as opened:
        found = os.fstat(opened.fileno())
    others = {found.st_uid, path.parent.stat().st_uid} - {0, os.geteuid()}
    if others:  # they know the token, so they could run code as this user
        _log.warning("Ray's token in %s belongs to another user (uid %d): this cluster gets its own", path, min(others))
        raise PermissionError(path)
    if found.st_mode & 0o077:
        try:
            path.chmod(0o600)
        except OSError as exc:
            _log.warning(
                "other users can read Ray's token in %s (mode %03o) and use it to run code in this user's clusters: %s",
                path,
                found.st_mode & 0o777,
                exc,
            )


def check_token(address: str) -> None:
    """Ask a cluster once whether it accepts this user's token; Ray itself would ask for 20 s and print every refusal.

    Args:
        address: ``host:port`` of its GCS, or ``ray://host:port`` of Ray Client.

    Raises:
        ConfigError: If the cluster requires a token, and this user has none or another one.
    """
    if _is_refused(address):
        answer = "refuses this user's token" if _has_token() else "requires a token, and this user has none"
        raise ConfigError(f"the Ray cluster at {address} {answer}", "the token that it was started with", _DO)


def _is_refused(address: str) -> bool:
    """Make one call, as Ray's own client would; any other error is for Ray, which tries more than once."""
    import grpc  # noqa: PLC0415 (0.1 s in each process)
    from ray._private.grpc_utils import init_grpc_channel  # noqa: PLC0415

    method = _CLIENT_METHOD if address.startswith(CLIENT) else _METHOD
    options = [("grpc.enable_http_proxy", 0)]  # as Ray's own
    with init_grpc_channel(address.removeprefix(CLIENT), options) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=_WITHIN_S)
        except grpc.RpcError as exc:
            return bool(exc.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False
