"""What a job takes where pictures are very large: few frames on their way, few in the encoder, and not more segments at
a time than there is room for."""

import json
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from genai_ray import EnhanceOptions, enhance_videos
from genai_ray.enhance.job import scheduler
from genai_ray.enhance.segment.needs import predict_segment_bytes
from genai_ray.video import Encoding, SegmentWriter, plan_video
from genai_ray.video.codecs import bound_options
from tests.processes import descendants, rss_anon, start, title
from tests.video.clips import write

CODECS = {"libx264": "ultrafast", "libx265": "ultrafast", "libvpx-vp9": "8", "libsvtav1": "13", "ffv1": None}


@pytest.fixture(scope="module")
def four_times(tmp_path_factory):
    """Every pixel sixteen times."""
    path = tmp_path_factory.mktemp("model") / "four.onnx"
    weights = onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32).repeat(16, axis=0)[..., None, None], "weights")
    nodes = [
        helper.make_node("Conv", ["input", "weights"], ["wide"]),
        helper.make_node("DepthToSpace", ["wide"], ["output"], blocksize=4, mode="CRD"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, f"h{name}", f"w{name}"])
        for name in ("input", "output")
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def rss_shared(pid):
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssShmem:"))
    return int(line.split()[1]) * 1024


@pytest.mark.slow
@pytest.mark.longest
def test_uhd_four_times_larger_takes_what_is_predicted(four_times, tmp_path):
    """15360x8640: one frame is 398 MB. Two segments, of which the second waits for the first where the machine has no
    room for both."""
    source = write(
        tmp_path / "a.mp4", size=(3840, 2160), pts=[0, 1], tracks=0, options={"preset": "ultrafast", "g": "1"}
    )
    result, frame_bytes = (15360, 8640), 15360 * 8640 * 3
    most = {"ray::_run_segment": 0, "ray::SessionActor": 0, "shared": 0}
    job = start(
        "enhance",
        source,
        "-o",
        tmp_path / "b.mkv",
        "--model",
        four_times,
        "--encoder-preset",
        "ultrafast",
        "--segment-frames",
        1,
        "--json",
    )
    over = threading.Event()

    def watch():
        while not over.wait(0.1):
            for pid in descendants(job.pid):
                try:
                    taken, shared, name = rss_anon(pid), rss_shared(pid), title(pid).split(" ")[0]
                except (FileNotFoundError, ProcessLookupError, StopIteration):
                    continue
                most["shared"] = max(most["shared"], shared)
                if name in most:
                    most[name] = max(most[name], taken)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        out, err = job.communicate()
    finally:
        over.set()
        watcher.join()
    assert job.returncode == 0, err
    report = json.loads(out)
    assert (report["frames"], report["segments"], report["videos"][0]["size_out"]) == (2, 2, list(result))
    assert plan_video(tmp_path / "b.mkv").pts == (0, 40)
    assert 2 * frame_bytes < most["ray::_run_segment"] < predict_segment_bytes(result, 8)
    assert frame_bytes < most["ray::SessionActor"] < 4 * frame_bytes
    assert most["shared"] < 2 * 3 * frame_bytes  # of two segments: a result that is encoded, and one that is computed


def test_encoders_look_ahead_as_far_as_ever_up_to_4096x2304():
    for codec in CODECS:
        assert bound_options(codec, (4096, 2304)) == bound_options(codec, (96, 64)) == {}
    assert bound_options("libx264", (7680, 4320)) == {"rc-lookahead": "11"}
    assert bound_options("libx264", (15360, 8640)) == {"rc-lookahead": "2", "refs": "1", "bf": "0"}
    assert predict_segment_bytes((15360, 8640), 8) < 1.2e10
    assert predict_segment_bytes((1920, 1080), 8) < 6e8


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_encoders_take_what_bounds_them(codec, tmp_path):
    size = (6144, 3456)
    plan = plan_video(write(tmp_path / "a.mkv", tracks=0, pts=[0, 1]))
    frame = np.zeros((size[1], size[0], 3), np.uint8)
    with SegmentWriter(
        tmp_path / "b.nut", info=plan.info, size=size, encoding=Encoding(codec=codec, preset=CODECS[codec])
    ) as writer:
        for pts in plan.pts:
            writer.write(frame, pts)
    assert len(plan_video(tmp_path / "b.nut").pts) == 2


def test_no_more_segments_at_a_time_than_there_is_room_for(ray_session, tmp_path, monkeypatch):
    source = write(tmp_path / "a.mkv", tracks=0, options={"g": "8"})
    seen = []
    fill = scheduler.Scheduler._fill

    def noting(self):
        fill(self)
        seen.append(sum(step.kind == "segment" for step, _ in self._in_flight.values()))

    monkeypatch.setattr(scheduler.Scheduler, "_fill", noting)
    options = EnhanceOptions(encoding=Encoding(preset="ultrafast"), segment_frames=8)
    for share, most in ((scheduler.TASKS_SHARE, 2), (1e-9, 1)):
        monkeypatch.setattr(scheduler, "TASKS_SHARE", share)
        seen.clear()
        report = enhance_videos(source, tmp_path / f"{most}.mkv", models="websr-x2-s", options=options)
        assert (report.segments, report.frames) == (5, 40)
        assert max(seen) == 1 if most == 1 else max(seen) >= most
    assert (tmp_path / "1.mkv").read_bytes() == (tmp_path / "2.mkv").read_bytes()
