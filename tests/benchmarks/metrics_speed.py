"""PSNR and SSIM of 720p RGB frames beside scikit-image's own calls of the same definition, in turn, in one process.

Medians over the rounds of CPU milliseconds, as the machine may do other work, and ours over theirs. Goal: 1.05.
"""

import time

import numpy as np
from common import keep, median
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from genai_ray.quality import psnr, ssim

ROUNDS = 9


def theirs_ssim(reference, candidate):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return structural_similarity(reference, candidate, channel_axis=-1, data_range=255, **options)


def theirs_psnr(reference, candidate):
    return peak_signal_noise_ratio(reference, candidate, data_range=255)


def main():
    random = np.random.default_rng(0)
    reference = random.integers(0, 256, (720, 1280, 3), np.uint8)
    candidate = np.clip(reference.astype(int) + random.integers(-9, 10, reference.shape), 0, 255).astype(np.uint8)
    figures = {}
    for name, ours, theirs in (("psnr", psnr, theirs_psnr), ("ssim", ssim, theirs_ssim)):
        assert abs(ours(reference, candidate) - theirs(reference, candidate)) < 1e-9
        cpu_ms = {"ours": [], "theirs": []}
        for _ in range(ROUNDS):
            for who, metric in (("ours", ours), ("theirs", theirs)):
                began_cpu_s = time.process_time()
                metric(reference, candidate)
                cpu_ms[who].append(1000 * (time.process_time() - began_cpu_s))
        medians = {f"{who}_cpu_ms": round(median(values), 2) for who, values in cpu_ms.items()}
        figures[name] = medians | {"ours_over_theirs": round(medians["ours_cpu_ms"] / medians["theirs_cpu_ms"], 3)}
    rows = [(f"{name}: {key}", value) for name, values in figures.items() for key, value in values.items()]
    keep("metrics_speed", figures | {"goal": 1.05}, rows)


if __name__ == "__main__":
    main()
