"""``QualityValidator``: whether results reach thresholds, with a reference or without one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.errors import InvalidInputError, QualityError
from genai_ray.quality.clips import check_videos, columns_of, iter_clip, iter_pairs
from genai_ray.quality.libvmaf import vmaf, vmaf_of_clips
from genai_ray.quality.noise_ratio import psnr
from genai_ray.quality.source import KEEPS_FRAMES, LIMITS, FrameMeasures, SourceChecks, SourceMeter
from genai_ray.quality.structure import ms_ssim, ssim
from genai_ray.types import FRAME_DTYPES, ValidationResult, full_range

__all__ = ["VALIDATOR_VMAF_MODEL", "QualityValidator"]

VALIDATOR_VMAF_MODEL = "vmaf_v0.6.1neg"
"""It gives no credit for sharpening."""

_METRICS: dict[str, Callable[..., float]] = {"ssim": ssim, "ms_ssim": ms_ssim}


class QualityValidator:
    """Compares results with a reference, with the frames they were made of, or with both.

    A reference is what the result should be; PSNR and the metrics that have a threshold are measured against it.
    ``source`` is what the model got; ``SourceChecks`` and ``FrameMeasures`` define what is measured against it.

    Args:
        reference: The expected frames: an array (any shape for PSNR alone), a batch with the column ``frame``, or the
            path of a video; uint8, uint16 or float32. None if there is none.
        threshold_db: PSNR in dB that a result must reach; finite. Not used without a reference.
        ssim: SSIM that a result must reach, at most 1; None to not measure it.
        ms_ssim: MS-SSIM that a result must reach, at most 1; None to not measure it.
        vmaf: VMAF that a result must reach, at most 100; None to not measure it.
        source: What the model got: frames of an upscaler or denoiser, in the same forms as the reference; or
            ``SourceChecks`` with the frames, the task, the tiles and other limits. None without a reference means
            ``SourceChecks()``: the column ``frame`` of the validated batch.

    Raises:
        QualityError: If a threshold is not a finite number, needs a reference that is not there, or the reference is
            empty.
        InvalidInputError: If the dtype is wrong.

    Example:
        >>> import numpy as np
        >>> frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
        >>> QualityValidator(frames, threshold_db=30.0, ssim=0.9).validate(frames).passed
        True
        >>> QualityValidator(None, source=frames).validate(frames * 0).passed
        False
    """

    def __init__(
        self,
        reference: Any,
        threshold_db: float = 30.0,
        *,
        ssim: float | None = None,
        ms_ssim: float | None = None,
        vmaf: float | None = None,
        source: Any = None,
    ) -> None:
        if isinstance(reference, np.ndarray):
            full_range(reference.dtype)
            if reference.size == 0:
                raise QualityError(f"an empty reference of shape {reference.shape}", "at least one value")
        if not math.isfinite(threshold_db):
            raise QualityError(f"a threshold of {threshold_db} dB", "a finite number")
        self.reference = reference
        self.threshold_db = threshold_db
        self.thresholds = {
            name: float(least)
            for name, least, most in (("ssim", ssim, 1.0), ("ms_ssim", ms_ssim, 1.0), ("vmaf", vmaf, 100.0))
            if least is not None and _is_threshold(name, least, most)
        }
        if reference is None and self.thresholds:
            raise QualityError(f"a threshold of {', '.join(self.thresholds)} without a reference", "a reference")
        if source is None and reference is None:
            source = SourceChecks()
        self.checks = source if source is None or isinstance(source, SourceChecks) else SourceChecks(frames=source)

    def __repr__(self) -> str:
        psnr = {} if self.reference is None else {"threshold_db": self.threshold_db}
        limits = ", ".join(f"{name}={least:g}" for name, least in (psnr | self.thresholds).items())
        return (
            f"QualityValidator({limits}{', ' * bool(limits and self.checks)}{'source checks' if self.checks else ''})"
        )

    def validate(self, output: Any) -> ValidationResult:
        """Measure a result.

        Args:
            output: An array, a batch with the column ``output`` (else ``frame``), or the path of a video; of the
                reference's shape and dtype, and of the source's size or a whole multiple of it.

        Returns:
            Whether it passes, what was measured, and a sentence for each threshold that is not reached. NaN and other
            invalid values are an error with a reference, and a failure without one.

        Raises:
            QualityError: If shapes, dtypes or numbers of frames differ, there are no frames, a picture is too small for
                a metric, there is nothing to compare with or to measure, or, with a reference, a value is not finite.
                Of two videos also if they are one file, or of another frame rate or transfer function.
            InvalidInputError: If it is none of these, or the dtype is wrong.
            VideoError: If a video cannot be read.
            BackendUnavailableError: If VMAF has a threshold and its extra is not installed.
        """
        values: dict[str, float | int | None] = {}
        failures: list[str] = []
        notes: tuple[str, ...] = ()
        num_frames = 1
        if self.reference is not None:
            light = check_videos(self.reference, output, "reference")
            if "vmaf" in self.thresholds and light != "SDR":
                notes = (f"VMAF of {light}: its models know SDR alone",)
            values, num_frames = self._compare(output)
            for name, least in {"psnr": self.threshold_db, **self.thresholds}.items():
                value = values[name]
                if value is not None and not value >= least:
                    failures.append(f"{name} is {value:.4g}; allowed: at least {least}")
        if self.checks is not None:
            measured = self._measure(output, self.checks)
            num_frames = len(measured)
            values |= _worst_of(measured)
            failures += _describe_failures(measured, self.checks)
        db = values.get("psnr")
        score = None if db is None else 1.0 if math.isinf(db) else min(max(db / 100, 0.0), 1.0)
        known: dict[str, Any] = {"psnr": None, "score": score, **values}
        return ValidationResult(
            passed=not failures, failures=tuple(failures), num_frames=num_frames, notes=notes, **known
        )

    def _compare(self, output: Any) -> tuple[dict[str, float | int | None], int]:
        """Measure PSNR and the metrics with thresholds against the reference; also return the number of frames."""
        if isinstance(self.reference, np.ndarray) and isinstance(output, np.ndarray):
            values: dict[str, float | int | None] = {"psnr": psnr(self.reference, output)}
            for name in self.thresholds:
                metric = _METRICS.get(name)
                if metric is None:
                    values[name] = vmaf(self.reference, output, model=VALIDATOR_VMAF_MODEL)
                else:
                    values[name] = metric(self.reference, output)
            return values, len(output) if output.ndim == 4 else 1
        sums = dict.fromkeys(self.thresholds, 0.0)
        squares = 0.0
        weight = 0
        num_frames = 0
        for before, after in iter_pairs(iter_clip(self.reference), _frames_of(output), "reference"):
            db = psnr(before, after)
            squares += after.size * 10 ** (-db / 10)
            weight += after.size
            num_frames += 1
            for name in sums.keys() & _METRICS.keys():
                sums[name] += _METRICS[name](before, after)
        values = {name: total / num_frames for name, total in sums.items()}
        values["psnr"] = math.inf if squares == 0 else -10 * math.log10(squares / weight)
        if "vmaf" in sums:
            scores = vmaf_of_clips(iter_clip(self.reference), _frames_of(output), model=VALIDATOR_VMAF_MODEL)
            values["vmaf"] = float(np.mean(scores))
        return values, num_frames

    def _measure(self, output: Any, checks: SourceChecks) -> list[FrameMeasures]:
        meter = SourceMeter(checks)
        frames = checks.frames
        if checks.task not in KEEPS_FRAMES:
            for after in _frames_of(output):
                if _checked(after).dtype.kind != "f":
                    raise QualityError(
                        f"nothing to measure for the task {checks.task.value} and {after.dtype}",
                        "float32, which is searched for invalid values, or a task that makes a frame of each frame",
                        "Compare it with a reference.",
                    )
                meter.add(after, None)
            if not meter.frames:
                raise QualityError("a result without frames", "at least one frame")
            return meter.frames
        if frames is None:
            if not {"frame", "output"} <= set(columns_of(output)):
                do = "Pass source=frames, or a batch with the columns 'frame' and 'output'."
                raise QualityError("a result with nothing to compare it with", "a reference or a source", do)
            frames = output
        check_videos(frames, output, "source")
        for before, after in iter_pairs(iter_clip(frames), _frames_of(output), "source"):
            meter.add(_checked(after), _checked(before))
        return meter.frames


def _is_threshold(name: str, least: float, most: float) -> bool:
    if not (math.isfinite(least) and least <= most):
        raise QualityError(f"a threshold of {least} for {name}", f"a finite number of at most {most}")
    return True


def _frames_of(output: Any) -> Iterator[npt.NDArray[Any]]:
    return iter_clip(output, "output" if "output" in columns_of(output) else "frame")


def _checked(frame: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if frame.dtype not in FRAME_DTYPES or frame.ndim != 3 or frame.size == 0:
        raise InvalidInputError(f"a frame {frame.shape} {frame.dtype}", "(H, W, C), uint8, uint16 or float32")
    return frame


def _worst_of(frames: list[FrameMeasures]) -> dict[str, float | int | None]:
    worst: dict[str, float | int | None] = {"num_invalid": sum(frame.num_invalid for frame in frames)}
    for limit, name in LIMITS.items():
        known = [value for frame in frames if (value := getattr(frame, name)) is not None]
        if name == "contrast":
            worst[name] = max(known, key=lambda ratio: abs(ratio - 1), default=None)
        else:
            worst[name] = (min if limit.startswith("min") else max)(known, default=None)
    return worst


def _describe_failures(frames: list[FrameMeasures], checks: SourceChecks) -> Iterator[str]:
    """Name the worst frame of each measure that is beyond its limit."""
    invalid = [(index, frame.num_invalid) for index, frame in enumerate(frames) if frame.num_invalid]
    if invalid:
        index, count = invalid[0]
        words = "NaN, infinite or outside [0, 1]"
        yield f"{count} values of frame {index} are {words}, of {len(frames)} frames {len(invalid)} fail"
    for limit, name in LIMITS.items():
        allowed = getattr(checks, limit)
        sign = 1 if limit.startswith("min") else -1
        values = [
            (sign * value, index) for index, frame in enumerate(frames) if (value := getattr(frame, name)) is not None
        ]
        bad = [pair for pair in values if pair[0] < sign * allowed]
        if bad:
            value, index = min(bad)
            words = "at least" if sign == 1 else "at most"
            share = f"of {len(frames)} frames {len(bad)} fail"
            yield f"{name} is {sign * value:.4g} in frame {index}; allowed: {words} {allowed}, {share}"
