"""VMAF, measured by libvmaf in the FFmpeg of the extra ``vmaf``; nothing is downloaded.

FFmpeg runs in a process of its own and gets both clips through pipes. This module takes frames, not files.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from genai_ray.errors import BackendUnavailableError, InvalidInputError, QualityError
from genai_ray.files import temporary_folder
from genai_ray.quality.planes import check_pictures

__all__ = ["VMAF_MODELS", "vmaf", "vmaf_per_frame"]

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
_MIN_SIDE_PX = 17


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
    if model not in VMAF_MODELS:
        raise InvalidInputError(f"the VMAF model {model!r}", ", ".join(VMAF_MODELS))
    first = _as_clip(reference)
    height, width, channels = first.shape[1:]
    layout = _LAYOUTS.get((channels, str(reference.dtype)))
    if layout is None:
        do = "Convert them first, with rounding and clamping."
        raise InvalidInputError(f"frames of dtype {reference.dtype} for VMAF", "uint8 or uint16", do)
    if min(height, width) < _MIN_SIDE_PX:
        raise QualityError(f"frames of {width}x{height} for VMAF", f"sides of at least {_MIN_SIDE_PX} px")
    scores = _run_ffmpeg(first, _as_clip(candidate), VMAF_MODELS[model], layout)
    if len(scores) != len(first):
        raise QualityError(f"{len(scores)} scores of VMAF for {len(first)} frames", "one for each frame")
    return np.array(scores)


def _as_clip(frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Add the missing axes of a plane or a frame: (N, H, W, C)."""
    if frames.ndim == 2:
        frames = frames[..., None]
    return frames if frames.ndim == 4 else frames[None]


def _find_ffmpeg() -> str:
    do = 'Install it with: pip install "genai-ray[vmaf]".'
    try:
        import imageio_ffmpeg  # noqa: PLC0415  an extra
    except ImportError as exc:
        raise BackendUnavailableError("VMAF is not installed", "the extra 'vmaf'", do) from exc
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as exc:
        raise BackendUnavailableError(f"VMAF has no FFmpeg to run: {exc}", "the extra 'vmaf'", do) from exc


def _run_ffmpeg(
    reference: npt.NDArray[Any], candidate: npt.NDArray[Any], model: str, layout: tuple[str, str]
) -> list[float]:
    """Pipe both clips through libvmaf, and return its score of each frame."""
    height, width = reference.shape[1:3]
    source, measured = layout
    convert = f"{_SCALE},format={measured}" if source != measured else f"format={measured}"
    raw = ["-f", "rawvideo", "-pix_fmt", source, "-s", f"{width}x{height}", "-r", "25"]
    graph = f"[0:v]{convert}[c];[1:v]{convert}[r];[c][r]libvmaf=model={model}:log_fmt=json:log_path=scores.json"
    with temporary_folder("vmaf") as folder, contextlib.ExitStack() as opened:
        command = [_find_ffmpeg(), "-nostdin", "-v", "error"]
        readers = []
        writers = []
        for clip in (candidate, reference):  # libvmaf takes the candidate first
            read_end, write_end = os.pipe()
            readers.append(opened.enter_context(os.fdopen(read_end, "rb")))
            writers.append(threading.Thread(target=_write, args=(os.fdopen(write_end, "wb"), clip)))
            command += [*raw, "-i", f"pipe:{read_end}"]
        command += ["-filter_complex", graph, "-f", "null", "-"]
        ends = [reader.fileno() for reader in readers]
        with subprocess.Popen(
            command, pass_fds=ends, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            opened.close()  # otherwise a writer would wait for ever if FFmpeg ended early
            for writer in writers:
                writer.start()
            _, said = process.communicate()
            for writer in writers:
                writer.join()
        log = folder / "scores.json"
        if process.returncode or not log.is_file():
            raise QualityError(f"libvmaf did not measure frames of {width}x{height}: {_reason(said)}")
        return [float(frame["metrics"]["vmaf"]) for frame in json.loads(log.read_text())["frames"]]


def _reason(said: bytes) -> str:
    """Return the line with libvmaf's own error, else the last line."""
    lines = said.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    return next((line for line in lines if "libvmaf ERROR" in line), lines[-1])


def _write(pipe: BinaryIO, clip: npt.NDArray[Any]) -> None:
    """Write frames one after another; if the process ends early, its own error is reported."""
    try:
        with pipe:
            for frame in clip:
                pipe.write((frame if frame.shape[-1] == 3 else _with_grey_chroma(frame)).tobytes())
    except BrokenPipeError:
        return


def _with_grey_chroma(luma: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Make planes Y, U and V of (H, W, 1): uint8 as it is, uint16 with 10 bits."""
    planes = np.empty((3, *luma.shape[:2]), luma.dtype)
    is_deep = luma.dtype == np.uint16
    planes[0] = np.rint(luma[..., 0] * (1023 / 65535)) if is_deep else luma[..., 0]
    planes[1:] = 512 if is_deep else 128
    return planes
