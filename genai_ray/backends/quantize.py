"""INT8 by ONNX Runtime's own quantiser, for ONNX Runtime on a CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from genai_ray.backends import Tensors
from genai_ray.errors import ModelLoadError
from genai_ray.files import temporary_folder

__all__ = ["to_int8"]

_FAULTS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the quantiser raises for a model that it does not understand."""


def to_int8(model: Path, feeds: Iterable[Tensors], *, has_short_sums: bool = False) -> bytes:
    """Convert weights, for each channel, and tensors to INT8, with the ranges that they have for some inputs.

    Args:
        model: File of a model in FP32 with operator set 13 or later.
        feeds: Its inputs by name, for each run that shows the ranges.
        has_short_sums: Whether the processor adds products in 16 bits (AVX2 and AVX-512 without VNNI): weights get 7
            bits then, else sums would be cut.

    Returns:
        The model, serialised; ``QuantizeLinear`` and ``DequantizeLinear`` stand around what computes in INT8. Equal
        arguments give equal bytes on processors of one kind.

    Raises:
        ModelLoadError: If the quantiser fails, or finds nothing to convert.
    """
    with temporary_folder("int8") as folder:
        simple, made = folder / "simple.onnx", folder / "int8.onnx"
        try:
            quant_pre_process(str(model), str(simple), skip_symbolic_shape=True)
            quantize_static(
                str(simple),
                str(made),
                _Feeds(iter(feeds)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=has_short_sums,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except _FAULTS as exc:
            raise ModelLoadError(f"{model.name} cannot be converted to int8: {exc}", do="Use fp32.") from exc
        data = made.read_bytes()
    if b"QuantizeLinear" not in data:
        raise ModelLoadError(f"{model.name} has nothing to convert to int8", "a model with convolutions", "Use fp32.")
    return data


class _Feeds(CalibrationDataReader):  # type: ignore[misc]
    """Hands the quantiser one run after the other."""

    def __init__(self, feeds: Iterator[Tensors]) -> None:
        self._feeds = feeds

    def get_next(self) -> Any:
        feeds = next(self._feeds, None)
        return None if feeds is None else dict(feeds)
