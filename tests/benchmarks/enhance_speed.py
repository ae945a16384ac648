"""``enhance`` against the plain script on a 60 s clip of 176x144, in turn; goal: at least 1.05 of its frame rate, at
most 12 s to the first encoded frame."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
from common import CLIPS, MODELS, PLAIN_SCRIPT, genai_ray, keep, median

RUNS = 3


def enhance(clip: Path, output: Path) -> tuple[dict[str, float], float]:
    """Run the job; give its report, and the seconds from the start of its process until an encoded frame can be read
    from its work folder."""
    started, encoded_s = time.perf_counter(), 0.0
    sizes: dict[Path, int] = {}
    command = genai_ray("enhance", clip, "-o", output, "--model", "websr-x2-l", "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as job:
        while not encoded_s and job.poll() is None:
            now = {part: size_of(part) for part in output.with_name(output.name + ".genai-ray").glob("*.partial")}
            grown, sizes = [part for part in now if now[part] != sizes.get(part)], now
            if any(has_frame(part) for part in grown):
                encoded_s = time.perf_counter() - started
            time.sleep(0.05)
        out, _ = job.communicate()
    if job.returncode or not encoded_s:
        raise SystemExit(f"enhance ended with {job.returncode}, its first encoded frame seen at {encoded_s} s")
    return json.loads(out), encoded_s


def size_of(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:  # it has just been published
        return 0


def has_frame(part: Path) -> bool:
    try:
        with av.open(str(part)) as box:
            return any(packet.size for packet in box.demux(video=0))
    except (av.FFmpegError, OSError):
        return False


def main(clip: Path = CLIPS / "iscc-demo.mkv") -> None:
    model = MODELS / "websr-anime4k-cnn-x2-l-rl.onnx"
    ours, plain, startup, encoded, elapsed = [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(RUNS):
            report, encoded_s = enhance(clip, Path(folder, f"ours-{run}.mkv"))
            encoded.append(encoded_s)
            ours.append(report["fps"])
            startup.append(report["startup_s"])
            elapsed.append(report["elapsed_s"])
            rival = [
                sys.executable,
                str(PLAIN_SCRIPT),
                str(clip),
                str(Path(folder, f"plain-{run}.mkv")),
                str(model),
            ]
            done = subprocess.run(rival, check=True, capture_output=True, text=True)
            plain.append(json.loads(done.stdout)["fps"])
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    keep(
        "enhance_speed",
        {
            "clip": clip.name,
            "fps": ours,
            "plain_fps": plain,
            "ratio": ratios,
            "startup_s": startup,
            "first_encoded_s": encoded,
            "elapsed_s": elapsed,
        },
        [
            ("enhance, frames/s", median(ours)),
            ("plain script, frames/s", median(plain)),
            ("ratio (goal 1.05)", median(ratios)),
            ("start-up to first decoded frame, s", median(startup)),
            ("start-up to first encoded frame, s (goal 12)", median(encoded)),
        ],
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
