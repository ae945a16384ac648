"""``BenchReport``: what was measured of each side, as a table and as plain values. Nothing is measured here."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

__all__ = ["MIN_AGREEMENT_DB", "BenchReport", "CaseResult", "SideResult"]

MIN_AGREEMENT_DB = 30.0
"""Least PSNR of a result from that of the plain script: both are encoded with loss. Less is another picture, and its
speed does not count."""

MIN_FRAME_DB = 20.0
"""The same of the worst frame."""

BUSY_LOAD = 0.25
"""A machine on which more processes than this share of its cores ran or waited, in the minute before, was busy."""

HEADER = ("model", "frames", "program", "frames/s", "times plain", "seconds in all", "dB from plain", "")


@dataclass(frozen=True, slots=True)
class SideResult:
    """One program on one clip; one number for each turn."""

    name: str
    """The program."""
    fps: tuple[float, ...] = ()
    """Frames in a second, from the first decoded frame to the closed file."""
    elapsed_s: tuple[float, ...] = ()
    """Seconds from the start of the program to its end."""
    db: float | None = None
    """PSNR of all frames from the plain script's result, the lowest of all turns; None for that script itself."""
    worst_frame_db: float | None = None
    """The same of the worst frame."""
    way: str = ""
    """What it computed with, such as ``openvino bf16, 57 dB from fp32``."""
    failed: str = ""
    """Why it has no result; empty if it has."""

    @property
    def is_wrong(self) -> bool:
        """Whether its result is not that of the plain script."""
        pairs = ((self.db, MIN_AGREEMENT_DB), (self.worst_frame_db, MIN_FRAME_DB))
        return any(found is not None and not found >= least for found, least in pairs)  # NaN is wrong too

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON.

        Returns:
            The fields by name; infinite dB as "inf".
        """
        return {
            "fps": list(self.fps),
            "elapsed_s": list(self.elapsed_s),
            "db": _plain(self.db),
            "worst_frame_db": _plain(self.worst_frame_db),
            "way": self.way,
            "failed": self.failed,
        }


@dataclass(frozen=True, slots=True)
class CaseResult:
    """All programs with one model on one clip."""

    name: str
    """The case, unique in its report."""
    model: str
    """Id of the model."""
    size: tuple[int, int]
    """Width and height of the clip in pixels."""
    frames: int
    """Frames of the clip."""
    sides: tuple[SideResult, ...]
    """The plain script first."""

    def gain(self, side: SideResult) -> list[float]:
        """Return how many times as many frames in a second a program makes as the plain script, in each turn.

        Args:
            side: One of ``sides``.

        Returns:
            One number for each turn; none if one of both failed, or the result is wrong.
        """
        plain = self.sides[0]
        if side.failed or plain.failed or side.is_wrong:
            return []
        return [ours / theirs for ours, theirs in zip(side.fps, plain.fps, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON.

        Returns:
            The fields by name, ``sides`` by their names, each with its ``gain``.
        """
        return {
            "model": self.model,
            "size": list(self.size),
            "frames": self.frames,
            "sides": {side.name: side.to_dict() | {"gain": self.gain(side)} for side in self.sides},
        }


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Programs that enhance videos, side by side on this machine."""

    date: str
    """When, as ``2026-11-30``."""
    machine: dict[str, str]
    """What the machine is: ``system``, ``processor``, ``memory``."""
    cores: int
    """Processors that this process may use."""
    load: float
    """Processes that ran or waited in the minute before the first run, on average."""
    versions: tuple[str, ...]
    """Of this package and of the libraries that computed."""
    absent: dict[str, str]
    """Programs that were not measured, and why."""
    runs: int
    """Turns of each case."""
    cases: tuple[CaseResult, ...]
    """What was measured."""
    elapsed_s: float
    """Seconds that it took."""

    @property
    def is_busy(self) -> bool:
        """Whether other programs kept the machine busy."""
        return self.load > BUSY_LOAD * self.cores

    @property
    def faults(self) -> tuple[str, ...]:
        """A sentence for each program that failed, or whose result is not that of the plain script."""
        found = []
        for case in self.cases:
            for side in case.sides:
                if side.failed:
                    found.append(f"{case.name}: {side.name} failed: {side.failed}")
                elif side.is_wrong:
                    found.append(
                        f"{case.name}: the result of {side.name} differs from that of the plain script: "
                        f"{side.db:.1f} dB, {side.worst_frame_db:.1f} dB in the worst frame; "
                        f"at least {MIN_AGREEMENT_DB:.0f} and {MIN_FRAME_DB:.0f} are the same picture"
                    )
        return tuple(found)

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns of ``rows``."""
        return HEADER

    def rows(self) -> list[tuple[str, ...]]:
        """Return the medians of all turns as text, a row for each program.

        Returns:
            Model, clip, program, frames in a second, the same divided by that of the plain script in the same turn,
            seconds of the whole program, dB from the plain script's result, and a remark.
        """
        found: list[tuple[str, ...]] = []
        for case in self.cases:
            clip = f"{case.frames} of {case.size[0]}x{case.size[1]}"
            for side in case.sides:
                first = (case.model, clip) if side is case.sides[0] else ("", "")
                found.append((*first, side.name, *_cells(case, side)))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, fit for JSON.

        Returns:
            The fields by name, ``cases`` by their names.
        """
        return {
            "benchmark": "bench",
            "date": self.date,
            "machine": {**self.machine, "cores": self.cores},
            "load": self.load,
            "is_busy": self.is_busy,
            "versions": list(self.versions),
            "absent": self.absent,
            "runs": self.runs,
            "cases": {case.name: case.to_dict() for case in self.cases},
            "elapsed_s": self.elapsed_s,
        }


def _cells(case: CaseResult, side: SideResult) -> tuple[str, str, str, str, str]:
    if side.failed:
        return "", "", "", "", "failed"
    gain = case.gain(side)
    return (
        f"{statistics.median(side.fps):.1f}",
        f"{statistics.median(gain):.2f}" if gain and side is not case.sides[0] else "",
        f"{statistics.median(side.elapsed_s):.1f}",
        "" if side.db is None else f"{side.db:.1f}",
        "wrong" if side.is_wrong else side.way,
    )


def _plain(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
