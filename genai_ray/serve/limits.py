"""How much one replica takes: requests at the same time, of one model and altogether, and the sizes of what they ask for."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy.typing as npt

from genai_ray.catalog import ModelSpec, ServeProfile
from genai_ray.errors import InvalidInputError, TooManyRequestsError
from genai_ray.types import ModelTask

__all__ = ["COME_AGAIN", "Admission", "check_frame_sizes", "check_result", "check_tensor_sizes"]

Array = npt.NDArray[Any]

COME_AGAIN = "Send it again in a while."
_SMALLER = "Send fewer or smaller ones."


class Admission:
    """Counts requests, from one event loop; what is too much is refused at once.

    Args:
        profile: How many there may be.
    """

    def __init__(self, profile: ServeProfile) -> None:
        self._most = profile.max_waiting
        self._most_of_one = profile.max_waiting_per_model or max(1, profile.max_waiting * 3 // 4)
        self._by_model: Counter[str] = Counter()

    @contextlib.contextmanager
    def of(self, model: str) -> Iterator[None]:
        """Let one request in for as long as the context lasts.

        Args:
            model: Name of the model that it is for.

        Yields:
            Nothing.

        Raises:
            TooManyRequestsError: If so many are there already, of this model or altogether.
        """
        here, all_here = self._by_model[model], self._by_model.total()
        if all_here >= self._most:
            raise TooManyRequestsError(f"{all_here} requests in this replica", f"{self._most} at the same time", COME_AGAIN)
        if here >= self._most_of_one:
            raise TooManyRequestsError(f"{here} requests for {model} in this replica", f"{self._most_of_one} at the same time", COME_AGAIN)
        self._by_model[model] += 1
        try:
            yield
        finally:
            self._by_model[model] -= 1
            if not self._by_model[model]:
                del self._by_model[model]


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
        raise InvalidInputError(f"frames of {width}x{height}", f"{profile.max_frame_pixels} pixels each", "Send smaller ones.")
    size = frames.nbytes * scale**2
    if size > profile.max_output_bytes:
        raise InvalidInputError(f"frames of {list(frames.shape)}, whose result has {size} bytes", f"{profile.max_output_bytes} bytes", _SMALLER)


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


def check_result(arrays: Iterable[Array], profile: ServeProfile) -> None:
    """Refuse a result that is too large to be sent: of a model's own tensors nobody knows before.

    Args:
        arrays: The outputs.
        profile: What is allowed.

    Raises:
        InvalidInputError: If it is.
    """
    size = sum(array.nbytes for array in arrays)
    if size > profile.max_output_bytes:
        raise InvalidInputError(f"inputs whose result has {size} bytes", f"{profile.max_output_bytes} bytes", _SMALLER)
