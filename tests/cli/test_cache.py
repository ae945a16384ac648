"""How ``genai-ray cache status`` lays out a cache, at the widths that terminals have."""

import io

import pytest
from rich.console import Console

from genai_ray.cli.cache import WIDE, draw_status
from genai_ray.cluster.cache.status import CacheStatus, DeviceStatus, PendingStatus, SessionStatus

NODE = "8040c64fd282c3a1"
KEY = ("selfie-segmentation-landscape", "openvino", "bf16", "auto")


def status(*, is_empty=False):
    session = SessionStatus(
        *KEY,
        placed_on=f"{NODE[:12]}/gpu0",
        name="session:1",
        actor="session:1",
        digest="0" * 64,
        state="ready",
        bytes=266_000_000,
        predicted_bytes=300_000_000,
        floor_bytes=0,
        pinned=True,
        leased=True,
        replicas=1,
        hits=12345,
        queue=3,
        idle_s=12.0,
        age_s=100.0,
        load_s=1.25,
        session={"precision_db": 43.21},
    )
    return CacheStatus(
        name="default",
        pid=1,
        policy="lru",
        used_bytes=266_000_000,
        budget_bytes=9_820_000_000,
        loads=1,
        reuses=0,
        adoptions=0,
        evictions=1,
        failures=0,
        process_bytes={},
        devices=(DeviceStatus(session.placed_on, "NVIDIA H200", NODE, 266_000_000, 300_000_000, 10**9, 10**10),),
        models=() if is_empty else (session,),
        history={KEY[0]: {"evictions": 1.0, "age_at_eviction_s": 30.0}},
        leases=1,
        waiting=(PendingStatus("websr-x2-l", "onnx", "fp32", "auto", reason="no room"),),
        failing=(),
    )


def lines_of(found, width):
    screen = io.StringIO()
    Console(file=screen, width=width).print(draw_status(found, {NODE: "far-away"}, width))
    return [line.rstrip() for line in screen.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120, WIDE])
def test_names_and_numbers_of_a_session_are_whole(width):
    lines = lines_of(status(), width)
    assert max(map(len, lines)) <= width
    (device,) = [line.split() for line in lines if "far-away" in line]
    assert device == ["8040c64fd282/gpu0", "far-away", "NVIDIA", "H200", "266", "MB", "1", "GB", "10", "GB"]
    (row,) = [number for number, line in enumerate(lines) if KEY[0] in line]
    names, cells = lines[row - 1 : row + 1]
    assert {"model", "as", "on", "state", "memory", "queue", "stays"} <= set(names.split())
    assert "266 MB" in cells
    assert ("43.2" in cells, "1 (at 30 s)" in cells) == (width == WIDE, width == WIDE)
    assert any("not shown for want" in line for line in lines) == (width < WIDE)
    assert any(line.endswith("websr-x2-l waiting: no room") for line in lines)


def test_an_empty_cache_has_no_table_of_sessions():
    lines = lines_of(status(is_empty=True), 80)
    assert not any(word in line for line in lines for word in ("queue", "not shown"))
