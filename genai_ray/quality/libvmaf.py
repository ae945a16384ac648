"""VMAF, measured by libvmaf in the FFmpeg of the extra ``vmaf``; nothing is downloaded.

FFmpeg runs in a process of its own and gets both clips through pipes, frame by frame and in one order, so that nothing
pairs them anew. This module takes frames, not files.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import functools
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from genai_ray.errors import BackendUnavailableError, InvalidInputError, QualityError
from genai_ray.files import temporary_folder
from genai_ray.quality.planes import check_pictures

__all__ = [
    "MIN_VMAF_SIDE_PX",
    "STORED_FORMATS",
    "VMAF_MODELS",
    "VmafMeter",
    "find_ffmpeg",
    "options_of_model",
    "vmaf",
    "vmaf_of_clips",
    "vmaf_per_frame",
]

VMAF_MODELS = {
    "vmaf_v0.6.1": "version=vmaf_v0.6.1",
    "vmaf_v0.6.1neg": "version=vmaf_v0.6.1neg",
    "vmaf_v0.6.1phone": r"version=vmaf_v0.6.1\\:enable_transform=true",
    "vmaf_4k_v0.6.1": "version=vmaf_4k_v0.6.1",
    "vmaf_4k_v0.6.1neg": "version=vmaf_4k_v0.6.1neg",
    "vmaf_v1.0.16_3d0h": "version=vmaf_v1.0.16_3d0h",
    "vmaf_v1.0.16_5d0h": "version=vmaf_v1.0.16_5d0h",
    "vmaf_v1.0.16_1d5h_2160": "version=vmaf_v1.0.16_1d5h_2160",
    "vmaf_v1.0.16_3d0h_2160": "version=vmaf_v1.0.16_3d0h_2160",
}
"""libvmaf's options by the name of the model.

``neg`` gives no credit for sharpening; use it for enhancers. ``phone`` and ``5d0h`` are for a small or distant screen,
``4k`` and ``2160`` for 3840 x 2160, all others for 1920 x 1080 seen from three times its height.
"""

STORED_FORMATS = ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le")
"""FFmpeg's names of the pixel formats that libvmaf measures as they are."""

_CONVERTED = {"rgb24": "yuv444p", "rgb48le": "yuv444p10le"}
"""FFmpeg's names of formats that are converted, and of those that libvmaf measures instead."""

_FORMATS = {  # channels, dtype of frames
    (1, "uint8"): "yuv444p",
    (3, "uint8"): "rgb24",
    (1, "uint16"): "yuv444p10le",
    (3, "uint16"): "rgb48le",
}
_SCALE = "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int"
MIN_VMAF_SIDE_PX = 17
"""The least side of a frame that libvmaf measures."""

_FRAMES_AHEAD = 4
"""Frames of each clip that wait for their pipe."""

_PIPE_BYTES = 1 << 20
"""What a pipe should hold: fewer changes between this process and FFmpeg."""

_LOG = "scores.csv"
_SAID = "said.txt"
"""Files of FFmpeg: its results, and its errors."""

Arrays: TypeAlias = Sequence[npt.NDArray[Any]]
"""A frame as FFmpeg reads it: its arrays one after the other."""


def vmaf(reference: npt.NDArray[Any], candidate: npt.NDArray[Any], *, model: str = "vmaf_v0.6.1") -> float:
    """Measure VMAF: the mean over the frames.

    Args:
        reference: Frames (N, H, W, 3) or one frame (H, W, 3), RGB, uint8 or uint16, which are converted to BT.709 of
            limited range. Or only luma, (N, H, W, 1) or (H, W): it is measured as it is, uint16 with 10 bits, and with
            neutral chroma. Frames are not scaled to the size that the model was trained on, 1920 x 1080 or 3840 x 2160.
        candidate: The same shape and dtype, in the same order of time: some features compare neighbouring frames.
        model: A name of ``VMAF_MODELS``.

    Returns:
        A number in [0, 100]. Equal frames give a little less than 100, by the definition of the model.

    Raises:
        BackendUnavailableError: If the extra ``vmaf`` is not installed, or FFmpeg cannot be started.
        InvalidInputError: If the model, shape or dtype is wrong.
        QualityError: If shapes or dtypes differ, the arrays are empty or too small, or libvmaf refuses them.
    """
    return float(np.mean(vmaf_per_frame(reference, candidate, model=model)))


def vmaf_per_frame(
    reference: npt.NDArray[Any], candidate: npt.NDArray[Any], *, model: str = "vmaf_v0.6.1"
) -> npt.NDArray[np.float64]:
    """Measure VMAF of each frame.

    Args:
        reference: As for ``vmaf``.
        candidate: As for ``vmaf``.
        model: As for ``vmaf``.

    Returns:
        (N,) float64 in [0, 100].

    Raises:
        BackendUnavailableError: As for ``vmaf``.
        InvalidInputError: As for ``vmaf``.
        QualityError: As for ``vmaf``.
    """
    check_pictures(reference, candidate)
    return np.array(vmaf_of_clips(iter(_as_clip(reference)), iter(_as_clip(candidate)), model=model))


def options_of_model(model: str) -> str:
    """Return libvmaf's options for a model.

    Args:
        model: A name of ``VMAF_MODELS``.

    Returns:
        The options.

    Raises:
        InvalidInputError: If there is no such model.
    """
    if model not in VMAF_MODELS:
        raise InvalidInputError(f"the VMAF model {model!r}", ", ".join(VMAF_MODELS))
    return VMAF_MODELS[model]


def vmaf_of_clips(
    reference: Iterator[npt.NDArray[Any]],
    candidate: Iterator[npt.NDArray[Any]],
    *,
    model: str = "vmaf_v0.6.1",
    threads: int = 1,
) -> list[float]:
    """Measure VMAF of each frame of two clips of any length; few frames are in memory at a time.

    Args:
        reference: Frames (H, W, 3) or (H, W, 1) of one shape and dtype, as for ``vmaf``.
        candidate: As many frames of the same shape and dtype.
        model: As for ``vmaf``.
        threads: Threads of libvmaf; the numbers do not depend on it.

    Returns:
        One number in [0, 100] for each frame.

    Raises:
        BackendUnavailableError: As for ``vmaf``.
        InvalidInputError: As for ``vmaf``.
        QualityError: If the clips have no frames or not as many, shapes or dtypes differ or change, or libvmaf refuses
            them.
    """
    options_of_model(model)
    first = next(reference, None)
    second = next(candidate, None)
    if first is None or second is None:
        raise QualityError("a clip without frames for VMAF", "at least one frame")
    height, width, channels = shape = first.shape
    dtype = first.dtype
    if (channels, str(dtype)) not in _FORMATS:
        do = "Convert them first, with rounding and clamping."
        raise InvalidInputError(f"frames of dtype {dtype} for VMAF", "uint8 or uint16", do)
    count = 0
    with VmafMeter((width, height), _FORMATS[channels, str(dtype)], model=model, threads=threads) as meter:
        while first is not None and second is not None:
            for frame in (first, second):
                if frame.shape != shape or frame.dtype != dtype:
                    got = f"frame {count} {frame.shape} {frame.dtype} for VMAF"
                    raise QualityError(got, f"{shape} {dtype}, as the first")
            meter.add(functools.partial(_arrays_of, first), functools.partial(_arrays_of, second))
            count += 1
            first, second = next(reference, None), next(candidate, None)
        if first is not None or second is not None:
            more, less = ("candidate", "reference") if first is None else ("reference", "candidate")
            got = f"a {more} with more frames for VMAF than the {less}, which has {count}"
            raise QualityError(got, "equal numbers")
        return meter.finish()


class VmafMeter:
    """Measures VMAF of frames that are added pair by pair, in ``with``.

    Args:
        size: Width and height of the frames in pixels.
        pixels: How arrays hold a frame: ``rgb24`` or ``rgb48le``, converted to BT.709 of limited range, or one of
            ``STORED_FORMATS``, planes Y, U and V, measured as they are.
        model: A name of ``VMAF_MODELS``.
        threads: Threads of libvmaf; the numbers do not depend on it.

    Raises:
        InvalidInputError: If there is no such model.
        QualityError: If the frames are too small.
    """

    def __init__(self, size: tuple[int, int], pixels: str, *, model: str = "vmaf_v0.6.1", threads: int = 1) -> None:
        self._size = f"{size[0]}x{size[1]}"
        if min(size) < MIN_VMAF_SIDE_PX:
            raise QualityError(f"frames of {self._size} for VMAF", f"sides of at least {MIN_VMAF_SIDE_PX} px")
        options = f"model={options_of_model(model)}:n_threads={threads}:log_fmt=csv:log_path={_LOG}"
        measured = _CONVERTED.get(pixels)
        convert = f"{_SCALE},format={measured}" if measured is not None else f"format={pixels}"
        self._graph = f"[0:v]{convert}[c];[1:v]{convert}[r];[c][r]libvmaf={options}"
        self._raw = ["-f", "rawvideo", "-pix_fmt", pixels, "-s", self._size, "-r", "25"]
        self._opened = contextlib.ExitStack()
        self._feeds: list[_Feed] = []
        self._count = 0

    def __enter__(self) -> Self:
        """Start FFmpeg.

        Raises:
            BackendUnavailableError: If the extra ``vmaf`` is not installed, or FFmpeg cannot be started.
        """
        with contextlib.ExitStack() as opened:
            self._folder = opened.enter_context(temporary_folder("vmaf"))
            command = [find_ffmpeg(), "-nostdin", "-v", "error"]
            ends = []
            try:
                for _ in range(2):
                    read_end, write_end = os.pipe()
                    ends.append(read_end)
                    self._feeds.append(_Feed(write_end))
                    opened.callback(self._feeds[-1].end)
                    command += [*self._raw, "-i", f"pipe:{read_end}"]
                command += ["-filter_complex", self._graph, "-f", "null", "-"]
                self._process = _start(command, self._folder, ends)
            finally:
                for end in ends:  # otherwise a writer would wait for ever if FFmpeg ended early
                    os.close(end)
            opened.callback(self._kill)  # the first to be called: the writers' pipes break
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def add(self, reference: Callable[[], Arrays], candidate: Callable[[], Arrays]) -> None:
        """Add the next frame of both clips; it waits while several frames wait for libvmaf.

        Args:
            reference: Gives its arrays, one after the other as the format has them; called in another thread.
            candidate: The same of the candidate.

        Raises:
            QualityError: If libvmaf has refused what it got before.
            Exception: What a function raised that was added before.
        """
        if any(feed.has_failed for feed in self._feeds):
            self._check()
        self._count += 1
        for feed, give in zip(self._feeds, (candidate, reference), strict=True):  # libvmaf takes the candidate first
            feed.put(give)

    def finish(self) -> list[float]:
        """Wait for libvmaf.

        Returns:
            One number in [0, 100] for each frame.

        Raises:
            QualityError: If libvmaf refuses the frames.
            Exception: What one of the added functions raised.
        """
        for feed in self._feeds:
            feed.end()
        self._check()
        with (self._folder / _LOG).open(newline="") as file:  # JSON has every feature of every frame
            scores = [float(frame["vmaf"]) for frame in csv.DictReader(file)]
        if len(scores) != self._count:
            raise QualityError(f"{len(scores)} scores of VMAF for {self._count} frames", "one for each frame")
        return scores

    def _check(self) -> None:
        """Wait for the end of FFmpeg, and raise why it has failed."""
        for feed in self._feeds:
            if feed.error is not None:
                raise feed.error
        if self._process.wait() or not (self._folder / _LOG).is_file():
            said = (self._folder / _SAID).read_bytes()
            raise QualityError(f"libvmaf did not measure frames of {self._size}: {_reason(said)}")

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()


class _Feed:
    """Writes the frames of a clip into a pipe, in a thread.

    Args:
        end: The pipe's end for writing, which it closes.
    """

    def __init__(self, end: int) -> None:
        self._waiting: queue.Queue[Callable[[], Arrays] | None] = queue.Queue(_FRAMES_AHEAD)
        self._has_ended = False
        self.error: BaseException | None = None
        self.has_failed = False
        with contextlib.suppress(OSError, AttributeError):  # Linux has it, and sets a limit for each user
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._thread = threading.Thread(target=self._write_all, args=(end,), name="genai-ray-vmaf", daemon=True)
        self._thread.start()

    def put(self, give: Callable[[], Arrays]) -> None:
        """Add a frame; after a failure it is dropped."""
        self._waiting.put(give)

    def end(self) -> None:
        """Write what waits, close the pipe and wait for that; a second call does nothing."""
        if not self._has_ended:
            self._has_ended = True
            self._waiting.put(None)
        self._thread.join()

    def _write_all(self, end: int) -> None:
        try:
            while (give := self._waiting.get()) is not None:
                for array in give():
                    buffer: Any = np.ascontiguousarray(array)
                    left = memoryview(buffer).cast("B")
                    while left:
                        left = left[os.write(end, left) :]
        except BrokenPipeError:  # FFmpeg has ended early, and says why
            self.has_failed = True
        except BaseException as exc:  # noqa: BLE001  the caller raises it
            self.error = exc
            self.has_failed = True
        os.close(end)
        while give is not None:
            give = self._waiting.get()


def _arrays_of(frame: npt.NDArray[Any]) -> Arrays:
    return [frame] if frame.shape[-1] == 3 else [_with_grey_chroma(frame)]


def _as_clip(frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Add the missing axes of a plane or a frame: (N, H, W, C)."""
    if frames.ndim == 2:
        frames = frames[..., None]
    return frames if frames.ndim == 4 else frames[None]


def find_ffmpeg() -> str:
    """Find the FFmpeg that measures VMAF.

    Returns:
        Its path.

    Raises:
        BackendUnavailableError: If the extra ``vmaf`` is not installed.
    """
    do = 'Install it with: pip install "genai-ray[vmaf]".'
    try:
        import imageio_ffmpeg  # noqa: PLC0415  an extra
    except ImportError as exc:
        raise BackendUnavailableError("VMAF is not installed", "the extra 'vmaf'", do) from exc
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as exc:
        raise BackendUnavailableError(f"VMAF has no FFmpeg to run: {exc}", "the extra 'vmaf'", do) from exc


def _start(command: list[str], folder: Path, ends: list[int]) -> subprocess.Popen[bytes]:
    try:
        with (folder / _SAID).open("wb") as said:  # a pipe that nobody reads meanwhile could fill
            return subprocess.Popen(command, pass_fds=ends, cwd=folder, stdout=subprocess.DEVNULL, stderr=said)
    except OSError as exc:
        raise BackendUnavailableError(
            f"VMAF cannot start its FFmpeg {command[0]}: {exc.strerror}", "a program of this machine"
        ) from exc


def _reason(said: bytes) -> str:
    """Return the line with libvmaf's own error, else the last line."""
    lines = said.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    return next((line for line in lines if "libvmaf ERROR" in line), lines[-1])


def _with_grey_chroma(luma: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Make planes Y, U and V of (H, W, 1): uint8 as it is, uint16 with 10 bits."""
    planes = np.empty((3, *luma.shape[:2]), luma.dtype)
    is_deep = luma.dtype == np.uint16
    planes[0] = np.rint(luma[..., 0] * (1023 / 65535)) if is_deep else luma[..., 0]
    planes[1:] = 512 if is_deep else 128
    return planes
