"""``validate`` of two 60 s clips of 176x144 (PSNR, SSIM) beside decoding both to RGB and the metrics alone, same cores.

The baseline is what a script would do with this package: ``VideoReader`` for both, then ``psnr`` and ``ssim`` of each
pair of frames, with the frames split over as many threads as there are cores. Both run in turn in one process, without
start-up. VMAF is measured beside FFmpeg's own command on the same files.
"""

import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from common import CLIPS, keep, median, write_small

from genai_ray import VideoReader, psnr, ssim
from genai_ray.validate import validate_videos

ROUNDS = 3
SECONDS = 60.0
GOAL = 1.25
VMAF_GOAL = 1.15


def plain(reference, candidate, threads):
    with VideoReader(reference) as first, VideoReader(candidate) as second:
        began_s = time.perf_counter()  # opening reads every packet, and counts as start-up
        before = [frame.frame for frame in first]
        after = [frame.frame for frame in second]
        decoded_s = time.perf_counter() - began_s

    def measure(index):
        return psnr(before[index], after[index]), ssim(before[index], after[index])

    began_s = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        values = list(pool.map(measure, range(len(before))))
    return np.array(values), decoded_s, time.perf_counter() - began_s


def ffmpeg_vmaf(reference, candidate, threads):
    """Return the seconds of FFmpeg's command."""
    graph = f"[0:v][1:v]libvmaf=model=version=vmaf_v0.6.1neg:n_threads={threads}"
    files = ["-i", str(candidate), "-i", str(reference)]
    began_s = time.perf_counter()
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", *files, "-lavfi", graph, "-f", "null", "-"]
    subprocess.run(command, check=True)
    return time.perf_counter() - began_s


def main():
    source = CLIPS / "iscc-demo.mkv"
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "candidate.mkv"
        frames = write_small(source, candidate, SECONDS, (176, 144))
        reference = Path(folder) / "reference.mkv"
        write_small(candidate, reference, SECONDS, (176, 144))
        ours_s, theirs_s, decode_s, vmaf_s, ffmpeg_s = [], [], [], [], []
        for _ in range(ROUNDS):
            values, decoded, measured = plain(reference, candidate, threads)
            theirs_s.append(decoded + measured)
            decode_s.append(decoded)
            report = validate_videos(reference, candidate, threads=threads)
            ours_s.append(report.elapsed_s)
            ffmpeg_s.append(ffmpeg_vmaf(reference, candidate, threads))
            vmaf_s.append(validate_videos(reference, candidate, metrics=["vmaf"], threads=threads).elapsed_s)
        scores = report.candidates[0].per_frame
        assert np.allclose(values, np.stack([scores["psnr"], scores["ssim"]], axis=1))
    ratio = median(ours_s) / median(theirs_s)
    figures = {
        "frames": frames,
        "threads": threads,
        "validate_s": median(ours_s),
        "decode_and_metrics_s": median(theirs_s),
        "of_these_decoding_s": median(decode_s),
        "ratio": ratio,
        "goal": GOAL,
        "vmaf_s": median(vmaf_s),
        "ffmpeg_vmaf_s": median(ffmpeg_s),
        "vmaf_ratio": median(vmaf_s) / median(ffmpeg_s),
        "vmaf_goal": VMAF_GOAL,
    }
    keep("validate_speed", figures, list(figures.items()))


if __name__ == "__main__":
    main()
