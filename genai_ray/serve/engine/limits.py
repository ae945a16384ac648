"""The limits of one replica: requests at the same time, the bytes that they hold, sizes of frames and tensors."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from genai_ray.catalog import ModelSpec, ServeProfile
from genai_ray.errors import InvalidInputError, TooManyRequestsError
from genai_ray.serve.engine.inference import TensorMetadata
from genai_ray.types import ModelTask

__all__ = [
    "LARGE_JSON_BYTES",
    "RETRY_LATER",
    "Admission",
    "ByteBudget",
    "Share",
    "bytes_of",
    "check_frame_sizes",
    "check_json_result",
    "check_result",
    "check_tensor_sizes",
    "is_long",
    "max_frames_together",
    "max_strings",
]

Array = npt.NDArray[Any]

RETRY_LATER = "Send it again later."

LARGE_JSON_BYTES = 1 << 16
"""More bytes than this are read and written on a thread, if each value is converted, as in JSON."""
_LARGE_BINARY_BYTES = 1 << 22
"""More bytes than this of plain binary data are copied on a thread: fewer take no longer than the change of thread."""
_MAX_RESULTS = 2
"""Responses of the largest size that may be held at the same time, by default."""
_MAX_BODIES = 4
"""Bodies of the largest size that may be held at the same time, by default."""
_COPIES_WHILE_WRITTEN = 3
"""A result takes this many times its bytes until it is written: the arrays, their bytes, the message."""
_LENGTH_BYTES = 4
"""Each BYTES element has a length before it, in binary data."""


class Share:
    """The share of one request in the bytes that all requests of a replica may hold.

    Args:
        admission: Counts the bytes of all requests.
    """

    def __init__(self, admission: Admission) -> None:
        self.num_bytes = 0
        """Bytes of the request."""
        self.result_bytes = 0
        """Bytes of the response, until it is sent."""
        self.turn: asyncio.Event | None = None
        """Set when the response before this one in a stream has room: it is sent first, and must not wait."""
        self.has_room = asyncio.Event()
        """Set when the response has room."""
        self._admission = admission

    def check(self, num_bytes: int) -> None:
        """Check whether more bytes would fit now, before they come; nothing is held for them yet.

        Args:
            num_bytes: How many more.

        Raises:
            TooManyRequestsError: If all requests together would hold more than they may.
        """
        admission = self._admission
        if admission.held_bytes + num_bytes > admission.most_bytes:
            held = f"{num_bytes} bytes more beside {admission.held_bytes} of all requests in this replica"
            raise TooManyRequestsError(held, f"{admission.most_bytes} together", RETRY_LATER)

    def take(self, num_bytes: int) -> None:
        """Hold more bytes until the request ends.

        Args:
            num_bytes: How many more.

        Raises:
            TooManyRequestsError: If all requests together would hold more than they may.
        """
        self.check(num_bytes)
        self._admission.held_bytes += num_bytes
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Hold fewer bytes.

        Args:
            num_bytes: How many fewer.
        """
        self._admission.held_bytes -= num_bytes
        self.num_bytes -= num_bytes

    async def wait_for_result(self, num_bytes: int, within_s: float) -> None:
        """Hold the bytes of a result before it is computed; wait while the results of other requests are not sent yet.

        Args:
            num_bytes: Expected bytes of its arrays.
            within_s: Most seconds to wait.

        Raises:
            TooManyRequestsError: If there is no room in time.
        """
        admission = self._admission
        wanted = min(_COPIES_WHILE_WRITTEN * num_bytes, admission.most_result_bytes)
        try:
            async with asyncio.timeout(within_s):
                if self.turn is not None:
                    await self.turn.wait()
                while admission.result_bytes + wanted > admission.most_result_bytes:
                    admission.freed.clear()
                    await admission.freed.wait()
        except TimeoutError as exc:
            raise admission.no_room(wanted) from exc
        self._hold_result(wanted)
        self.has_room.set()

    def keep_result(self, num_bytes: int, *, is_written: bool) -> None:
        """Hold the bytes of a computed result, in place of those expected.

        Args:
            num_bytes: Bytes of its arrays, or of the written response.
            is_written: Whether the response is written, so that it takes only its own bytes.

        Raises:
            TooManyRequestsError: If it is larger than expected, and finds no room; the caller must drop it.
        """
        admission = self._admission
        wanted = min(num_bytes if is_written else _COPIES_WHILE_WRITTEN * num_bytes, admission.most_result_bytes)
        others = admission.result_bytes - self.result_bytes
        if wanted > self.result_bytes and others + wanted > admission.most_result_bytes:
            raise admission.no_room(wanted)
        self._hold_result(wanted)

    def give_back_result(self) -> None:
        """Hold nothing of the response any more: it is sent, or the client has gone."""
        self._hold_result(0)

    def _hold_result(self, num_bytes: int) -> None:
        self._admission.result_bytes += num_bytes - self.result_bytes
        self.result_bytes = num_bytes
        self._admission.freed.set()


class ByteBudget:
    """Bytes that all requests of a replica may hold for one purpose; a request that finds too few waits for its turn.

    Args:
        max_bytes: The number of bytes.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def hold(self, num_bytes: int) -> AsyncIterator[None]:
        """Hold bytes while the context lasts.

        Args:
            num_bytes: The number; all bytes if there are fewer.

        Yields:
            Nothing, once it holds them.
        """
        wanted = min(num_bytes, self._max_bytes)
        async with self._turn:
            while self._held_bytes + wanted > self._max_bytes:
                self._freed.clear()
                await self._freed.wait()
            self._held_bytes += wanted
        try:
            yield
        finally:
            self._held_bytes -= wanted
            self._freed.set()


class Admission:
    """Counts requests and their bytes, from one event loop, and refuses at once what is too much.

    Args:
        profile: The limits.
    """

    def __init__(self, profile: ServeProfile) -> None:
        self._max_requests = profile.max_waiting
        self._max_per_model = profile.max_waiting_per_model or max(1, profile.max_waiting * 3 // 4)
        self.most_bytes = profile.max_bodies_bytes or _MAX_BODIES * profile.max_body_bytes
        """Most bytes of all requests."""
        self.held_bytes = 0
        """Bytes of all requests now."""
        self.most_result_bytes = profile.max_results_bytes or _MAX_RESULTS * profile.max_output_bytes
        """Most bytes of all responses."""
        self.result_bytes = 0
        """Bytes of all responses now."""
        self.freed = asyncio.Event()
        """Set when responses give bytes back."""
        self._num_requests = 0
        self._by_model: Counter[str] = Counter()

    def no_room(self, num_bytes: int) -> TooManyRequestsError:
        """Return the error of a response that finds no room.

        Args:
            num_bytes: Its bytes.

        Returns:
            The error.
        """
        held = f"a result that takes {num_bytes} bytes beside {self.result_bytes} of answers that are not sent yet"
        return TooManyRequestsError(held, f"{self.most_result_bytes} together in this replica", RETRY_LATER)

    @contextlib.contextmanager
    def place(self) -> Iterator[Share]:
        """Admit one request while the context lasts, before its body is read.

        Yields:
            Its share of the bytes of all requests.

        Raises:
            TooManyRequestsError: If the replica has as many requests as it may.
        """
        if self._num_requests >= self._max_requests:
            raise TooManyRequestsError(
                f"{self._num_requests} requests in this replica", f"{self._max_requests} at the same time", RETRY_LATER
            )
        self._num_requests += 1
        share = Share(self)
        try:
            yield share
        finally:
            self._num_requests -= 1
            self.held_bytes -= share.num_bytes

    @contextlib.contextmanager
    def admit_to(self, model: str) -> Iterator[None]:
        """Count an admitted request, once it is read, for its model while the context lasts.

        Args:
            model: Name of the model.

        Yields:
            Nothing.

        Raises:
            TooManyRequestsError: If the model has as many requests as it may.
        """
        here = self._by_model[model]
        if here >= self._max_per_model:
            raise TooManyRequestsError(
                f"{here} requests for {model} in this replica", f"{self._max_per_model} at the same time", RETRY_LATER
            )
        self._by_model[model] += 1
        try:
            yield
        finally:
            self._by_model[model] -= 1
            if not self._by_model[model]:
                del self._by_model[model]


def is_long(num_bytes: int, *, is_plain: bool) -> bool:
    """Tell whether data takes so long to read or write that it belongs on a thread.

    Args:
        num_bytes: Its bytes.
        is_plain: Whether they are numbers in binary form, which are copied as they are.

    Returns:
        Whether it does.
    """
    return num_bytes > (_LARGE_BINARY_BYTES if is_plain else LARGE_JSON_BYTES)


def max_strings(inputs: Sequence[TensorMetadata], profile: ServeProfile) -> int:
    """Return how many BYTES elements a request may have as binary data: their lengths may take as much as JSON.

    Args:
        inputs: Inputs of the model.
        profile: The limits.

    Returns:
        The number; 0 if the model has no such input.
    """
    return profile.max_json_bytes // _LENGTH_BYTES if any(fact.datatype == "BYTES" for fact in inputs) else 0


def check_frame_sizes(frames: Array, scale: int, profile: ServeProfile) -> None:
    """Refuse frames that are too large, or whose result would be, before anything is computed.

    Args:
        frames: (N, H, W, 3).
        scale: Factor of the model, along height and along width.
        profile: The limits.

    Raises:
        InvalidInputError: If a frame has too many pixels, or their result too many bytes.
    """
    height, width = frames.shape[1:3]
    if height * width > profile.max_frame_pixels:
        raise InvalidInputError(
            f"frames of {width}x{height}", f"{profile.max_frame_pixels} pixels each", "Send smaller ones."
        )
    size = frames.nbytes * scale**2
    got = f"frames of {list(frames.shape)}, whose result has {size} bytes"
    _check_size(got, size, profile.max_output_bytes)


def max_frames_together(frames: Array, scale: int, profile: ServeProfile) -> int:
    """Return how many frames may go into one call: their result is no larger than that of one request may be.

    Args:
        frames: (N, H, W, 3); others of their size and dtype go with them.
        scale: Factor of the model, along height and along width.
        profile: The limits.

    Returns:
        The number, at least 1.
    """
    each = math.prod(frames.shape[1:]) * frames.itemsize * scale**2
    return max(1, profile.max_output_bytes // max(each, 1))


def check_tensor_sizes(feeds: Mapping[str, Array], spec: ModelSpec, profile: ServeProfile) -> None:
    """Refuse tensors of an image model whose result would be too large, before anything is computed.

    Args:
        feeds: The model's inputs by name.
        spec: The model; the result of one that is not for images has an unknown size.
        profile: The limits.

    Raises:
        InvalidInputError: If the result would be too large.
    """
    size = max((array.nbytes for array in feeds.values()), default=0) * spec.scale**2
    if spec.is_image_model and spec.task is not ModelTask.BACKGROUND_REMOVAL:
        _check_size(f"inputs whose result has {size} bytes", size, profile.max_output_bytes)


def bytes_of(array: Array) -> int:
    """Return the size of a tensor as binary data.

    Args:
        array: The tensor; an object array holds BYTES.

    Returns:
        The number.
    """
    return array.nbytes if array.dtype != object else _LENGTH_BYTES * array.size + sum(map(len, array.flat))


def check_json_result(arrays: Iterable[Array], profile: ServeProfile) -> None:
    """Refuse a result that is too large for JSON, which takes many times its bytes.

    Args:
        arrays: The outputs that go out as JSON.
        profile: The limits.

    Raises:
        InvalidInputError: If it is too large.
    """
    size = sum(map(bytes_of, arrays))
    do = "Ask for it as binary data."
    _check_size(f"inputs whose result has {size} bytes, as JSON", size, profile.max_json_bytes, do)


def check_result(arrays: Iterable[Array], profile: ServeProfile) -> None:
    """Refuse a result that is too large to be sent; the size of a model's own tensors is not known before.

    Args:
        arrays: The outputs.
        profile: The limits.

    Raises:
        InvalidInputError: If it is too large.
    """
    size = sum(map(bytes_of, arrays))
    _check_size(f"inputs whose result has {size} bytes", size, profile.max_output_bytes)


def _check_size(got: str, num_bytes: int, max_bytes: int, do: str = "Send fewer or smaller ones.") -> None:
    if num_bytes > max_bytes:
        raise InvalidInputError(got, f"{max_bytes} bytes", do)
