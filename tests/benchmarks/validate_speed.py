"""``validate`` of two 60 s clips of 176x144 (PSNR, SSIM) beside decoding both to RGB and the metrics alone, same cores.

The baseline is what a script would do with this package: ``VideoReader`` for both, then ``psnr`` and ``ssim`` of each
pair of frames, with the frames split over as many threads as there are cores. Both run in turn in one process, without
start-up. VMAF is measured beside FFmpeg's own command on the same files, without pictures of the worst frames, which
that command does not make either; CPU seconds count for both, with those of child processes.

``feeding_share`` is the share of the CPU seconds of PSNR and SSIM that the one thread which decodes has: its inverse is
the number of cores that it keeps busy.
"""

import os
import resource
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from common import CLIPS, ROOT, keep, median, write_small

from genai_ray import VideoReader, psnr, ssim
from genai_ray.validate import validate_videos

ROUNDS = 3
SECONDS = 60.0
LARGE_SECONDS = 4.0
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


def timed(work):
    """Return seconds by the clock, and CPU seconds of this process and its children."""

    def cpu_s():
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    began_s, cpu_began_s = time.perf_counter(), cpu_s()
    work()
    return time.perf_counter() - began_s, cpu_s() - cpu_began_s


def feeding_share(reference, candidate, threads):
    """Return the share of this thread, which decodes, in the CPU seconds of PSNR and SSIM."""
    process_s, thread_s = time.process_time(), time.thread_time()
    validate_videos(reference, candidate, threads=threads, has_pictures=False)
    return (time.thread_time() - thread_s) / (time.process_time() - process_s)


def ffmpeg_vmaf(reference, candidate, threads):
    """Run FFmpeg's command."""
    graph = f"[0:v][1:v]libvmaf=model=version=vmaf_v0.6.1neg:n_threads={threads}"
    files = ["-i", str(candidate), "-i", str(reference)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", *files, "-lavfi", graph, "-f", "null", "-"]
    subprocess.run(command, check=True)


def our_vmaf(reference, candidate, threads):
    validate_videos(reference, candidate, metrics=["vmaf"], threads=threads, has_pictures=False)


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
            for taken, measure in ((ffmpeg_s, ffmpeg_vmaf), (vmaf_s, our_vmaf)):
                taken.append(timed(lambda measure=measure: measure(reference, candidate, threads)))
        shares = {"176x144": feeding_share(reference, candidate, threads)}
        write_small(ROOT / "samples" / "bigbuckbunny-720p.mp4", candidate, LARGE_SECONDS, (1280, 720))
        write_small(candidate, reference, LARGE_SECONDS, (1280, 720))
        shares["1280x720"] = feeding_share(reference, candidate, threads)
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
        "feeding_share": shares,
        "goal": GOAL,
        "vmaf_s": median([clock_s for clock_s, _ in vmaf_s]),
        "ffmpeg_vmaf_s": median([clock_s for clock_s, _ in ffmpeg_s]),
        "vmaf_cpu_s": median([cpu_s for _, cpu_s in vmaf_s]),
        "ffmpeg_vmaf_cpu_s": median([cpu_s for _, cpu_s in ffmpeg_s]),
        "vmaf_goal": VMAF_GOAL,
    }
    figures["vmaf_ratio"] = figures["vmaf_s"] / figures["ffmpeg_vmaf_s"]
    figures["vmaf_cpu_ratio"] = figures["vmaf_cpu_s"] / figures["ffmpeg_vmaf_cpu_s"]
    keep("validate_speed", figures, list(figures.items()))


if __name__ == "__main__":
    main()
