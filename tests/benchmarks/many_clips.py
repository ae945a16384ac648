"""Many clips of 1 s as one job against the plain loop over them; goals: 0.80 of its clips per second, and a driver that
does not grow.

many_clips.py [COUNT [PLAIN [WIDTH HEIGHT]]]: COUNT is 500 by default, 10,000 for the published figure; the plain loop
does the first PLAIN of them (500). The driver's memory is read when a tenth of the clips are done and to the end. About
1.5 minutes for 500 on two quiet cores, 30 for 10,000.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
from common import MODELS, genai_ray, keep, rss_anon

FRAMES, MODEL = 25, "websr-x2-s"
KINDS = 20
"""Clips that are made; the others are links to them."""


def write_clip(path: Path, seed: int, width: int, height: int) -> None:
    rng = np.random.default_rng(seed)
    base = np.kron(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(FRAMES):
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(base, 3 * index, axis=1), format="rgb24")))
        sink.mux(stream.encode(None))


def write_clips(folder: Path, count: int, width: int, height: int) -> None:
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:06d}.mp4"
        if number < KINDS:
            write_clip(path, number, width, height)
        else:
            path.hardlink_to(folder / f"{number % KINDS:06d}.mp4")


def enhance(clips: Path, out: Path, count: int) -> tuple[dict, list[tuple[int, int]]]:
    """Run the job; give its report, and the driver's memory as results appear: (results there, bytes)."""
    out.mkdir()
    seen: list[tuple[int, int]] = []
    command = genai_ray("enhance", clips, "-o", out, "--model", MODEL, "--json")
    with (
        tempfile.TemporaryFile("w+") as told,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True) as job,
    ):
        over = threading.Event()

        def watch() -> None:
            while not over.wait(max(0.5, count / 2000)):
                with suppress(FileNotFoundError, ProcessLookupError, StopIteration):  # it has ended
                    seen.append((len(list(out.glob("*.mp4"))), rss_anon(job.pid)))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            text = job.stdout.read()
        finally:
            over.set()
            thread.join()
        if not text:
            told.seek(0)
            raise SystemExit(told.read())
    return json.loads(text), seen


def measure(count: int, plain: int, width: int, height: int) -> dict[str, float]:
    """Run both; give clips per second of each and what the driver grew by from a tenth of the clips on."""
    with tempfile.TemporaryDirectory() as place:
        clips, few, out, plain_out = (Path(place, name) for name in ("clips", "few", "out", "plain"))
        write_clips(clips, count, width, height)
        report, seen = enhance(clips, out, count)
        if report["clips_failed"] or report["clips"] != count:
            raise SystemExit(f"{report['clips_failed']} of {report['clips']} clips failed")
        plain_out.mkdir()
        few.mkdir()
        for clip in sorted(clips.iterdir())[:plain]:
            (few / clip.name).hardlink_to(clip)
        started = time.perf_counter()
        loop = [
            sys.executable,
            str(Path(__file__).with_name("plain_loop.py")),
            str(few),
            str(plain_out),
            str(MODELS / "websr-anime4k-cnn-x2-s-rl.onnx"),
        ]
        plain_per_s = float(subprocess.run(loop, check=True, capture_output=True, text=True).stdout)
        plain_s = time.perf_counter() - started
    per_s = report["fps"] / FRAMES
    early = next((size for done, size in seen if done >= count // 10), 0)
    return {
        "clips": count,
        "size": [width, height],
        "clips_per_s": per_s,
        "plain_clips_per_s": plain_per_s,
        "ratio": per_s / plain_per_s,
        "elapsed_s": report["elapsed_s"],
        "plain_elapsed_s": plain_s,
        "driver_grew_mb": (max(size for _, size in seen) - early) / 1e6,
    }


def main(count: int = 500, plain: int = 500, width: int = 176, height: int = 144) -> None:
    figures = measure(count, min(count, plain), width, height)
    keep(
        "many_clips",
        figures,
        [
            ("clips", count),
            ("enhance, clips/s", figures["clips_per_s"]),
            ("plain loop, clips/s", figures["plain_clips_per_s"]),
            ("ratio (goal 0.80)", figures["ratio"]),
            ("the driver grew from a tenth of the clips on, MB (goal 50)", figures["driver_grew_mb"]),
        ],
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
