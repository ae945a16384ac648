"""Conversion of weights to FP16 with ONNX Runtime's own converter."""

from __future__ import annotations

import warnings

from onnxruntime.transformers.float16 import convert_float_to_float16

from genai_ray.errors import ModelLoadError
from genai_ray.graph import Graph, sort_nodes

__all__ = ["to_fp16"]


def to_fp16(model: Graph) -> Graph:
    """Convert weights and arithmetic to FP16; inputs and outputs stay in FP32.

    Args:
        model: A model in FP32; not changed.

    Returns:
        The converted model.

    Raises:
        ModelLoadError: If the converter fails.
    """
    copy = type(model)()
    copy.CopyFrom(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it tells of every weight below 1e-7, which rounds to it
            # Its own list of blocked operators breaks RIFE (Resize, GridSample between casts); without it RIFE keeps 69 dB.
            converted: Graph = convert_float_to_float16(copy, keep_io_types=True, op_block_list=[])
    except (ValueError, RuntimeError, KeyError, TypeError) as exc:
        raise ModelLoadError(f"the model does not convert to fp16: {exc}", do="Use fp32.") from exc
    sort_nodes(converted)
    return converted
