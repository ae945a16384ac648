"""Downloads of models that are not packaged: with progress, resumed, and checked against the sha256.

Own code because neither fsspec's caches nor pooch continue a download that broke off.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from genai_ray.catalog.spec import ModelSpec
from genai_ray.errors import ConfigError, ModelLoadError
from genai_ray.files import describe_error

__all__ = ["pull_model"]

_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 30.0
_PARTIAL = 206
_RANGE_PAST_END = 416


def pull_model(spec: ModelSpec, folder: Path, *, progress: Callable[[int, int | None], None] | None = None) -> Path:
    """Download a model's file, or continue its download. The file appears only when it is whole and its hash is right.

    Args:
        spec: A model with a ``url``.
        folder: Folder of the file; created if missing.
        progress: Called with (bytes so far, total bytes or None) as they arrive.

    Returns:
        Path of the file.

    Raises:
        ConfigError: If the model is packaged, its url is not http or https, or the folder cannot be created.
        ModelLoadError: If the server fails, the connection breaks, or the hash is wrong (then nothing is kept).
    """
    if spec.url is None:
        raise ConfigError(
            f"model {spec.model_id} has no url", "models that are not packaged", "Its file is part of the package."
        )
    if not spec.url.startswith(("http://", "https://")):
        raise ConfigError(f"url {spec.url} of {spec.model_id}", "http:// or https://")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(
            f"the model folder cannot be created: {describe_error(exc)}",
            do="Set GENAI_RAY_MODELS to a writable folder.",
        ) from exc
    target = folder / spec.file
    part = folder / f"{spec.file}.part"
    try:
        _download(spec.url, part, progress or (lambda _done, _total: None))
    except (urllib.error.URLError, http.client.HTTPException, OSError) as exc:
        have = part.stat().st_size if part.exists() else 0
        cause = getattr(exc, "reason", None)
        why = describe_error(cause if isinstance(cause, OSError) else exc)
        kept = f"{have} bytes are kept in {part}; repeat the command to continue."
        do = kept if have else "Repeat the command when the server can be reached."
        raise ModelLoadError(f"{spec.url}: {why}", do=do) from exc
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if spec.sha256 is not None and found != spec.sha256:
        size = part.stat().st_size
        part.unlink()
        raise ModelLoadError(f"{spec.url} gave {size} bytes of sha256 {found}", spec.sha256, "Nothing was kept.")
    part.replace(target)
    return target


def _download(url: str, part: Path, progress: Callable[[int, int | None], None]) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as exc:
        if have and exc.code == _RANGE_PAST_END:
            return  # all bytes are there; the hash decides
        raise
    with response:
        resumed = response.status == _PARTIAL
        done = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length is not None else None
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
    if total is not None and done < total:
        raise http.client.IncompleteRead(b"", total - done)
