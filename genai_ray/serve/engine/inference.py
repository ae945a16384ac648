"""Requests and responses, their tensors and datatypes, whatever the protocol.

BF16, for which numpy has no type, is a ``uint16`` array that holds the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.errors import InvalidInputError

__all__ = [
    "DATATYPES",
    "InferRequest",
    "InferResponse",
    "RequestedOutput",
    "Tensor",
    "TensorMetadata",
    "datatype_of",
]

Array = npt.NDArray[Any]

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
    "BYTES": np.dtype(object),
}
"""Datatypes and the numpy types that hold them; ``BYTES`` is an object array of ``bytes`` or ``str``."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items() if name != "BF16"}


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """What a model says about one of its inputs or outputs."""

    name: str
    """Name in the graph."""
    datatype: str
    """A key of ``DATATYPES``."""
    shape: tuple[int, ...]
    """Sizes of the axes; -1 for a free one."""
    is_rank_known: bool = True
    """Whether the model says how many axes there are; if not, ``shape`` is (-1,) and tensors of any rank fit."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One named tensor of a request or a response."""

    name: str
    """Name of the input or output."""
    datatype: str
    """A key of ``DATATYPES``."""
    array: Array
    """The values, in their shape; may be read-only."""


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output that a request asks for."""

    name: str
    """Name of the output."""
    binary: bool
    """Whether it goes out as binary data."""


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """A request for an inference."""

    inputs: tuple[Tensor, ...]
    """The inputs, in the order of the request."""
    outputs: tuple[RequestedOutput, ...] | None = None
    """The outputs to return; None for every output."""
    id: str | None = None
    """The client's name for the request; the response repeats it."""
    parameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Parameters of the request."""
    binary_default: bool = False
    """Whether outputs that the request does not name go out as binary data."""

    def wants_binary(self, output: str) -> bool:
        """Tell whether an output goes out as binary data, not as JSON.

        Args:
            output: Name of the output.

        Returns:
            Whether it does.
        """
        return next((asked.binary for asked in self.outputs or () if asked.name == output), self.binary_default)


@dataclass(frozen=True, slots=True, eq=False)
class InferResponse:
    """The response to a request."""

    model_name: str
    """Name of the model."""
    outputs: tuple[Tensor, ...]
    """The outputs, in the order of the request."""
    model_version: str = "1"
    """Version of the model."""
    id: str | None = None
    """The request's ``id``."""


def datatype_of(array: Array) -> str:
    """Return the datatype of a numpy array.

    Args:
        array: Any array.

    Returns:
        A key of ``DATATYPES``; ``BYTES`` for strings.

    Raises:
        InvalidInputError: If the protocol has no such datatype.
    """
    if array.dtype.kind in "OSU":
        return "BYTES"
    name = _NAMES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise InvalidInputError(f"a tensor of dtype {array.dtype}", ", ".join(DATATYPES))
    return name
