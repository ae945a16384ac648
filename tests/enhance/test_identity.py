"""A model that changes nothing, through the whole engine: sessions, segments, encoders without loss, the join."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from genai_ray import EnhanceOptions, enhance_videos
from genai_ray.video import Encoding, plan_video
from tests.video.identity import compare, decode, planes
from tests.video.matrix import CLIPS, NUM_FRAMES, make
from tests.video.test_matrix import DECODERS, check_sound, check_times

NAMES = [
    "h264-mp4-b-frames",
    "h264-mov-rotated",
    "hevc-mkv-open-gop",
    "hevc-mkv-hdr10",
    "mpeg2-ps",
    "vp9-webm-alpha",
    "ffv1-mkv-422-ten-bits",
]


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    """One 1x1 convolution with the unit matrix."""
    path = tmp_path_factory.mktemp("model") / "nothing.onnx"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in ("input", "output")]
    weights = onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32)[..., None, None], "weights")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "weights"], ["output"])], "g", ends[:1], ends[1:], [weights]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_changes_nothing_changes_nothing(ray_session, nothing, name, tmp_path):
    source, output = make(name, tmp_path), tmp_path / "b.mkv"
    options = EnhanceOptions(encoding=Encoding(codec="ffv1"), segment_frames=13)
    report = enhance_videos(source, output, models=nothing, options=options)
    plan, result = plan_video(source), plan_video(output)
    assert report.models[0].device_kind == "cpu"
    assert (report.frames, report.frames_inferred, len(result.pts)) == (NUM_FRAMES, NUM_FRAMES, NUM_FRAMES)
    assert all(word in " ".join(report.videos[0].notes) for word in CLIPS[name].get("left_out", {}).get(".mkv", []))
    assert (result.info.pix_fmt, result.info.rotation, result.info.has_alpha) == (
        plan.info.pix_fmt,
        plan.info.rotation,
        plan.info.has_alpha,
    )
    check_times(plan, result, ".mkv")
    check_sound(source, output, plan, result)
    before, after = decode(source, DECODERS.get(name)), decode(output)
    shares, differs, errors = zip(
        *(compare(a, b, plan.info.colour) for a, b in zip(before, after, strict=True)), strict=True
    )
    peak = 2**plan.info.bit_depth - 1
    assert (max(shares), max(differs), report.videos[0].share_outside_rgb) == (0, 0, 0)
    assert 10 * np.log10(peak**2 / max(np.mean(errors), 1e-9)) >= 60
    if plan.info.has_alpha:
        assert all(np.array_equal(planes(a)[3], planes(b)[3]) for a, b in zip(before, after, strict=True))
