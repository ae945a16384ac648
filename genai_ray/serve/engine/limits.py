"""How much one replica takes: requests at the same time, of one model and altogether, and the sizes of what they bring and ask for."""

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
    "COME_AGAIN",
    "LARGE_JSON_BYTES",
    "Admission",
    "Room",
    "Share",
    "at_once",
    "bytes_of",
    "check_frame_sizes",
    "check_json_result",
    "check_result",
    "check_tensor_sizes",
    "is_long",
    "max_strings",
]

Array = npt.NDArray[Any]

COME_AGAIN = "Send it again in a while."
_SMALLER = "Send fewer or smaller ones."

LARGE_JSON_BYTES = 1 << 16
"""More bytes than this of what is read and written value by value, such as JSON, are read and written on a thread."""
_LARGE_BINARY_BYTES = 1 << 22
"""Numbers as binary data, of more bytes than this, are copied on a thread: less takes no longer than to change to one."""
_RESULTS = 2
"""Answers of the largest size that are held at the same time, if nothing is said of it."""
_BODIES = 4
"""Bodies of the largest size that are held at the same time, where nothing is said of it."""
_WHILE_WRITTEN = 3
"""What a result takes, in its own bytes, until it is written: the arrays, their bytes, the message."""
_LENGTH_BYTES = 4
"""What an element of BYTES takes beside its own bytes, as binary data."""


class Share:
    """Bytes that one request holds, of those that all requests in a replica may hold.

    Args:
        admission: Of all requests.
    """

    def __init__(self, admission: Admission) -> None:
        self.num_bytes = 0
        self.result_bytes = 0
        """Of the answer, until it is sent."""
        self.turn: asyncio.Event | None = None
        """Set when there is room for the answer before this one in a stream, which is sent first and must not wait for this one's."""
        self.has_room = asyncio.Event()
        """Set when there is room for the answer."""
        self._admission = admission

    def check(self, num_bytes: int) -> None:
        """Look whether more bytes would fit at this moment, before they come: what has not come is not held for anybody.

        Args:
            num_bytes: How many more.

        Raises:
            TooManyRequestsError: If all requests together would hold more than they may.
        """
        admission = self._admission
        if admission.held_bytes + num_bytes > admission.most_bytes:
            held = f"{num_bytes} bytes more beside {admission.held_bytes} of all requests in this replica"
            raise TooManyRequestsError(held, f"{admission.most_bytes} together", COME_AGAIN)

    def take(self, num_bytes: int) -> None:
        """Hold more bytes, until the request's place is given back.

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
        """Hold what a result will take, before it is computed; wait while the results of others are not sent.

        Args:
            num_bytes: Bytes of its arrays, as far as they are known.
            within_s: Most seconds.

        Raises:
            TooManyRequestsError: If there is no room in time.
        """
        admission = self._admission
        wanted = min(_WHILE_WRITTEN * num_bytes, admission.most_result_bytes)
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
        """Hold what a result takes that is there, instead of what was thought before.

        Args:
            num_bytes: Bytes of its arrays, or of what is sent.
            is_written: Whether they are what is sent.

        Raises:
            TooManyRequestsError: If it is more, and there is no room for it; it is to be forgotten then.
        """
        admission = self._admission
        wanted = min(num_bytes if is_written else _WHILE_WRITTEN * num_bytes, admission.most_result_bytes)
        if (
            wanted > self.result_bytes
            and admission.result_bytes - self.result_bytes + wanted > admission.most_result_bytes
        ):
            raise admission.no_room(wanted)
        self._hold_result(wanted)

    def give_back_result(self) -> None:
        """Hold nothing of the answer any more: it is sent, or nobody wants it."""
        self._hold_result(0)

    def _hold_result(self, num_bytes: int) -> None:
        self._admission.result_bytes += num_bytes - self.result_bytes
        self.result_bytes = num_bytes
        self._admission.freed.set()


class Room:
    """Bytes that requests in a replica may hold together, where a small body becomes many; who finds too few left waits, each in turn.

    Args:
        most_bytes: How many.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._held = most_bytes, 0
        self._turn, self._freed = asyncio.Lock(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def hold(self, num_bytes: int) -> AsyncIterator[None]:
        """Hold bytes for as long as the context lasts.

        Args:
            num_bytes: How many; of more than there are, all.

        Yields:
            Nothing, once they are there.
        """
        wanted = min(num_bytes, self._most)
        async with self._turn:
            while self._held + wanted > self._most:
                self._freed.clear()
                await self._freed.wait()
            self._held += wanted
        try:
            yield
        finally:
            self._held -= wanted
            self._freed.set()


class Admission:
    """Counts requests and their bytes, from one event loop; what is too much is refused at once.

    Args:
        profile: How many there may be.
    """

    def __init__(self, profile: ServeProfile) -> None:
        self._most = profile.max_waiting
        self._most_of_one = profile.max_waiting_per_model or max(1, profile.max_waiting * 3 // 4)
        self.most_bytes = profile.max_bodies_bytes or _BODIES * profile.max_body_bytes
        """Bytes that all requests may hold."""
        self.held_bytes = 0
        """Bytes that they hold."""
        self.most_result_bytes = profile.max_results_bytes or _RESULTS * profile.max_output_bytes
        """Bytes that all answers may take."""
        self.result_bytes = 0
        """Bytes that they take."""
        self.freed = asyncio.Event()
        """Set when they take fewer."""
        self._all = 0
        self._by_model: Counter[str] = Counter()

    def no_room(self, num_bytes: int) -> TooManyRequestsError:
        """Return why an answer finds no room.

        Args:
            num_bytes: What it takes.

        Returns:
            The error.
        """
        held = f"a result that takes {num_bytes} bytes beside {self.result_bytes} of answers that are not sent yet"
        return TooManyRequestsError(held, f"{self.most_result_bytes} together in this replica", COME_AGAIN)

    @contextlib.contextmanager
    def place(self) -> Iterator[Share]:
        """Let one request in for as long as the context lasts, before it is read.

        Yields:
            What its bytes are taken from.

        Raises:
            TooManyRequestsError: If so many are there already.
        """
        if self._all >= self._most:
            raise TooManyRequestsError(
                f"{self._all} requests in this replica", f"{self._most} at the same time", COME_AGAIN
            )
        self._all += 1
        share = Share(self)
        try:
            yield share
        finally:
            self._all -= 1
            self.held_bytes -= share.num_bytes

    @contextlib.contextmanager
    def of(self, model: str) -> Iterator[None]:
        """Count a request that is in, once it is read, as one for its model for as long as the context lasts.

        Args:
            model: Name of the model that it is for.

        Yields:
            Nothing.

        Raises:
            TooManyRequestsError: If so many of this model are there already.
        """
        here = self._by_model[model]
        if here >= self._most_of_one:
            raise TooManyRequestsError(
                f"{here} requests for {model} in this replica", f"{self._most_of_one} at the same time", COME_AGAIN
            )
        self._by_model[model] += 1
        try:
            yield
        finally:
            self._by_model[model] -= 1
            if not self._by_model[model]:
                del self._by_model[model]


def is_long(num_bytes: int, *, is_plain: bool) -> bool:
    """Tell whether reading or writing data takes so long that it belongs on a thread.

    Args:
        num_bytes: Its bytes.
        is_plain: Whether they are numbers as binary data, which are copied as they are.

    Returns:
        Whether it does.
    """
    return num_bytes > (_LARGE_BINARY_BYTES if is_plain else LARGE_JSON_BYTES)


def max_strings(inputs: Sequence[TensorMetadata], profile: ServeProfile) -> int:
    """Return how many elements of BYTES a request may have as binary data: their lengths alone may take what JSON may.

    Args:
        inputs: Of the model.
        profile: What is allowed.

    Returns:
        The number; 0 where the model takes none.
    """
    return profile.max_json_bytes // _LENGTH_BYTES if any(fact.datatype == "BYTES" for fact in inputs) else 0


def check_frame_sizes(frames: Array, scale: int, profile: ServeProfile) -> None:
    """Refuse frames that are too large, or whose result would be, before anything is computed.

    Args:
        frames: (N, H, W, 3).
        scale: Factor of the model, along height and along width.
        profile: What is allowed.

    Raises:
        InvalidInputError: If they are.
    """
    height, width = frames.shape[1:3]
    if height * width > profile.max_frame_pixels:
        raise InvalidInputError(
            f"frames of {width}x{height}", f"{profile.max_frame_pixels} pixels each", "Send smaller ones."
        )
    size = frames.nbytes * scale**2
    if size > profile.max_output_bytes:
        raise InvalidInputError(
            f"frames of {list(frames.shape)}, whose result has {size} bytes",
            f"{profile.max_output_bytes} bytes",
            _SMALLER,
        )


def at_once(frames: Array, scale: int, profile: ServeProfile) -> int:
    """Return how many frames may go to a session in one call: merged requests get no more bytes back than one may.

    Args:
        frames: (N, H, W, 3); others of their size and dtype go with them.
        scale: Factor of the model, along height and along width.
        profile: What is allowed.

    Returns:
        The number, at least 1.
    """
    each = math.prod(frames.shape[1:]) * frames.itemsize * scale**2
    return max(1, profile.max_output_bytes // max(each, 1))


def check_tensor_sizes(feeds: Mapping[str, Array], spec: ModelSpec, profile: ServeProfile) -> None:
    """Refuse tensors of an image model whose result would be too large, before anything is computed.

    Args:
        feeds: The model's inputs by name.
        spec: The model; of one that is not for images nothing is known before.
        profile: What is allowed.

    Raises:
        InvalidInputError: If it would.
    """
    size = max((array.nbytes for array in feeds.values()), default=0) * spec.scale**2
    if spec.is_image_model and spec.task is not ModelTask.BACKGROUND_REMOVAL and size > profile.max_output_bytes:
        raise InvalidInputError(f"inputs whose result has {size} bytes", f"{profile.max_output_bytes} bytes", _SMALLER)


def bytes_of(array: Array) -> int:
    """Return the bytes of a tensor as binary data.

    Args:
        array: The tensor; one of objects is of BYTES.

    Returns:
        The number.
    """
    return array.nbytes if array.dtype != object else _LENGTH_BYTES * array.size + sum(map(len, array.flat))


def check_json_result(arrays: Iterable[Array], profile: ServeProfile) -> None:
    """Refuse a result that is too large to be written value by value, which takes many times its bytes.

    Args:
        arrays: The outputs that are not binary.
        profile: What is allowed.

    Raises:
        InvalidInputError: If it is.
    """
    size = sum(map(bytes_of, arrays))
    if size > profile.max_json_bytes:
        raise InvalidInputError(
            f"inputs whose result has {size} bytes, as JSON",
            f"{profile.max_json_bytes} bytes",
            "Ask for it as binary data.",
        )


def check_result(arrays: Iterable[Array], profile: ServeProfile) -> None:
    """Refuse a result that is too large to be sent: of a model's own tensors nobody knows before.

    Args:
        arrays: The outputs.
        profile: What is allowed.

    Raises:
        InvalidInputError: If it is.
    """
    size = sum(map(bytes_of, arrays))
    if size > profile.max_output_bytes:
        raise InvalidInputError(f"inputs whose result has {size} bytes", f"{profile.max_output_bytes} bytes", _SMALLER)
