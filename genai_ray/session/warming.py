"""Warm-up with a model's own tensors: what its shapes mean, and arrays of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from genai_ray.backends import TensorInfo
from genai_ray.errors import ModelLoadError

__all__ = ["Shapes", "build_feeds"]

Shapes: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
"""The shape of each input of one run, by name."""


def build_feeds(inputs: Iterable[TensorInfo], shapes: Shapes) -> dict[str, npt.NDArray[Any]]:
    """Make the inputs of one run.

    Args:
        inputs: Of the graph.
        shapes: Shape of each of them; one whose axes are all fixed may be left out.

    Returns:
        Zeros, or empty strings, by name.

    Raises:
        ModelLoadError: If an input is not known, is missing, or cannot have its shape.
    """
    wanted, given = {info.name: info for info in inputs}, dict(shapes)
    unknown = sorted(set(given) - set(wanted))
    if unknown:
        raise ModelLoadError(f"warmup_shapes of unknown inputs {unknown}", f"{sorted(wanted)}")
    feeds = {}
    for name, info in wanted.items():
        allowed = [-1 if axis is None else axis for axis in info.shape]
        shape = given.get(name, tuple(allowed))
        if len(shape) != len(allowed) or any(
            size < 1 or axis not in (-1, size) for size, axis in zip(shape, allowed, strict=True)
        ):
            got = f"{list(shape)} for input {name!r}" if name in given else f"without input {name!r}"
            raise ModelLoadError(f"warmup_shapes {got}", f"{allowed}, with a size of 1 or more for each -1")
        feeds[name] = np.full(shape, "", object) if info.dtype == object else np.zeros(shape, info.dtype)
    return feeds
