"""fsspec's file systems, and one mapper for their errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from genai_ray.errors import ConfigError, GenAIRayError, VideoError

__all__ = ["describe_error", "file_errors", "file_system", "foreign_errors", "is_remote"]

_ERRORS = {
    "aiohttp": ("ClientError",),
    "azure.core.exceptions": ("AzureError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
}
"""Errors of stores that are not OSErrors, by module; their modules are not imported for this."""


def is_remote(place: str) -> bool:
    """Tell whether a place is a URI, not a path of this machine.

    Args:
        place: Path or URI.

    Returns:
        Whether it is.
    """
    return "://" in place


@contextmanager
def file_errors(place: str, doing: str) -> Iterator[None]:
    """Map errors of file systems and stores to ``VideoError``.

    Args:
        place: The file, named in the error.
        doing: What the block does, for the text of the error.

    Yields:
        Nothing.

    Raises:
        VideoError: If a file system or store fails in the block.
    """
    try:
        yield
    except foreign_errors() as exc:
        if isinstance(exc, GenAIRayError):
            raise
        if isinstance(exc, FileNotFoundError):
            raise VideoError(f"{place}: no such file") from exc
        raise VideoError(f"{place}: {doing} failed: {describe_error(exc)}") from exc


def file_system(place: str) -> Any:
    """Return fsspec's file system of a URI.

    Args:
        place: The URI.

    Returns:
        The file system.

    Raises:
        ConfigError: If fsspec does not know the scheme, or its package is missing.
    """
    import fsspec  # noqa: PLC0415 - local jobs do not need it

    scheme = place.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(place, use_listings_cache=False)[0]  # other processes write there too
    except ValueError as exc:
        raise ConfigError(f"{place}: {exc}", "a path, or a URI such as s3://, gs:// or https://") from exc
    except ImportError as exc:
        raise ConfigError(
            f"{place}: the package for {scheme}:// is not installed ({exc})",
            do="Install it first, such as s3fs for s3:// or gcsfs for gs://.",
        ) from exc


def foreign_errors() -> tuple[type[BaseException], ...]:
    """Return the errors that file systems and the loaded stores raise.

    Returns:
        Classes, for an ``except``.
    """
    loaded = [
        getattr(sys.modules[module], name)
        for module, names in _ERRORS.items()
        if module in sys.modules
        for name in names
    ]
    return (OSError, EOFError, ValueError, *loaded)


def describe_error(exc: BaseException) -> str:
    """Return the text of an error of a system or library, without the system's numbers.

    Args:
        exc: The error.

    Returns:
        Its text, or the name of its class if it has none.
    """
    return re.sub(r"\[Errno -?\d+\] ", "", str(exc)) or type(exc).__name__
