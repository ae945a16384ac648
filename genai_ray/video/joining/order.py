"""Decode times of a result: they ascend as its container requires."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from av.container import OutputContainer
from av.format import Flags
from av.stream import Stream

__all__ = ["Order", "rescale"]


class Order:
    """Makes the decode times of other tracks ascend as the container requires, by the smallest moves, as FFmpeg does.

    Args:
        sink: The result; its header is written.
        streams: Its streams beside the pictures, by the source's index.
    """

    def __init__(self, sink: OutputContainer, streams: Mapping[int, Stream]) -> None:
        nonstrict: Any = Flags.ts_nonstrict
        is_strict = not sink.format.flags & nonstrict.value
        self._names = {one.index: f"{one.type} stream {index}" for index, one in streams.items()}
        self._steps = {one.index: int(is_strict and one.type != "subtitle") for one in streams.values()}
        self._last: dict[int, int] = {}
        self._moved: dict[int, int] = {}

    def keep(self, packet: Any) -> None:
        """Move a packet's times if they do not ascend.

        Args:
            packet: The next packet to write, of any stream of the result.
        """
        index = packet.stream_index
        unit = packet.stream.time_base
        if index not in self._names or packet.dts is None:
            return
        dts = rescale(packet.dts, packet.time_base, unit)
        pts = dts if packet.pts is None else rescale(packet.pts, packet.time_base, unit)
        step = self._steps[index]
        wanted = max(min(dts, pts), self._last.get(index, dts - step) + step)
        if wanted != dts:
            packet.duration = rescale(packet.duration or 0, packet.time_base, unit)
            packet.dts = wanted
            packet.pts = max(pts, wanted)
            packet.time_base = unit
            self._moved[index] = self._moved.get(index, 0) + 1
        self._last[index] = wanted

    def notes(self) -> Iterator[str]:
        """Describe the moves.

        Yields:
            One sentence for each stream.
        """
        for index, count in self._moved.items():
            yield f"times of {count} packets of {self._names[index]} were moved: they did not ascend"


def rescale(time: int, base: Fraction, unit: Fraction) -> int:
    """Convert a time to another unit, rounding halves away from zero, as FFmpeg does.

    Args:
        time: The time, in units of ``base``.
        base: Seconds per unit of ``time``.
        unit: Seconds per unit of the result.

    Returns:
        The time, in units of ``unit``.
    """
    numerator = abs(time) * base.numerator * unit.denominator
    denominator = base.denominator * unit.numerator
    rounded = (2 * numerator + denominator) // (2 * denominator)
    return rounded if time >= 0 else -rounded
