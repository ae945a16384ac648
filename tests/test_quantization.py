"""INT8: only through the gate, the same bytes every time, and then a model like any other."""

import hashlib
import json
import math

import numpy as np
import onnx
import pytest

from genai_ray import (
    Encoding,
    EnhanceOptions,
    InferenceSession,
    ModelBackend,
    ModelCatalog,
    SessionLimits,
    VideoReader,
    enhance_videos,
    errors,
    psnr,
)
from genai_ray import quantization as quantization_module
from genai_ray.backends.quantize import to_int8
from genai_ray.inspection import find_model
from genai_ray.quantization import HELD_OUT, NUM_FRAMES, PART_PX, quantize_model
from tests.processes import ROOT
from tests.video.clips import write


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("int8") / "a clip.mkv", tracks=0)


@pytest.fixture(scope="module")
def made(clip):
    return quantize_model("websr-x2-l", clip, "small.onnx")


@pytest.fixture(scope="module")
def file(made, tmp_path_factory):
    """The model in a folder, as the command writes it."""
    path = tmp_path_factory.mktemp("models") / "small.onnx"
    path.write_bytes(made.data)
    path.with_suffix(".yaml").write_text(made.spec_text())
    return path


@pytest.mark.slow
def test_weights_are_int8_and_the_figures_are_of_other_frames(made):
    graph = onnx.load_from_string(made.data).graph
    kinds = [tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4]
    assert len(kinds) > 3
    assert set(kinds) == {onnx.TensorProto.INT8}
    assert (made.frames, made.frames_measured) == (NUM_FRAMES - NUM_FRAMES // HELD_OUT, NUM_FRAMES // HELD_OUT)
    assert 40 <= made.quality_db < 90
    assert made.worst_frame_db <= made.quality_db + 1e-9
    told = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert told["bytes"] == len(made.data)
    assert made.ms > 0
    assert made.fp32_ms > 0


def test_the_spec_is_that_of_the_model(file, made):
    spec, path = find_model(file)
    original = ModelCatalog.default().get("websr-x2-l")
    same = ("task", "scale", "receptive_field_px", "inputs", "outputs", "licence", "source", "size_multiple")
    assert [getattr(spec, name) for name in same] == [getattr(original, name) for name in same]
    assert (spec.aliases, spec.presets, spec.sha256) == ((), (), None)
    assert "INT8" in spec.description
    assert f"{made.quality_db:.1f} dB" in spec.description
    assert path == file


def test_the_file_agrees_as_told_and_tiles_change_no_bit(file, clip, made):
    with VideoReader(clip) as video:
        frames = video[10:12].frames
    with (
        InferenceSession("websr-x2-l") as exact,
        InferenceSession(file) as small,
        InferenceSession(file, threads=1, limits=SessionLimits(tile_size_px=40)) as tiled,
    ):
        result = small.infer(frames)
        assert abs(psnr(exact.infer(frames), result) - made.quality_db) < 5
        assert not np.array_equal(exact.infer(frames), result)
        assert np.array_equal(tiled.infer(frames), result)
        assert np.array_equal(small.infer(frames[1]), result[1])
        deep = small.infer(frames.astype(np.uint16) * 257)
        assert np.abs(deep / 257 - result).max() <= 1


def test_equal_frames_give_equal_bytes(made, clip):
    spec, path = find_model("websr-x2-l")
    parts = quantization_module._read_parts(str(clip))
    shown = [part for at, part in enumerate(parts) if (at + 1) % HELD_OUT]
    feeds = quantization_module._feeds_of(spec, path, shown)
    hashes = {hashlib.sha256(one).hexdigest() for one in (made.data, to_int8(path, feeds))}
    assert len(hashes) == 1 or to_int8(path, feeds, has_short_sums=True) == made.data  # a processor without VNNI


def test_what_agrees_by_less_is_refused(clip):
    with pytest.raises(errors.ModelLoadError, match=r"only \d\d\.\d dB.*at least 120 dB"):
        quantize_model("websr-x2-s", clip, "a.onnx", min_quality_db=120)


@pytest.mark.parametrize(
    ("model", "name", "least_db", "words"),
    [
        ("rife", "a.onnx", None, "interpolation.*upscaling, denoising, low-light"),
        ("selfie-segmentation", "a.onnx", None, "fixed size"),
        ("websr-x2-s", "a.pt", None, "ends in .onnx"),
        ("websr-x2-s", "b/a.onnx", None, "ends in .onnx"),
        ("websr-x2-s", "a.onnx", 39.9, "from 40"),
        ("websr-x2-s", "a.onnx", math.nan, "from 40"),
    ],
)
def test_what_cannot_be_converted_is_refused_at_once(model, name, least_db, words):
    with pytest.raises(errors.ConfigError, match=words):
        quantize_model(model, "no such clip", name, min_quality_db=least_db)


def test_a_model_without_convolutions_is_refused(clip, tmp_path):
    source = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        plain (float[N, 3, H, W] input) => (float[N, 3, H, W] output) { output = Identity(input) }""")
    onnx.save(source, tmp_path / "plain.onnx")
    with pytest.raises(errors.ModelLoadError, match="nothing to convert"):
        to_int8(tmp_path / "plain.onnx", [{"input": np.zeros((1, 3, 8, 8), np.float32)}])
    old = onnx.parser.parse_model("""<ir_version: 7, opset_import: ["" : 11]>
        plain (float[N, 3, H, W] input) => (float[N, 3, H, W] output) { output = Identity(input) }""")
    onnx.save(old, tmp_path / "old.onnx")
    spec = ModelCatalog.default().get("websr-x2-s").model_copy(update={"task": "denoising", "scale": 1})
    with pytest.raises(errors.ConfigError, match="operator set 11"):
        quantization_module._check(spec, tmp_path / "old.onnx", "a.onnx")


def test_parts_come_from_the_middle_and_the_corners():
    frame = np.arange(2 * 400 * 300 * 3).reshape(2, 400, 300, 3)[0]
    parts = [quantization_module._cut(frame, turn) for turn in range(6)]
    assert {part.shape for part in parts} == {(1, PART_PX, PART_PX, 3)}
    assert np.array_equal(parts[0], parts[5])
    assert np.array_equal(parts[1][0], frame[:PART_PX, :PART_PX])
    assert np.array_equal(parts[4][0], frame[-PART_PX:, -PART_PX:])
    assert quantization_module._cut(frame[:9, :7], 3).shape == (1, 9, 7, 3)


def test_a_clip_of_one_frame_is_refused(tmp_path):
    """What is lost would be measured on the frame that showed the ranges."""
    short = write(tmp_path / "short.mkv", size=(34, 26), pts=[0], tracks=0)
    with pytest.raises(errors.VideoError, match=r"short.mkv has one frame; allowed: two or more"):
        quantize_model("websr-x2-s", short, "a.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("frames", [2, 5])
def test_clips_of_few_frames(tmp_path, frames):
    short = write(tmp_path / "short.mkv", size=(34, 26), pts=list(range(frames)), tracks=0)
    found = quantize_model("websr-x2-s", short, "a.onnx")
    assert found.frames + found.frames_measured == frames
    assert found.frames_measured >= 1


@pytest.mark.slow
def test_openvino_computes_it_too(file, clip, made):
    """With the same bits in every run, in tiles, and with any number of threads."""
    openvino = ModelBackend.OPENVINO
    with VideoReader(clip) as video:
        frames = video[10:12].frames
    with (
        InferenceSession(file) as onnx_session,
        InferenceSession(file, backend=openvino, threads=1) as one,
        InferenceSession(file, backend=openvino, threads=2, limits=SessionLimits(tile_size_px=40)) as tiled,
    ):
        result = one.infer(frames)
        assert psnr(onnx_session.infer(frames), result) > 40
        assert np.array_equal(one.infer(frames), result)
        assert np.array_equal(tiled.infer(frames), result)
        assert one.status()["precision_db"] >= 40
    assert made.openvino_db >= 40
    assert made.openvino_ms > 0
    assert openvino in made.spec.backends


@pytest.mark.slow
def test_a_job_with_it_makes_what_its_session_makes(ray_session, file, tmp_path):
    source = ROOT / "samples" / "bigbuckbunny-360p.mp4"
    options = EnhanceOptions(duration="f4", encoding=Encoding(codec="ffv1"))
    report = enhance_videos(source, tmp_path / "a.mkv", models=str(file), options=options)
    assert report.frames == 4
    assert report.models[0].model_id == str(file)
    with VideoReader(source) as video, VideoReader(tmp_path / "a.mkv") as result, InferenceSession(file) as session:
        assert psnr(session.infer(video[:4].frames), result[:4].frames) > 45
