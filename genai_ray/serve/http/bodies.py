"""Bodies of requests and the files that they carry, raw or as a form, within the limits of size and time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ray.exceptions import RayTaskError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from genai_ray.errors import DeadlineExceededError, InvalidInputError, TooManyRequestsError
from genai_ray.serve.engine.limits import Admission, Share
from genai_ray.serve.http.middleware import UNTIL_SENT

__all__ = ["hold_place", "on_disk", "read_body", "read_file", "save_file"]

_TOO_LARGE = 413
_UNSUPPORTED = 415
_FULL = 507
_WRITE_BYTES = 4 * 1024**2
_DRAIN_BYTES = 64 * 1024**2
_DRAIN_IDLE_S = 1.0
_IDLE_S = 30.0
"""Most seconds for each ``_LEAST_BYTES`` of a body, and for its rest. A slower client would keep a place for hours."""
_LEAST_BYTES = 240_000
_MAX_FIELDS = 16
_PARAM_PREFIX = "param."
"""How the names of a form's pictures for models begin."""
_MAX_PICTURE_BYTES = 32 * 1024**2
_UNPACK_BYTES = 4 * 1024**2
"""How much is unpacked at once, before the limits are checked again."""


@contextlib.asynccontextmanager
async def hold_place(request: Request, admission: Admission) -> AsyncIterator[Share]:
    """Admit a request, before its body is read, as long as the context lasts. Its response counts until it is sent.

    Args:
        request: The request; if it is refused, its body is read and dropped.
        admission: Counts requests.

    Yields:
        The request's share of the bytes that all requests may hold.

    Raises:
        TooManyRequestsError: If there are too many requests.
    """
    with contextlib.ExitStack() as place:
        try:
            share = place.enter_context(admission.place())
        except TooManyRequestsError:
            await _drain(request)
            raise
        request.scope.get(UNTIL_SENT, place).callback(share.give_back_result)
        yield share


async def read_body(request: Request, max_bytes: int, share: Share | None = None) -> bytes:
    """Read a body into memory, and unpack it.

    Args:
        request: Its ``Content-Encoding`` may be gzip or deflate.
        max_bytes: Most bytes of the body, and of what it unpacks to.
        share: Counts the bytes as they arrive; None for a small body.

    Returns:
        The body, unpacked.

    Raises:
        InvalidInputError: If it is not packed as ``Content-Encoding`` says.
        TooManyRequestsError: If all requests together hold too many bytes.
        DeadlineExceededError: If it arrives too slowly.
        HTTPException: 413 if it is larger, 415 if it is packed in another way.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip", "deflate"):
        await _drain(request)
        raise HTTPException(_UNSUPPORTED, f"Content-Encoding {encoding[:40]!r}; allowed: gzip, deflate, identity")
    async with _patient() as patience:
        chunks = [chunk async for chunk in _limited(request, max_bytes, patience, share)]
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    return body if encoding in ("", "identity") else await _unpack(body, encoding, max_bytes, share)


async def read_file(request: Request, max_bytes: int, share: Share) -> tuple[bytes, dict[str, bytes]]:
    """Read a file into memory.

    Args:
        request: A request whose body is the file, or a form with one file, and a file ``param.NAME`` for each picture
            that a model takes beside it.
        max_bytes: Most bytes of the body.
        share: Counts the bytes as they arrive.

    Returns:
        The file, and the files of pictures by NAME.

    Raises:
        InvalidInputError: If it is a broken form, one with no or several files, or a picture is too large.
        TooManyRequestsError: If all requests together hold too many bytes.
        DeadlineExceededError: If it arrives too slowly.
        HTTPException: 413 if it is larger.
    """
    async with _form_file(request, max_bytes, share) as sent:
        if sent is not None:
            upload, pictures = sent
            return await upload.read(), await _read_pictures(pictures)
    async with _patient() as patience:
        return b"".join([chunk async for chunk in _limited(request, max_bytes, patience, share)]), {}


async def save_file(request: Request, max_bytes: int, path: Path) -> tuple[str, dict[str, bytes]]:
    """Write a file to disk as it arrives.

    Args:
        request: As for ``read_file``.
        max_bytes: Most bytes of the body.
        path: Where to write it; if this fails, the caller removes it.

    Returns:
        The client's name for it, which may be empty, and the files of pictures by NAME.

    Raises:
        InvalidInputError: If it is empty, a broken form, one with no or several files, or a picture is too large.
        DeadlineExceededError: If it arrives too slowly.
        HTTPException: 413 if it is larger, 507 if the disk is full.
    """
    name = ""
    pictures: dict[str, bytes] = {}
    with on_disk(), path.open("wb") as file:
        async with _form_file(request, max_bytes) as sent:
            if sent is not None:
                upload, others = sent
                name = upload.filename or ""
                pictures = await _read_pictures(others)
                while chunk := await upload.read(_WRITE_BYTES):
                    await asyncio.to_thread(file.write, chunk)
            else:
                async with _patient() as patience:
                    await _write(file, _limited(request, max_bytes, patience))
    if path.stat().st_size == 0:
        raise InvalidInputError("an empty body", "a file, as the body or in a form")
    return name, pictures


@contextlib.contextmanager
def on_disk() -> Iterator[None]:
    """Map the error of a full disk, in this process or in an actor that it calls.

    Yields:
        Nothing.

    Raises:
        HTTPException: 507 if a disk is full.
    """
    try:
        yield
    except (OSError, RayTaskError) as exc:
        cause = exc.cause if isinstance(exc, RayTaskError) else exc
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HTTPException(_FULL, "there is no room for this file on the server") from exc
        raise


async def _unpack(body: bytes, encoding: str, max_bytes: int, share: Share | None) -> bytes:
    packed = memoryview(body)
    # 15 + 32 reads the header of gzip or of zlib; -15 reads deflate without one, which some clients send.
    for bits in (15 + 32, -15) if encoding == "deflate" else (15 + 32,):
        reader = zlib.decompressobj(bits)
        parts = []
        size = 0
        start = 0
        try:
            while not reader.eof:
                left: bytes | memoryview = reader.unconsumed_tail
                if not left:  # in pieces, since zlib copies the rest each time
                    left = packed[start : start + _UNPACK_BYTES]
                    start += len(left)
                part = await asyncio.to_thread(reader.decompress, left, min(_UNPACK_BYTES, max_bytes + 1 - size))
                if not part and not left:
                    break  # truncated
                size += len(part)
                if size > max_bytes:
                    raise HTTPException(_TOO_LARGE, f"a body that unpacks to more than {max_bytes} bytes")
                if share is not None:
                    share.take(len(part))
                parts.append(part)
        except zlib.error:
            if share is not None:
                share.give_back(sum(map(len, parts)))
            continue
        if reader.eof and not reader.unused_data and start >= len(packed):
            return await asyncio.to_thread(b"".join, parts)
    raise InvalidInputError(f"a body that is not {encoding}, as its Content-Encoding says")


async def _write(file: BinaryIO, chunks: AsyncIterator[bytes]) -> None:
    waiting = []
    size = 0
    async for chunk in chunks:
        waiting.append(chunk)
        size += len(chunk)
        if size >= _WRITE_BYTES:
            await asyncio.to_thread(file.write, b"".join(waiting))
            waiting = []
            size = 0
    await asyncio.to_thread(file.write, b"".join(waiting))


@contextlib.asynccontextmanager
async def _patient() -> AsyncIterator[asyncio.Timeout]:
    """Give up on a body that arrives too slowly."""
    try:
        async with asyncio.timeout(_IDLE_S) as patience:
            yield patience
    except TimeoutError as exc:
        raise DeadlineExceededError(
            f"the body arrived too slowly: less than {_LEAST_BYTES} bytes in {_IDLE_S:g} s"
        ) from exc


async def _limited(
    request: Request, max_bytes: int, patience: asyncio.Timeout | None = None, share: Share | None = None
) -> AsyncIterator[bytes]:
    word = request.headers.get("content-length", "0")
    declared = int(word) if word.isdigit() else 0
    if declared > max_bytes:
        await _drain(request)
        raise HTTPException(_TOO_LARGE, f"a body of {declared} bytes; allowed: {max_bytes}")
    size = 0
    counted = 0
    loop = asyncio.get_running_loop()
    chunks = request.stream()
    if share is not None:
        await _hold(request, chunks, share.check, declared)
    async for chunk in chunks:
        size += len(chunk)
        if patience is not None and size - counted >= _LEAST_BYTES:
            patience.reschedule(loop.time() + _IDLE_S)
            counted = size
        if size > max_bytes:
            raise HTTPException(_TOO_LARGE, f"a body of more than {max_bytes} bytes")
        if share is not None:
            await _hold(request, chunks, share.take, len(chunk))
        yield chunk


async def _hold(request: Request, chunks: AsyncIterator[bytes], take: Callable[[int], None], num_bytes: int) -> None:
    try:
        take(num_bytes)
    except TooManyRequestsError:
        await _drain(request, chunks)
        raise


async def _drain(request: Request, chunks: AsyncIterator[bytes] | None = None) -> None:
    """Read and drop some of an unwanted body: most clients read no response before they have sent all of it."""
    if "expect" in request.headers:
        return
    size = 0
    loop = asyncio.get_running_loop()
    end_s = loop.time() + _IDLE_S
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_IDLE_S) as patience:
            async for chunk in chunks or request.stream():
                size += len(chunk)
                if size > _DRAIN_BYTES:
                    return
                patience.reschedule(min(end_s, loop.time() + _DRAIN_IDLE_S))


async def _read_pictures(pictures: Mapping[str, UploadFile]) -> dict[str, bytes]:
    for name, upload in pictures.items():
        if (upload.size or 0) > _MAX_PICTURE_BYTES:
            raise InvalidInputError(f"a picture {name[:40]!r} of {upload.size} bytes", f"{_MAX_PICTURE_BYTES} bytes")
    return {name: await upload.read() for name, upload in pictures.items()}


@contextlib.asynccontextmanager
async def _form_file(
    request: Request, max_bytes: int, share: Share | None = None
) -> AsyncIterator[tuple[UploadFile, dict[str, UploadFile]] | None]:
    """Read a form with one file, and pictures by the names of their params; None if the body is no form."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        yield None
        return
    async with _patient() as patience:
        chunks: Any = _limited(request, max_bytes, patience, share)
        parser = MultiPartParser(request.headers, chunks, max_files=_MAX_FIELDS, max_fields=_MAX_FIELDS)
        try:
            form = await parser.parse()
        except MultiPartException as exc:
            raise InvalidInputError(f"a broken form: {exc.message}", "multipart/form-data with one file") from exc
        except (KeyError, ValueError) as exc:
            raise InvalidInputError("a broken form", "multipart/form-data with a boundary and one file") from exc
    try:
        items = form.multi_items()
        sent = [(name, value) for name, value in items if isinstance(value, UploadFile)]
        files = [value for name, value in sent if not name.startswith(_PARAM_PREFIX)]
        pictures = {name.removeprefix(_PARAM_PREFIX): value for name, value in sent if name.startswith(_PARAM_PREFIX)}
        if len(files) != 1 or len(items) != 1 + len(pictures):
            got = f"a form with {len(sent)} files and {len(items) - len(sent)} fields"
            allowed = "one file, one file param.NAME for each picture of a model, and everything else in the query"
            raise InvalidInputError(got, allowed)
        yield files[0], pictures
    finally:
        await form.close()
