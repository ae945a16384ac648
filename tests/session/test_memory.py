"""Bytes of a session: those of the device that it computes on, and what a GPU's reservation leaves for its runs."""

import numpy as np
import pytest

from genai_ray import InferenceSession, ModelBackend, ModelCatalog, SessionLimits, errors
from genai_ray.backends.gpu import GpuMeter, GpuState
from genai_ray.session.memory import SessionMemory
from genai_ray.session.sizing import check_search, default_tile_px, larger_run_px, largest_run

CATALOG = ModelCatalog.default()
MB = 1_000_000


def build_meter(*own_bytes):
    """Return a meter of process 42 that has measured its context, the second figure of a table."""
    answers = [GpuState("NVIDIA L4", 24_000 * MB, num_bytes, {42: num_bytes}) for num_bytes in own_bytes]
    meter = GpuMeter("0", 42, lambda _: answers.pop(0) if len(answers) > 1 else answers[0])
    meter.context_bytes = meter.measure()
    return meter


def test_bytes_of_a_gpu_are_those_of_the_device_with_the_context():
    ballast = np.ones(50 * MB, np.uint8)  # of the host
    memory = SessionMemory(ModelBackend.ONNX, "cuda", build_meter(0, 400 * MB, 400 * MB, 900 * MB, 700 * MB))
    assert (memory.is_of_gpu, memory.context_bytes) == (True, 400 * MB)
    more = np.ones(50 * MB, np.uint8)
    memory.measure()
    assert [memory.peak_bytes for _ in range(2)] == [900 * MB, 900 * MB]
    assert ballast.size + more.size == 100 * MB


def test_a_second_session_does_not_count_the_first():
    meter = build_meter(0, 400 * MB, 1000 * MB, 1300 * MB)
    memory = SessionMemory(ModelBackend.ONNX, "cuda", meter)
    assert memory.peak_bytes == 400 * MB + 300 * MB


def test_bytes_of_a_cpu_are_those_of_the_process():
    memory = SessionMemory(ModelBackend.ONNX, "cpu")
    ballast = np.ones(50 * MB, np.uint8)
    memory.measure()
    assert (memory.is_of_gpu, memory.context_bytes) == (False, 0)
    assert memory.peak_bytes >= 0.9 * ballast.size


@pytest.mark.parametrize(
    ("model_id", "limits", "is_whole_tile"),
    [
        ("websr-x2-s", {}, True),
        ("websr-x2-s", {"max_frame": (1080, 1920)}, True),
        ("websr-x2-s", {"max_frame": (90, 2000)}, False),
        ("selfie-segmentation", {"max_frame": (90, 90)}, True),  # of a fixed size
        ("websr-x2-s", {"tile_size_px": 0}, None),
        ("rife", {"max_frame": (720, 1280)}, None),
    ],
)
def test_how_much_larger_a_run_may_be_than_those_of_warm_up(model_id, limits, is_whole_tile):
    spec = CATALOG.get(model_id)
    limits = SessionLimits(**limits)
    more_px = larger_run_px(spec, limits)
    if is_whole_tile is None:
        assert more_px is None
    elif is_whole_tile:
        assert more_px == 0
    else:
        side = default_tile_px(spec, limits)
        height, width = largest_run(spec, limits, side)
        assert 0 < more_px == side * side - height * width


def test_what_limits_the_arena_of_a_gpu():
    """The bytes that a caller gave, else those that are reserved; larger frames than were told find room as well."""
    for limits, kind, expected in (
        ({"max_bytes": 900 * MB, "device_bytes": 700 * MB}, "uint8", 900 * MB),
        ({"device_bytes": 700 * MB}, "uint8", 700 * MB),
        ({"device_bytes": 700 * MB}, "raw", None),
        ({"device_bytes": 700 * MB, "tile_size_px": 0}, "uint8", None),
        ({}, "uint8", None),
    ):
        with InferenceSession("websr-x2-s", limits=SessionLimits(**limits)) as session:
            assert session._device_bytes(kind) == expected
    small = SessionLimits(device_bytes=700 * MB, max_frame=(64, 64))
    with InferenceSession("websr-x2-s", limits=small) as session:
        side = session.tile_size_px
        more_bytes = session.num_runs * session._run_bytes(side * side - 64 * 64, 1)
        assert session._device_bytes("uint8") == 700 * MB + more_bytes


def test_exhaustive_search_is_for_gpus_and_frames_of_one_size():
    spec = CATALOG.get("websr-x2-s")
    check_search(spec, SessionLimits(is_exhaustive=True, max_frame=(90, 90)), is_cpu=False)
    check_search(CATALOG.get("selfie-segmentation"), SessionLimits(is_exhaustive=True), is_cpu=False)
    with pytest.raises(errors.ConfigError, match=r"frames of any size; allowed: .*Give max_frame"):
        check_search(spec, SessionLimits(is_exhaustive=True), is_cpu=False)
    with pytest.raises(errors.ConfigError, match=r"is_exhaustive for websr-x2-s on a CPU; allowed: an NVIDIA GPU"):
        InferenceSession("websr-x2-s", device="cpu", limits=SessionLimits(is_exhaustive=True, max_frame=(90, 90)))
