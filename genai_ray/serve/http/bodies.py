"""Bodies of requests and the files that they carry, raw or as a form, within the limits of size and time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ray.exceptions import RayTaskError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from genai_ray.errors import DeadlineExceededError, InvalidInputError, TooManyRequestsError
from genai_ray.serve.engine.limits import Admission, Share
from genai_ray.serve.http.sending import UNTIL_SENT

__all__ = ["hold_place", "on_disk", "read_body", "read_file", "save_file"]

_TOO_LARGE, _UNSUPPORTED, _FULL = 413, 415, 507
_WRITE_BYTES = 4 * 1024**2
_DRAIN_BYTES = 64 * 1024**2
_DRAIN_IDLE_S = 1.0
_IDLE_S = 30.0
"""Most seconds for each ``_LEAST_BYTES`` of a body, and for what is left of it: who sends slower would keep a place for hours."""
_LEAST_BYTES = 240_000
_MAX_FIELDS = 16
_UNPACK_BYTES = 4 * 1024**2
"""What is unpacked before it is asked for whether there is room for more."""


@contextlib.asynccontextmanager
async def hold_place(request: Request, admission: Admission) -> AsyncIterator[Share]:
    """Let a request in for as long as the context lasts, before its body is read; its answer counts until it is sent.

    Args:
        request: The request; where it is refused, its body is read to be thrown away.
        admission: Counts requests.

    Yields:
        What the bytes of its body are taken from.

    Raises:
        TooManyRequestsError: If so many are there already.
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
        share: What its bytes are taken from as they come; None for a body that is small anyway.

    Returns:
        The body, unpacked.

    Raises:
        InvalidInputError: If it is not packed as it says.
        TooManyRequestsError: If all requests together hold too many bytes.
        DeadlineExceededError: If it stops coming.
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


async def read_file(request: Request, max_bytes: int, share: Share) -> tuple[bytes, str]:
    """Read a file into memory.

    Args:
        request: A request whose body is the file, or a form with one file.
        max_bytes: Most bytes of the body.
        share: What its bytes are taken from.

    Returns:
        (the file, its name as the client has it; empty where it has none).

    Raises:
        InvalidInputError: If it is a form without a file, with several, or a broken one.
        TooManyRequestsError: If all requests together hold too many bytes.
        DeadlineExceededError: If it stops coming.
        HTTPException: 413 if it is larger.
    """
    async with _patient() as patience:
        if not _is_form(request):
            return b"".join([chunk async for chunk in _limited(request, max_bytes, patience, share)]), ""
        upload = await _parse_form(request, max_bytes, patience, share)
    try:
        return await upload.read(), upload.filename or ""
    finally:
        await upload.close()


async def save_file(request: Request, max_bytes: int, path: Path) -> str:
    """Write a file to disk as it comes.

    Args:
        request: A request whose body is the file, or a form with one file.
        max_bytes: Most bytes of the body.
        path: Where it goes; the caller removes it if this fails.

    Returns:
        Its name as the client has it; empty where it has none.

    Raises:
        InvalidInputError: If it is empty, a form without a file, with several, or a broken one.
        DeadlineExceededError: If it stops coming.
        HTTPException: 413 if it is larger, 507 if there is no room for it.
    """
    name = ""
    with on_disk():
        async with _patient() as patience:
            upload = await _parse_form(request, max_bytes, patience) if _is_form(request) else None
        with path.open("wb") as file:
            if upload is not None:
                try:
                    name = upload.filename or ""
                    while chunk := await upload.read(_WRITE_BYTES):
                        await asyncio.to_thread(file.write, chunk)
                finally:
                    await upload.close()
            else:
                async with _patient() as patience:
                    await _write(file, _limited(request, max_bytes, patience))
    if path.stat().st_size == 0:
        raise InvalidInputError("an empty body", "a file, as the body or in a form")
    return name


@contextlib.contextmanager
def on_disk() -> Iterator[None]:
    """Say where a disk is full, of this process or of an actor that was called.

    Yields:
        Nothing.

    Raises:
        HTTPException: 507 if it is.
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
        parts, size, start = [], 0, 0
        try:
            while not reader.eof:
                left: bytes | memoryview = reader.unconsumed_tail
                if not left:  # by pieces: what is left over is copied each time
                    left = packed[start : start + _UNPACK_BYTES]
                    start += len(left)
                part = await asyncio.to_thread(reader.decompress, left, min(_UNPACK_BYTES, max_bytes + 1 - size))
                if not part and not left:
                    break  # it ends too early
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
    waiting, size = [], 0
    async for chunk in chunks:
        waiting.append(chunk)
        size += len(chunk)
        if size >= _WRITE_BYTES:
            await asyncio.to_thread(file.write, b"".join(waiting))
            waiting, size = [], 0
    await asyncio.to_thread(file.write, b"".join(waiting))


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


@contextlib.asynccontextmanager
async def _patient() -> AsyncIterator[asyncio.Timeout]:
    """Give up on a body that comes too slowly."""
    try:
        async with asyncio.timeout(_IDLE_S) as patience:
            yield patience
    except TimeoutError as exc:
        raise DeadlineExceededError(
            f"the body came too slowly: less than {_LEAST_BYTES} bytes of it in {_IDLE_S:g} s"
        ) from exc


async def _limited(
    request: Request, max_bytes: int, patience: asyncio.Timeout | None = None, share: Share | None = None
) -> AsyncIterator[bytes]:
    word = request.headers.get("content-length", "0")
    declared = int(word) if word.isdigit() else 0
    if declared > max_bytes:
        await _drain(request)
        raise HTTPException(_TOO_LARGE, f"a body of {declared} bytes; allowed: {max_bytes}")
    size, counted, loop, chunks = 0, 0, asyncio.get_running_loop(), request.stream()
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
    """Read some of a body, or of the rest of one, that is not wanted: a client that sends without waiting sees no answer before it has sent."""
    if "expect" in request.headers:
        return
    size, loop = 0, asyncio.get_running_loop()
    end_s = loop.time() + _IDLE_S
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_IDLE_S) as patience:
            async for chunk in chunks or request.stream():
                size += len(chunk)
                if size > _DRAIN_BYTES:
                    return
                patience.reschedule(min(end_s, loop.time() + _DRAIN_IDLE_S))


async def _parse_form(
    request: Request, max_bytes: int, patience: asyncio.Timeout, share: Share | None = None
) -> UploadFile:
    chunks: Any = _limited(request, max_bytes, patience, share)
    parser = MultiPartParser(request.headers, chunks, max_files=_MAX_FIELDS, max_fields=_MAX_FIELDS)
    try:
        form = await parser.parse()
    except MultiPartException as exc:
        raise InvalidInputError(f"a form that is broken: {exc.message}", "multipart/form-data with one file") from exc
    except (KeyError, ValueError) as exc:
        raise InvalidInputError("a form that is broken", "multipart/form-data with a boundary and one file") from exc
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if len(files) != 1 or len(form.multi_items()) != 1:
        await form.close()
        raise InvalidInputError(
            f"a form with {len(files)} files and {len(form.multi_items()) - len(files)} fields",
            "one file, and everything else in the query",
        )
    return files[0]
