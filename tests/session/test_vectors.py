"""Models with a vector as an extra input, such as the weights of styles."""

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from onnx import helper, numpy_helper

from genai_ray import Encoding, EnhanceOptions, InferenceSession, ModelBackend, enhance_videos, errors
from genai_ray.catalog import ParamSpec, dump_spec, load_spec
from genai_ray.cli.choices import parse_params
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.options import check_models, convert_params
from genai_ray.inspection import inspect_model
from genai_ray.serve.engine.inference import InferRequest, Tensor
from genai_ray.serve.engine.model_metadata import check_frame_request, read_metadata
from genai_ray.serve.http.queries import _parse_params
from tests.enhance.moving import frames_of, pan, write_frames

STYLES = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5], [0, 0, 0]], np.float32)
"""Gains of red, green and blue of five styles."""
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 40, 52, 3), np.uint8)
WEIGHTS = (0.5, 0, 0.25, 1, 0)


def save_style(path, shape):
    """A picture, each colour times its gain: the sum of all styles, by their weights."""
    nodes = [
        helper.make_node("Reshape", ["style", "rows"], ["w"]),
        helper.make_node("MatMul", ["w", "styles"], ["gains"]),
        helper.make_node("Reshape", ["gains", "colours"], ["g"]),
        helper.make_node("Mul", ["x", "g"], ["y"]),
    ]
    weights = {"rows": np.array([-1, 5]), "styles": STYLES, "colours": np.array([-1, 3, 1, 1])}
    ends = [helper.make_tensor_value_info(name, 1, ["n", 3, "h", "w"]) for name in "xy"]
    inputs = [ends[0], helper.make_tensor_value_info("style", 1, shape)]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, ends[1:], tensors)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    return save_style(tmp_path_factory.mktemp("style") / "style.onnx", [1, 5])


def styled(frames, weights):
    return np.rint(np.clip(frames * (np.asarray(weights, np.float32) @ STYLES), 0, 255)).astype(np.uint8)


def distance(found, expected):
    """Largest difference in levels; one level is that of rounding 8-bit frames to 0..1."""
    return np.abs(found.astype(np.int16) - expected).max()


@pytest.mark.parametrize("shape", [[1, 5], ["n", 5], [5], [1, 5, 1, 1]])
def test_a_vector_is_found_and_reaches_the_model(tmp_path, shape):
    path = save_style(tmp_path / "style.onnx", shape)
    found = inspect_model(path)
    assert found.is_image_model
    assert {name: param.size for name, param in found.params.items()} == {"style": 5}
    assert any("'style'" in line for line in found.unsure)
    (tmp_path / "kept.yaml").write_text(dump_spec(found))
    assert load_spec(tmp_path / "kept.yaml").params == found.params
    path.with_suffix(".yaml").write_text(dump_spec(found))
    with InferenceSession(path) as session:
        for given in (WEIGHTS, list(WEIGHTS), np.array(WEIGHTS)):
            assert distance(session.infer(FRAMES, {"style": given}), styled(FRAMES, WEIGHTS)) <= 1
        assert distance(session.infer(FRAMES[0]), styled(FRAMES[0], [0.5] * 5)) <= 1


def test_openvino_gets_the_vector_too(style):
    with InferenceSession(style, backend=ModelBackend.OPENVINO) as session:
        assert distance(session.infer(FRAMES, {"style": WEIGHTS}), styled(FRAMES, WEIGHTS)) <= 1


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (0.5, "style=0.5"),
        ((0.5, 1), "style=2 numbers"),
        ((), "style=0 numbers"),
        ((0, 0, 0, 0, 7), "style=7"),
        ((0, 0, 0, 0, np.nan), "style=nan"),
        ([[0, 0, 0, 0, 0]], r"style=\[\[0"),
        ("abcde", "style=abcde"),
    ],
)
def test_other_values_are_refused(style, value, got):
    words = f"param {got}.*; allowed: 5 numbers, each from 0 to 1"
    with InferenceSession(style) as session, pytest.raises(errors.InvalidInputError, match=words):
        session.infer(FRAMES, {"style": value})
    with pytest.raises(errors.InvalidInputError, match=words):
        check_models(style, EnhanceOptions(params={"style": value}))


def test_a_vector_of_one_number_may_be_given_as_a_number():
    param = ParamSpec(default=(0.5,), size=1, minimum=0, maximum=1)
    assert param.read("style", 0.25) == param.read("style", (0.25,)) == (0.25,)


def test_a_number_takes_no_vector():
    with pytest.raises(errors.InvalidInputError, match=r"param sigma=2 numbers; allowed: from 0 to 0\.294"):
        check_models("ffdnet", EnhanceOptions(params={"sigma": (1, 2)}))
    with pytest.raises(ValueError, match="a default of 2 numbers for a param of size None"):
        ParamSpec(default=(0, 1), minimum=0, maximum=1)
    assert ParamSpec(default=(0, 0.25), size=2, minimum=0, maximum=1).describe_default() == "0,0.25"


def test_words_and_files_of_the_command_line(tmp_path, style):
    np.save(tmp_path / "weights.npy", np.array([WEIGHTS]))
    for word in ("0.5,0,1/4,1,0", f"@{tmp_path / 'weights.npy'}"):
        params = parse_params([f"style={word}"], "--param")
        assert params == {"style": WEIGHTS}
        specs = check_models(style, EnhanceOptions(params=params))
        assert convert_params(specs, EnhanceOptions(params=params)).params == {"style": WEIGHTS}
    assert parse_params(["sigma=15/255"], "--param") == {"sigma": 15 / 255}
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "words.npy", np.array(["a"]))
    for word in ("style=0,b", "style=", "style"):
        with pytest.raises(errors.ConfigError, match=r"--param style.*@FILE\.npy"):
            parse_params([word], "--param")
    for name in ("none.npy", "text.npy", "words.npy"):
        with pytest.raises(errors.ConfigError, match=f"{name}.*numpy.save"):
            parse_params([f"style=@{tmp_path / name}"], "--param")


def test_a_request_has_the_vector_as_text(style):
    metadata = read_metadata(str(style))

    def params_of(value):
        request = InferRequest((Tensor("frames", "UINT8", FRAMES),), parameters={"frames": True, "style": value})
        return check_frame_request(request, metadata)[1]

    assert params_of("0.5, 0, 0.25, 1, 0") == {"style": WEIGHTS}
    for value, got in (
        ("0,0", "style=2 numbers"),
        (0.5, "style=0.5"),
        ("a,b", "style="),
        (True, "style=1"),
        ("", ""),
    ):
        with pytest.raises(errors.InvalidInputError, match=f"{got}.*allowed: 5 numbers, each from 0 to 1"):
            params_of(value)


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("sigma=0.1", {"sigma": 0.1}),
        ("style=0,0.5,1", {"style": (0, 0.5, 1)}),
        (" style=0, 0.5 ,1,sigma=15", {"style": (0, 0.5, 1), "sigma": 15}),
        ("sigma=1e-2,style=1,0,", {"sigma": 0.01, "style": (1, 0)}),
        ("", {}),
    ],
)
def test_a_query_has_vectors_between_names(text, params):
    assert _parse_params(text) == params


def test_manifests_have_vectors_as_text_or_lists(tmp_path, style):
    clip = write_frames(tmp_path / "in.mkv", pan(2))
    rows = {"uri": [str(clip)], "param.style": ["0.5,0, 0.25,1,0"], "param.sigma": [15]}
    pyarrow.csv.write_csv(pyarrow.table(rows), tmp_path / "a.csv")
    rows["param.style"] = [list(WEIGHTS)]
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        (target,) = resolve_targets(tmp_path / name, tmp_path / "out", EnhanceOptions())
        assert target.options(EnhanceOptions()).params == {"style": WEIGHTS, "sigma": 15}
    for word in ("@weights.npy", "a", "", "0,,1"):
        rows["param.style"] = [word]
        pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
        with pytest.raises(errors.ConfigError, match=r"param.style .*a number, the numbers of a vector"):
            resolve_targets(tmp_path / "a.parquet", tmp_path / "out", EnhanceOptions())


@pytest.mark.slow
def test_a_job_uses_the_vector(ray_session, style, tmp_path):
    source = write_frames(tmp_path / "in.mkv", pan(6))
    read = frames_of(source)[1]
    options = EnhanceOptions(params={"style": WEIGHTS}, encoding=Encoding(codec="ffv1"))
    enhance_videos(source, tmp_path / "out.mkv", models=style, options=options)
    assert np.abs(frames_of(tmp_path / "out.mkv")[1].astype(np.int16) - styled(read, WEIGHTS)).mean() < 8
