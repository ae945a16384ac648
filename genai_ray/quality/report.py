"""``QualityReport``: the numbers of a comparison of whole clips, as a table, JSON, CSV, HTML and figure."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.display import describe_fields, format_count, new_figure
from genai_ray.errors import QualityError
from genai_ray.quality.libvmaf import MIN_VMAF_SIDE_PX, find_ffmpeg, options_of_model
from genai_ray.quality.page import build_page, build_table
from genai_ray.quality.scores import CandidateScores, has_durations
from genai_ray.quality.structure import MIN_MS_SSIM_SIDE_PX, MIN_SSIM_SIDE_PX

__all__ = ["QualityReport", "check_metric"]

_MIN_SIDES_PX = {"ssim": MIN_SSIM_SIDE_PX, "ms_ssim": MIN_MS_SSIM_SIDE_PX, "vmaf": MIN_VMAF_SIDE_PX}

_DEFINITIONS = {
    "psnr": "PSNR, RGB, dB",
    "ssim": "SSIM, Wang 2004, Gaussian 11x11, RGB",
    "ms_ssim": "MS-SSIM, Wang 2003, five scales, RGB",
}

_POOLED = {
    "psnr_of_mean_mse": "of mean MSE",
    "mean": "mean of frames",
    "harmonic_mean": "harmonic mean",
    "min": "worst",
}
"""How tables call the numbers of ``pool``."""

_DIGITS = {"psnr": 2, "ssim": 4, "ms_ssim": 4, "vmaf": 2}


@describe_fields
@dataclass(frozen=True, slots=True, eq=False)
class QualityReport:
    """The comparison of one reference with its candidates."""

    reference: str
    """Path or URI."""
    size: tuple[int, int]
    """Width and height in pixels."""
    seconds: npt.NDArray[np.float64]
    """(N,): time of each frame, counted from the first one."""
    metrics: tuple[str, ...]
    """Names of the metrics."""
    vmaf_model: str | None
    """The model of VMAF; None if it was not measured."""
    candidates: tuple[CandidateScores, ...]
    """One for each candidate, in the order given."""
    elapsed_s: float
    """Seconds that it took."""

    @property
    def definitions(self) -> dict[str, str]:
        """The definition of each metric, by its name; VMAF has two if candidates were measured in both ways."""
        planes = sorted({scores.vmaf_planes for scores in self.candidates if scores.vmaf_planes is not None})
        vmaf = f"VMAF, {self.vmaf_model}, {' or '.join(planes)}"
        return {name: vmaf if name == "vmaf" else _DEFINITIONS[name] for name in self.metrics}

    def rows(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """Return the pooled numbers as text, the candidates side by side.

        Returns:
            (definition of the metric, how it was pooled, number of each candidate) of each line.
        """
        lines = []
        pools = [scores.pooled for scores in self.candidates]
        for name, definition in self.definitions.items():
            for key in pools[0][name]:
                if key == "min_frame":
                    continue
                numbers = [f"{pooled[name][key]:.{_DIGITS[name]}f}" for pooled in pools]
                if key == "min":
                    frames = [pooled[name]["min_frame"] for pooled in pools]
                    numbers = [f"{number} (frame {frame})" for number, frame in zip(numbers, frames, strict=True)]
                lines.append((definition, _POOLED[key], tuple(numbers)))
        if self.has_durations:
            known = [scores.seconds_per_frame for scores in self.candidates]
            told = tuple("not known" if seconds is None else f"{seconds:.4g}" for seconds in known)
            lines.append(("time to make it", "seconds per frame", told))
        return lines

    @property
    def has_durations(self) -> bool:
        """Whether it is known of any candidate how long its frames took to make."""
        return has_durations(self.candidates)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pictures, for JSON.

        Returns:
            Numbers, texts, lists and dicts; an infinite number is the text ``"inf"``.
        """
        return {
            "reference": self.reference,
            "size": list(self.size),
            "frames": len(self.seconds),
            "seconds": self.seconds.tolist(),
            "definitions": self.definitions,
            "elapsed_s": self.elapsed_s,
            "candidates": [
                {
                    "candidate": scores.candidate,
                    "size": list(scores.size),
                    "notes": list(scores.notes),
                    "seconds_per_frame": scores.seconds_per_frame,
                    "seconds_from": scores.seconds_from,
                    "vmaf_planes": scores.vmaf_planes,
                    "pooled": {
                        name: {key: _plain(value) for key, value in pooled.items()}
                        for name, pooled in scores.pooled.items()
                    },
                    "per_frame": {name: list(map(_plain, values)) for name, values in scores.per_frame.items()},
                    "worst_frames": list(scores.worst_frames),
                }
                for scores in self.candidates
            ],
        }

    def to_csv(self) -> str:
        """Return the numbers of every frame.

        Returns:
            Lines of candidate, frame, seconds, each metric, and the seconds that a frame of this candidate took to
            make, with a header; an infinite number is ``inf``, one that is not known is empty.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["candidate", "frame", "seconds", *self.metrics, "seconds_per_frame"])
        for scores in self.candidates:
            columns = [scores.per_frame[name] for name in self.metrics]
            for index, seconds in enumerate(self.seconds):
                numbers = [float(values[index]) for values in columns]
                writer.writerow([scores.candidate, index, float(seconds), *numbers, scores.seconds_per_frame])
        return text.getvalue()

    def to_html(self) -> str:
        """Make one page without outside files: table, curves over time, worst frames beside the reference.

        Returns:
            The text of the HTML file.
        """
        return build_page(self.reference, self.size, self.seconds, self.definitions, self.candidates, self.rows())

    def plot(self) -> Any:
        """Draw every metric over time and, if it is known how long frames took to make, against that.

        Returns:
            A matplotlib ``Figure``, one row for each metric; infinite PSNR is left out.

        Raises:
            BackendUnavailableError: If matplotlib is not installed.
        """
        columns = 2 if self.has_durations else 1
        figure = new_figure(9.0 if columns == 1 else 13.0, 2.6 * len(self.metrics))
        widths = {"width_ratios": (9, 4)} if columns == 2 else {}
        rows = figure.subplots(len(self.metrics), columns, sharex="col", squeeze=False, gridspec_kw=widths)
        for panels, name in zip(rows, self.metrics, strict=True):
            for scores in self.candidates:
                values = scores.per_frame[name]
                style = {"marker": "."} if len(values) == 1 else {}
                values = np.where(np.isfinite(values), values, np.nan)
                (line,) = panels[0].plot(self.seconds, values, label=scores.candidate, **style)
                pooled = scores.quality(name)
                if scores.seconds_per_frame is not None and math.isfinite(pooled):
                    panels[1].plot(scores.seconds_per_frame, pooled, "o", color=line.get_color())
            panels[0].set_ylabel(self.definitions[name].split(",")[0])
            for panel in panels:
                panel.grid(alpha=0.3)
        rows[0][0].legend()
        rows[-1][0].set_xlabel("seconds")
        if columns == 2:
            rows[-1][1].set_xscale("log")
            rows[-1][1].set_xlabel("seconds per frame, to make it")
        return figure

    def _repr_html_(self) -> str:
        return build_table(self.candidates, self.rows())

    def __repr__(self) -> str:
        frames = format_count(len(self.seconds), "frame")
        candidates = format_count(len(self.candidates), "candidate")
        return f"QualityReport({frames}, {candidates}, {', '.join(self.metrics)})"


def check_metric(metric: str, width: int, height: int, vmaf_model: str) -> None:
    """Check that a metric can measure frames of a size, before any is decoded.

    Args:
        metric: ``psnr``, ``ssim``, ``ms_ssim`` or ``vmaf``.
        width: Of the frames that are compared, in pixels.
        height: The same.
        vmaf_model: A name of ``VMAF_MODELS``.

    Raises:
        QualityError: If they are too small.
        InvalidInputError: If there is no such model of VMAF.
        BackendUnavailableError: If VMAF is not installed.
    """
    least = _MIN_SIDES_PX.get(metric, 1)
    if min(width, height) < least:
        raise QualityError(f"frames of {width}x{height} for {metric}", f"sides of at least {least} px")
    if metric == "vmaf":
        options_of_model(vmaf_model)
        find_ffmpeg()


def _plain(value: float) -> float | str:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else "inf"
