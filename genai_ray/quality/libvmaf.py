"""VMAF, measured by libvmaf in the FFmpeg of the extra ``vmaf``; nothing is downloaded.

FFmpeg runs in a process of its own and gets both clips through pipes. This module takes frames, not files.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from genai_ray.errors import BackendUnavailableError, InvalidInputError, QualityError
from genai_ray.files import temporary_folder
from genai_ray.quality.planes import check_pictures

__all__ = [
    "MIN_VMAF_SIDE_PX",
    "VMAF_MODELS",
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

_LAYOUTS = {  # channels, dtype: FFmpeg's name of the input format, and of the format that libvmaf measures
    (1, "uint8"): ("yuv444p", "yuv444p"),
    (3, "uint8"): ("rgb24", "yuv444p"),
    (1, "uint16"): ("yuv444p10le", "yuv444p10le"),
    (3, "uint16"): ("rgb48le", "yuv444p10le"),
}
_SCALE = "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int"
MIN_VMAF_SIDE_PX = 17
"""The least side of a frame that libvmaf measures."""


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
        reference: Frames (H, W, 3) or (H, W, 1) of one shape and dtype, as for ``vmaf``; read in a thread.
        candidate: As many frames of the same shape and dtype; read in another thread.
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
    options = f"{options_of_model(model)}:n_threads={threads}"
    first = next(reference, None)
    second = next(candidate, None)
    if first is None or second is None:
        raise QualityError("a clip without frames for VMAF", "at least one frame")
    height, width, channels = first.shape
    layout = _LAYOUTS.get((channels, str(first.dtype)))
    if layout is None:
        do = "Convert them first, with rounding and clamping."
        raise InvalidInputError(f"frames of dtype {first.dtype} for VMAF", "uint8 or uint16", do)
    if min(height, width) < MIN_VMAF_SIDE_PX:
        raise QualityError(f"frames of {width}x{height} for VMAF", f"sides of at least {MIN_VMAF_SIDE_PX} px")
    kind = first.shape, first.dtype
    clips = [_Feed(itertools.chain([frame], rest), *kind) for frame, rest in ((first, reference), (second, candidate))]
    scores = _run_ffmpeg(clips[0], clips[1], options, layout)
    counts = [clip.count for clip in clips]
    if counts != [len(scores)] * 2:
        raise QualityError(f"{len(scores)} scores of VMAF for {counts[0]} and {counts[1]} frames", "one for each frame")
    return scores


class _Feed:
    """Writes the frames of a clip into a pipe, in a thread.

    Args:
        frames: The frames.
        shape: (H, W, C) of each.
        dtype: Of each.
    """

    def __init__(self, frames: Iterator[npt.NDArray[Any]], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._frames = frames
        self.shape = shape
        self._dtype = dtype
        self.count = 0
        self.error: BaseException | None = None

    def write(self, pipe: BinaryIO) -> None:
        """Write every frame and close the pipe. If FFmpeg ends early, its own error is reported."""
        with contextlib.suppress(BrokenPipeError), pipe:
            try:
                for frame in self._frames:
                    if frame.shape != self.shape or frame.dtype != self._dtype:
                        got = f"frame {self.count} {frame.shape} {frame.dtype} for VMAF"
                        raise QualityError(got, f"{self.shape} {self._dtype}, as the first")
                    pipe.write((frame if frame.shape[-1] == 3 else _with_grey_chroma(frame)).tobytes())
                    self.count += 1
            except BrokenPipeError:
                raise
            except BaseException as exc:  # noqa: BLE001  the caller raises it
                self.error = exc


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


def _run_ffmpeg(reference: _Feed, candidate: _Feed, model: str, layout: tuple[str, str]) -> list[float]:
    """Pipe both clips through libvmaf, and return its score of each frame."""
    height, width = reference.shape[:2]
    source, measured = layout
    convert = f"{_SCALE},format={measured}" if source != measured else f"format={measured}"
    raw = ["-f", "rawvideo", "-pix_fmt", source, "-s", f"{width}x{height}", "-r", "25"]
    graph = f"[0:v]{convert}[c];[1:v]{convert}[r];[c][r]libvmaf=model={model}:log_fmt=csv:log_path=scores.csv"
    with temporary_folder("vmaf") as folder, contextlib.ExitStack() as opened:
        command = [find_ffmpeg(), "-nostdin", "-v", "error"]
        readers = []
        writers = []
        for clip in (candidate, reference):  # libvmaf takes the candidate first
            read_end, write_end = os.pipe()
            readers.append(opened.enter_context(os.fdopen(read_end, "rb")))
            writers.append(threading.Thread(target=clip.write, args=(os.fdopen(write_end, "wb"),)))
            command += [*raw, "-i", f"pipe:{read_end}"]
        command += ["-filter_complex", graph, "-f", "null", "-"]
        ends = [reader.fileno() for reader in readers]
        with _start(command, folder, ends) as process:
            opened.close()  # otherwise a writer would wait for ever if FFmpeg ended early
            try:
                for writer in writers:
                    writer.start()
                _, said = process.communicate()
            finally:
                process.kill()  # the writers' pipes break, if this thread was interrupted
                for writer in writers:
                    if writer.ident is not None:
                        writer.join()
        for clip in (reference, candidate):
            if clip.error is not None:
                raise clip.error
        log = folder / "scores.csv"
        if process.returncode or not log.is_file():
            raise QualityError(f"libvmaf did not measure frames of {width}x{height}: {_reason(said)}")
        with log.open(newline="") as file:  # its JSON, with every feature of every frame, would be read as a whole
            return [float(frame["vmaf"]) for frame in csv.DictReader(file)]


def _start(command: list[str], folder: Path, ends: list[int]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, pass_fds=ends, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
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
