"""The rival over many clips: one session, one clip after another, as in ``plain_script.py``.

plain_loop.py FOLDER OUT MODEL.onnx: prints clips per second from the first decoded frame to the last closed file.
"""

import sys
import time
from pathlib import Path

import av
import numpy as np
import onnxruntime as ort


def main(folder: str, out: str, model: str) -> None:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def upscale(frames):
        tensor = np.stack(frames).transpose(0, 3, 1, 2).astype(np.float32) / 255
        result = session.run(None, {name: np.ascontiguousarray(tensor)})[0]
        return np.rint(np.clip(result, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)

    def enhance(clip, target):
        with av.open(str(clip)) as source, av.open(str(target), "w") as sink:
            video = source.streams.video[0]
            stream = sink.add_stream("libx264", rate=video.average_rate, options={"preset": "medium", "crf": "18"})
            stream.width, stream.height, stream.pix_fmt = 2 * video.width, 2 * video.height, "yuv420p"
            batch = []
            for frame in source.decode(video):
                batch.append(frame.to_ndarray(format="rgb24"))
                if len(batch) == 8:
                    write(sink, stream, batch)
                    batch = []
            if batch:
                write(sink, stream, batch)
            sink.mux(stream.encode(None))

    def write(sink, stream, batch):
        for frame in upscale(batch):
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))

    clips = sorted(Path(folder).iterdir())
    with av.open(str(clips[0])) as first:
        upscale([np.zeros((first.streams.video[0].height, first.streams.video[0].width, 3), np.uint8)])
    started = time.perf_counter()
    for clip in clips:
        enhance(clip, Path(out) / clip.name)
    print(len(clips) / (time.perf_counter() - started))


if __name__ == "__main__":
    main(*sys.argv[1:4])
