"""Converts decoded sound to the samples of an encoder, and makes it longer at the same pitch.

For the second, FFmpeg's filter ``atempo``; several of them for more than twice as long.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.filter import Graph

__all__ = ["Converter", "Stretch", "find_window"]

_MOST_AT_ONCE = 2
"""``atempo`` takes tempos from 0.5 on."""

_WINDOWS_A_SECOND = 24

_WINDOWS_BEHIND = 4
"""What the filter still holds at the end is less than so many windows of the input; silence pushes it out."""


def find_window(rate: int) -> int:
    """Return the samples that ``atempo`` takes at a time: the power of two that is a 24th of a second or more.

    Args:
        rate: Samples per second.

    Returns:
        Samples (``libavfilter/af_atempo.c``).
    """
    return 1 << (rate // _WINDOWS_A_SECOND - 1).bit_length()


class Converter:
    """Sound of one kind, from its first frame to its last.

    Args:
        sample_format: FFmpeg's name of a packed sample format.
        layout: FFmpeg's name of the channel layout.
        rate: Samples per second.
        times: How many times as long the sound is made.

    Raises:
        av.FFmpegError, ValueError: If FFmpeg does not make such sound longer.
    """

    def __init__(self, sample_format: str, layout: str, rate: int, times: int = 1) -> None:
        self._resampler = av.AudioResampler(format=sample_format, layout=layout, rate=rate)
        self._stretch = Stretch(times, sample_format, layout, rate) if times > 1 else None

    def convert(self, frame: Any) -> list[npt.NDArray[Any]]:
        """Convert a frame.

        Args:
            frame: The next ``AudioFrame``; its time is lost.

        Returns:
            Packed samples, (1, samples * channels), that are ready.

        Raises:
            av.FFmpegError: If its channels cannot be mixed to those of the layout.
        """
        return self._pass(self._resampler.resample(frame))

    def end(self) -> list[npt.NDArray[Any]]:
        """End the sound.

        Returns:
            The last packed samples.
        """
        rest: list[Any] = self._resampler.resample(None)
        chunks = self._pass([frame for frame in rest if frame is not None])
        return chunks if self._stretch is None else chunks + self._stretch.end()

    def _pass(self, frames: list[Any]) -> list[npt.NDArray[Any]]:
        if self._stretch is None:
            return [frame.to_ndarray() for frame in frames]
        return [chunk for frame in frames for chunk in self._stretch.push(frame)]


class Stretch:
    """Sound that is made longer, to the sample: n samples become ``times`` n, and each stays where its picture is.

    The filter spreads windows from their start on: what is in the middle of one comes half a window too early for each
    time that the sound is longer. Half a window of silence before the sound makes up for it.

    Args:
        times: How many times as long, 2 or more.
        sample_format: FFmpeg's name of a packed sample format, of input and output.
        layout: FFmpeg's name of the channel layout.
        rate: Samples per second.

    Raises:
        av.FFmpegError, ValueError: If the filter does not take such sound.
    """

    def __init__(self, times: int, sample_format: str, layout: str, rate: int) -> None:
        graph = Graph()
        source = graph.add_abuffer(sample_rate=rate, format=sample_format, layout=layout, time_base=Fraction(1, rate))
        filters = [graph.add("atempo", repr(tempo)) for tempo in _split(times)]
        self._sink = graph.add("abuffersink")
        graph.link_nodes(source, *filters, self._sink).configure()
        self._graph = graph
        self._kind = (sample_format, layout, rate)
        self._times = times
        self._window = find_window(rate)
        self._early = self._window // 2
        self._missing = 0
        self._silence: npt.NDArray[Any] | None = None

    def push(self, frame: Any) -> list[npt.NDArray[Any]]:
        """Take sound.

        Args:
            frame: The next ``AudioFrame``, of the format, layout and rate; its time is lost.

        Returns:
            Packed samples, (1, samples * channels), that are ready.
        """
        if self._silence is None:
            samples = frame.to_ndarray()
            self._silence = np.zeros((1, samples.shape[1] // frame.samples), samples.dtype)
            self._push_silence(self._silence, self._window // 2)
        frame.pts = None
        self._missing += frame.samples * self._times
        self._graph.push(frame)
        return self._pull()

    def end(self) -> list[npt.NDArray[Any]]:
        """End the sound.

        Returns:
            The last packed samples.
        """
        if self._silence is None:
            return []
        self._push_silence(self._silence, self._window * _WINDOWS_BEHIND)
        self._graph.push(None)
        return self._pull()

    def _push_silence(self, one: npt.NDArray[Any], count: int) -> None:
        sample_format, layout, rate = self._kind
        silence = np.tile(one, count)
        frame = av.AudioFrame.from_ndarray(silence, format=sample_format, layout=layout)
        frame.rate = rate
        self._graph.push(frame)

    def _pull(self) -> list[npt.NDArray[Any]]:
        """Return what is ready, without what comes before the sound and after it."""
        ready: list[npt.NDArray[Any]] = []
        while True:
            try:
                frame: Any = self._sink.pull()
            except (av.BlockingIOError, av.EOFError):
                return ready
            skipped = min(self._early, frame.samples)
            self._early -= skipped
            count = min(frame.samples - skipped, self._missing)
            self._missing -= count
            if count:
                samples = frame.to_ndarray()
                width = samples.shape[1] // frame.samples
                ready.append(samples[:, skipped * width : (skipped + count) * width])


def _split(times: int) -> list[float]:
    """Return the tempos of filters that together make sound so many times as long."""
    tempos = []
    rest = float(times)
    while rest > _MOST_AT_ONCE:
        tempos.append(1 / _MOST_AT_ONCE)
        rest /= _MOST_AT_ONCE
    return [*tempos, 1 / rest]
