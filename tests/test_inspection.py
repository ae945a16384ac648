"""Models that nobody described: catalog models stripped of their words, and models that are not of images."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_ray import InferenceSession, ModelCatalog, errors
from genai_ray.catalog import dump_spec, load_spec
from genai_ray.graph import read_model, receptive_field
from genai_ray.inspection import find_model, hash_model, inspect_model, trial

CATALOG = ModelCatalog.default()
PACKAGED = [spec.model_id for spec in map(CATALOG.get, CATALOG.ids()) if spec.url is None and spec.is_image_model]

HEAVY = {"realesrgan-x4plus", "realesrgan-x4plus-anime", "realcugan-x2"}
"""Their trial runs take 5 s and more, also with small frames."""


def strip(model):
    del model.metadata_props[:]
    for position, value in enumerate((*model.graph.input, *model.graph.output)):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                dim.dim_param = f"d{position}_{axis}"
    return model


@pytest.mark.parametrize(
    "model_id",
    [pytest.param(model_id, marks=pytest.mark.slow) if model_id in HEAVY else model_id for model_id in PACKAGED],
)
def test_trials_find_what_the_catalog_says(model_id, tmp_path, monkeypatch):
    known = CATALOG.get(model_id)
    if "x4plus" in model_id:
        monkeypatch.setattr(trial, "_SIZES_PX", (32,))
    path = tmp_path / "unknown.onnx"
    onnx.save(strip(onnx.load(CATALOG.path(model_id))), path)
    found = inspect_model(path, 3600.0)
    for name in ("scale", "size_multiple", "receptive_field_px", "tile_stride", "batchable", "is_fixed_size"):
        assert getattr(found, name) == getattr(known, name), name
    assert [(t.name, t.layout, t.channels, t.height, t.width) for t in found.inputs] == [
        (t.name, t.layout, t.channels, t.height, t.width) for t in known.inputs
    ]
    assert set(found.params) == set(known.params)
    if found.task != known.task:
        assert any("task" in line for line in found.unsure)
    if found.inputs[0].value_range != known.inputs[0].value_range:
        assert any("value range" in line for line in found.unsure)


@pytest.mark.parametrize("model_id", ["websr-x2-s", "waifu2x-x2", "ffdnet"])
def test_a_slow_model_is_tried_out_with_smaller_frames(model_id, tmp_path, monkeypatch):
    path = tmp_path / "slow.onnx"
    path.write_bytes(CATALOG.path(model_id).read_bytes())
    found = inspect_model(path)
    monkeypatch.setattr(trial, "_SIZES_PX", (32,))
    assert inspect_model(path, 3600.0) == found


def test_a_model_too_slow_for_trials_is_refused_early(tmp_path):
    kernel = numpy_helper.from_array(np.zeros((3, 3, 31, 31), np.float32), "k")
    node = helper.make_node("Conv", ["x", "k"], ["y"], pads=[15, 15, 15, 15])
    f = TensorProto.FLOAT
    for side in ("h", 96):
        path = save(
            tmp_path / f"slow-{side}.onnx",
            [node],
            [tensor("x", f, ["n", 3, side, side])],
            [tensor("y", f, ["n", 3, side, side])],
            [kernel],
        )
        with pytest.raises(
            errors.ModelLoadError, match=r"slow-.*\.onnx is too slow to be tried out: .* s.*Save a spec beside the file"
        ):
            inspect_model(path, 0.001)
        assert inspect_model(path, 3600.0) == inspect_model(path)


@pytest.mark.parametrize("model_id", PACKAGED)
def test_receptive_field_of_the_graph_agrees_with_the_catalog(model_id):
    known, reach = CATALOG.get(model_id), receptive_field(read_model(CATALOG.path(model_id)))
    assert reach.radius_px == known.receptive_field_px
    if reach.radius_px is not None:
        assert reach.stride == known.tile_stride


@pytest.mark.slow
@pytest.mark.parametrize("model_id", ["websr-x2-s", "waifu2x-x2", "esrgan-2x", "ffdnet"])
def test_a_smaller_radius_would_not_do(model_id, tmp_path):
    spec = CATALOG.get(model_id)
    smaller = spec.receptive_field_px - spec.tile_stride
    path = tmp_path / "copy.onnx"
    path.write_bytes(CATALOG.path(model_id).read_bytes())
    path.with_suffix(".yaml").write_text(dump_spec(spec.model_copy(update={"receptive_field_px": smaller})))
    from genai_ray import SessionLimits

    picture = np.random.default_rng(0).integers(0, 65536, (150, 170, 3), np.uint16)
    with (
        InferenceSession(path, limits=SessionLimits(tile_size_px=2 * smaller + 16 * spec.tile_stride)) as tiled,
        InferenceSession(model_id) as whole,
    ):
        assert not np.array_equal(tiled.infer(picture), whole.infer(picture))


def save(path, nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def tensor(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def not_images(folder):
    f, i = TensorProto.FLOAT, TensorProto.INT64
    weight = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    yield save(
        folder / "matmul.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [tensor("x", f, ["n", 4])],
        [tensor("y", f, ["n", 2])],
        [weight],
    )
    yield save(
        folder / "tokens.onnx",
        [helper.make_node("Cast", ["ids"], ["y"], to=f)],
        [tensor("ids", i, ["b", "t"])],
        [tensor("y", f, ["b", "t"])],
    )
    yield save(
        folder / "words.onnx",
        [helper.make_node("Identity", ["s"], ["y"])],
        [tensor("s", TensorProto.STRING, [1])],
        [tensor("y", TensorProto.STRING, [1])],
    )
    yield save(
        folder / "nothing.onnx", [helper.make_node("Identity", ["w"], ["y"])], [], [tensor("y", f, [4, 2])], [weight]
    )
    yield save(
        folder / "pooled.onnx",
        [helper.make_node("GlobalAveragePool", ["x"], ["y"])],
        [tensor("x", f, [1, 3, "h", "w"])],
        [tensor("y", f, [1, 3, 1, 1])],
    )


def test_models_that_are_not_of_images_are_other_and_run_raw(tmp_path):
    for path in not_images(tmp_path):
        spec = inspect_model(path)
        assert (spec.task, spec.inputs) == ("other", ()), path.name
        assert spec.unsure, path.name
        assert load_spec_text(dump_spec(spec), tmp_path).task == "other"
    with InferenceSession(tmp_path / "matmul.onnx") as session:
        assert session.run({"x": np.ones((5, 4), np.float32)})["y"].shape == (5, 2)
        with pytest.raises(errors.InvalidInputError, match="not an image model"):
            session.infer(np.zeros((8, 8, 3), np.uint8))


def load_spec_text(text, folder):
    path = folder / "spec.yaml"
    path.write_text(text)
    return load_spec(path)


def test_a_net_of_luma_goes_over_each_colour(tmp_path):
    kernel = numpy_helper.from_array(np.full((1, 1, 3, 3), 1 / 9, np.float32), "k")
    node = helper.make_node("Conv", ["x", "k"], ["y"], pads=[1, 1, 1, 1])
    f = TensorProto.FLOAT
    path = save(
        tmp_path / "blur.onnx",
        [node],
        [tensor("x", f, ["n", 1, "h", "w"])],
        [tensor("y", f, ["n", 1, "h", "w"])],
        [kernel],
    )
    picture = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), np.uint8)
    with InferenceSession(path) as session:
        assert session.spec.receptive_field_px == 1
        out = session.infer(picture)
    padded = np.pad(picture.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(padded[:, a : a + 20, b : b + 24] for a in range(3) for b in range(3)) / 9
    assert np.abs(out - expected).max() <= 0.51


def test_a_saved_spec_is_used_and_a_broken_one_refused(tmp_path):
    path = tmp_path / "mine.onnx"
    path.write_bytes(CATALOG.path("websr-x2-s").read_bytes())
    shown = subprocess.run(
        [sys.executable, "-m", "genai_ray.cli", "models", "inspect", path], capture_output=True, text=True, check=True
    ).stdout
    for key in ("task: upscaling", "scale: 2", "size_multiple: 1", "inputs:", "outputs:", "receptive_field_px: 4"):
        assert key in shown
    path.with_suffix(".yaml").write_text(shown)
    assert find_model(path)[0].receptive_field_px == 4
    path.with_suffix(".yaml").write_text(shown.replace("scale: 2", "scale: two"))
    with pytest.raises(errors.ConfigError, match=r"mine\.yaml: scale"):
        find_model(path)


def test_missing_and_corrupt_files(tmp_path):
    with pytest.raises(errors.ModelNotFoundError, match="no file"):
        find_model(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x00\x01nonsense")
    with pytest.raises(errors.ModelLoadError, match=r"bad\.onnx"):
        inspect_model(tmp_path / "bad.onnx")


def test_weights_in_other_files_are_part_of_the_hash(tmp_path):
    path, weights = tmp_path / "net.onnx", tmp_path / "weights.bin"
    model = onnx.load(CATALOG.path("websr-x2-s"))
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    spec = CATALOG.get("websr-x2-s").model_copy(update={"sha256": None, "file": str(path)})
    before, graph = hash_model(spec, path), path.read_bytes()
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert path.read_bytes() == graph
    assert hash_model(spec, path) != before
    weights.unlink()
    assert hash_model(spec, path) not in ("", before)  # a load says what is missing
    weights.symlink_to("/dev/zero")
    assert hash_model(spec, path) not in ("", before)  # and nothing outside the folder is read
    packaged = CATALOG.get("websr-x2-s")
    assert hash_model(packaged, CATALOG.path("websr-x2-s")) == packaged.sha256
