"""Tests of a real GPU. Without one they are skipped; with one that does not compute they fail."""

import json
import os
from pathlib import Path

import pytest

from genai_ray import ModelBackend
from genai_ray.backends import execution
from genai_ray.backends.gpu import count_gpus, read_gpu

DEVICE = "cuda:0"


@pytest.fixture(scope="session", autouse=True)
def gpu():
    """Return NVML's state of the GPU before anything was loaded."""
    is_demanded = "GENAI_RAY_NEEDS_GPU" in os.environ
    has_device = any(Path("/dev").glob("nvidia[0-9]*"))  # also if the driver is broken
    if not (is_demanded or has_device or count_gpus()):
        pytest.skip("this machine has no NVIDIA GPU")
    before = read_gpu("0")
    execution.open_gpu(ModelBackend.ONNX, DEVICE)  # says what is missing
    return before


@pytest.fixture(scope="session")
def figures(gpu):
    """Collect what is measured; it is written to the file that ``GENAI_RAY_GPU_JSON`` names."""
    found = {"gpu": gpu.name, "driver": gpu.driver, "total_bytes": gpu.total_bytes}
    yield found
    if path := os.environ.get("GENAI_RAY_GPU_JSON"):
        Path(path).write_text(json.dumps(found, indent=1) + "\n")
