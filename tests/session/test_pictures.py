"""Models with a picture as an extra input, such as one whose style is taken."""

import base64
import io
import json
import pickle

import numpy as np
import onnx
import pyarrow
import pyarrow.csv
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from genai_ray import Encoding, EnhanceOptions, InferenceSession, ModelBackend, enhance_videos, errors, verify_video
from genai_ray.catalog import ParamSpec, TensorSpec, dump_spec, load_spec
from genai_ray.cli.choices import parse_params
from genai_ray.enhance.job.segment_store import key_clip
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.options import check_given, check_models, convert_params
from genai_ray.inspection import find_model, inspect_model
from genai_ray.serve.engine.inference import InferRequest, Tensor
from genai_ray.serve.engine.model_metadata import check_frame_request, read_metadata
from genai_ray.types import ModelTask, ParamPicture
from genai_ray.video import parse_picture_text, to_picture_text
from tests.enhance.moving import frames_of, pan, write_frames

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 40, 52, 3), np.uint8)
SUNSET = np.full((20, 30, 3), (255, 128, 51), np.uint8)
"""Its mean colour is the gain of each colour."""
PLAIN = (1, 3, 16, 24)


def save_style(path, shape=PLAIN, frames=("n", 3, "h", "w"), peak=1.0, first="frames"):
    """A picture, each colour times the mean of that colour in the style picture, which is 1 in white."""
    is_last = shape[-1] == 3
    nodes = [helper.make_node("ReduceMean", ["style"], ["means"], axes=[1, 2] if is_last else [2, 3])]
    if is_last:
        nodes.append(helper.make_node("Transpose", ["means"], ["colours"], perm=[0, 3, 1, 2]))
    nodes += [
        helper.make_node("Constant", [], ["white"], value_float=float(peak)),
        helper.make_node("Div", ["colours" if is_last else "means", "white"], ["gains"]),
        helper.make_node("Mul", ["x", "gains"], ["y"]),
    ]
    ends = {"x": helper.make_tensor_value_info("x", 1, frames), "s": helper.make_tensor_value_info("style", 1, shape)}
    inputs = [ends[name] for name in ("xs" if first == "frames" else "sx")]
    outputs = [helper.make_tensor_value_info("y", 1, frames)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [])
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    return save_style(tmp_path_factory.mktemp("style") / "style.onnx")


def png(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels, **options).save(buffer, "PNG")
    return buffer.getvalue()


def text_of(pixels):
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def styled(frames, picture=SUNSET):
    gains = picture.reshape(-1, 3).mean(axis=0) / (65535 if picture.dtype == np.uint16 else 255)
    return np.rint(frames * gains).astype(np.uint8)


def distance(found, expected):
    """Largest difference in levels."""
    return np.abs(found.astype(np.int16) - expected).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (PLAIN, (24, 16)),
        (("n", 3, 16, 24), (24, 16)),
        ((1, 16, 24, 3), (24, 16)),
        (("m", 3, "a", "b"), (None, None)),
        (("n", 3, 16, "b"), (None, 16)),
    ],
)
def test_a_picture_is_found_and_reaches_the_model(tmp_path, shape, size):
    path = save_style(tmp_path / "style.onnx", shape)
    found = inspect_model(path)
    assert found.is_image_model
    assert found.task is ModelTask.DENOISING
    assert [tensor.name for tensor in found.inputs] == ["x"]
    picture = found.params["style"].picture
    assert (picture.width, picture.height) == size
    assert picture.layout == ("nhwc" if shape[-1] == 3 else "nchw")
    assert found.picture_params == ("style",)
    assert any("'style'" in line for line in found.unsure)
    (tmp_path / "kept.yaml").write_text(dump_spec(found))
    assert load_spec(tmp_path / "kept.yaml").params == found.params
    path.with_suffix(".yaml").write_text(dump_spec(found))
    with InferenceSession(path) as session:
        session.warmup()
        for given in (SUNSET, ParamPicture(SUNSET), SUNSET.astype(np.uint16) * 257, SUNSET / np.float32(255)):
            assert distance(session.infer(FRAMES, {"style": given}), styled(FRAMES)) <= 1
        wide = session.infer(FRAMES.astype(np.uint16) * 257, {"style": SUNSET})
        assert distance(wide // 257, styled(FRAMES)) <= 1
        assert distance(session.infer(FRAMES[0]), np.rint(FRAMES[0] / 2).astype(np.uint8)) <= 1


def test_all_trial_runs_take_a_small_picture(tmp_path):
    path = save_style(tmp_path / "style.onnx", ("n", 3, 64, "b"))
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 3, 64, 64), np.float32), "none"))
    model.graph.node.insert(0, helper.make_node("Add", ["style", "none"], ["small"]))
    model.graph.node[1].input[0] = "small"
    onnx.save(model, path)
    assert inspect_model(path).picture_params == ("style",)


def test_the_picture_may_come_first_and_neighbours_stay_so(tmp_path):
    found = inspect_model(save_style(tmp_path / "first.onnx", first="style"))
    assert ([tensor.name for tensor in found.inputs], found.picture_params) == (["x"], ("style",))
    ends = [helper.make_tensor_value_info(name, 1, ["n", 3, "h", "w"]) for name in "aby"]
    graph = helper.make_graph([helper.make_node("Sum", ["a", "b"], ["y"])], "g", ends[:2], ends[2:], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "pair.onnx").write_bytes(model.SerializeToString())
    assert inspect_model(tmp_path / "pair.onnx").task is ModelTask.INTERPOLATION


def test_range_and_normalisation_of_a_spec_hold_for_the_picture(tmp_path):
    path = save_style(tmp_path / "style.onnx", peak=255)
    spec = inspect_model(path)
    tensor = TensorSpec(name="style", height=16, width=24, value_range=(0, 510), mean=(1, 2, 3), std=(2, 2, 2))
    param = spec.params["style"].model_copy(update={"picture": tensor})
    path.with_suffix(".yaml").write_text(dump_spec(spec.model_copy(update={"params": {"style": param}})))
    with InferenceSession(path) as session:
        gains = (SUNSET[0, 0] * 2.0 - (1, 2, 3)) / 2 / 255
        wanted = np.rint(np.clip(FRAMES * gains, 0, 255)).astype(np.uint8)
        assert distance(session.infer(FRAMES, {"style": SUNSET}), wanted) <= 1


def test_openvino_gets_the_picture_too(style):
    with InferenceSession(style, backend=ModelBackend.OPENVINO) as session:
        assert distance(session.infer(FRAMES, {"style": SUNSET}), styled(FRAMES)) <= 1


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (0.5, "style=0.5"),
        ("sunset.png", "style=sunset.png"),
        ((1, 2, 3), r"style=\(1, 2, 3\)"),
        (SUNSET[..., :2], r"style=frames of shape \(20, 30, 2\)"),
        (FRAMES, "style=3 frames"),
        (SUNSET.astype(np.int64), "style=frames of dtype int64"),
        (np.full((4, 4, 3), np.nan, np.float32), "style=float32 frames with values from nan"),
        (np.empty((0, 4, 3), np.uint8), "style=empty frames"),
    ],
)
def test_other_values_are_refused(style, value, got):
    words = f"param {got}.*; allowed: a picture, which becomes 24x16"
    with InferenceSession(style) as session, pytest.raises(errors.InvalidInputError, match=words):
        session.infer(FRAMES, {"style": value})
    with pytest.raises(errors.InvalidInputError, match=words):
        check_models(style, EnhanceOptions(params={"style": value}))


def test_a_job_without_the_picture_is_refused(style):
    specs = check_models(style, EnhanceOptions())  # a manifest may give it
    check_given(specs, [EnhanceOptions(params={"style": SUNSET})])
    check_given(check_models("websr-x2-s", EnhanceOptions()), [EnhanceOptions()])
    with pytest.raises(errors.ConfigError, match=r"without its picture 'style'.*--param style=@FILE\.png"):
        check_given(specs, [EnhanceOptions(params={"style": SUNSET}), EnhanceOptions()])


def test_numbers_take_no_picture():
    with pytest.raises(errors.InvalidInputError, match=r"param sigma=picture of 30x20; allowed: from 0 to 0\.294"):
        check_models("ffdnet", EnhanceOptions(params={"sigma": ParamPicture(SUNSET)}))
    with pytest.raises(ValueError, match="a picture has three channels"):
        ParamSpec(default=0.5, minimum=0, maximum=1, picture=TensorSpec(channels=1))


def test_files_of_the_command_line(tmp_path, style):
    Image.fromarray(SUNSET).save(tmp_path / "a sunset.PNG")
    params = parse_params([f"style=@{tmp_path / 'a sunset.PNG'}"], "--param")
    assert params == {"style": ParamPicture(SUNSET)}
    options = EnhanceOptions(params=params)
    own = convert_params(check_models(style, options), options).params["style"]
    assert own.size == (24, 16)
    assert np.array_equal(own.pixels[0, 0], SUNSET[0, 0])
    assert pickle.loads(pickle.dumps(own)) == own
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "clear.png").write_bytes(png(np.zeros((4, 4, 4), np.uint8)))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "long.png").write_bytes(png(np.zeros((1, 32769, 3), np.uint8)))
    with pytest.raises(errors.ConfigError, match="picture of 32769x1; allowed: sides of at most 32768 px"):
        parse_params([f"style=@{tmp_path / 'long.png'}"], "--param")
    with pytest.raises(errors.ConfigError, match=r"clear\.png .*Put it on a background first"):
        parse_params([f"style=@{tmp_path / 'clear.png'}"], "--param")
    for name in ("none", "text", "clear", "folder"):
        with pytest.raises(errors.ConfigError, match=f"{name}.png cannot be read as a picture.*a PNG, JPEG or WebP"):
            parse_params([f"style=@{tmp_path / name}.png"], "--param")
    with pytest.raises(errors.ConfigError, match=r"the name of a picture: \.png"):
        parse_params([f"style=@{tmp_path / 'picture.tiff'}"], "--param")


def test_resizing():
    ramp = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], 90, axis=0).repeat(3, axis=2)
    small = ParamPicture(ramp).resized(30, 9).pixels
    assert small.shape == (9, 30, 3)
    assert np.abs(small[0, 1:-1, 0] - (np.arange(30)[1:-1] * 8 + 3)).max() <= 1
    large = ParamPicture(ramp).resized(240, 90).pixels
    assert np.abs(large[0, 2:-2, 0].astype(int) - (np.arange(240)[2:-2] - 0.5)).max() <= 1
    assert ParamPicture(np.full((3, 5, 3), 65535, np.uint16)).resized(1, 7).pixels.min() == 65535
    free = ParamSpec(default=0.5, minimum=0, maximum=1, picture=TensorSpec())
    assert free.read("style", np.zeros((3000, 1500, 3), np.uint8)).size == (256, 512)
    assert free.read("style", np.zeros((3, 5000, 3), np.uint8)).size == (512, 1)
    assert free.read("style", np.zeros((9, 7, 3), np.uint8)).size == (7, 9)


def test_a_text_is_the_picture_and_wrong_ones_are_refused(style):
    deep = np.random.default_rng(1).integers(0, 65536, (5, 4, 3), np.uint16)
    for pixels in (SUNSET, deep):
        assert parse_picture_text(to_picture_text(ParamPicture(pixels))) == ParamPicture(pixels)
    metadata = read_metadata(str(style))

    def params_of(**params):
        request = InferRequest((Tensor("frames", "UINT8", FRAMES),), parameters={"frames": True, **params})
        return check_frame_request(request, metadata)[1]

    assert params_of(style=text_of(SUNSET))["style"].size == (24, 16)
    for value in ("@sunset.png", "/etc/hostname", 0.5, True, "0,0,1"):
        with pytest.raises(errors.InvalidInputError, match=r"param style=.*; allowed: a picture"):
            params_of(style=value)
    for value in ("data:text/plain;base64,AAAA", "data:image/png;base64,!!", "data:image/png;base64,"):
        with pytest.raises(errors.InvalidInputError, match=r"of a picture; allowed: data:image/png;base64"):
            params_of(style=value)
    with pytest.raises(errors.InvalidInputError, match="no picture"):
        params_of(style="data:image/png;base64,AAAA")
    with pytest.raises(errors.InvalidInputError, match=r"no parameter 'style' .*data:image/png;base64"):
        params_of()
    huge = np.zeros((2049, 2048, 3), np.uint8)
    with pytest.raises(errors.InvalidInputError, match="a picture of 2048x2049"):
        params_of(style=text_of(huge))
    with pytest.raises(errors.InvalidInputError, match="a picture of 8193x1; allowed: sides of at most 8192 px"):
        params_of(style=text_of(np.zeros((1, 8193, 3), np.uint8)))


def test_manifests_hold_the_picture_and_name_no_files(tmp_path):
    clip = write_frames(tmp_path / "in.mkv", pan(2))

    def options_of(word):
        pyarrow.csv.write_csv(pyarrow.table({"uri": [str(clip)], "param.style": [word]}), tmp_path / "a.csv")
        (target,) = resolve_targets(tmp_path / "a.csv", tmp_path / "out", EnhanceOptions())
        return target.options(EnhanceOptions())

    assert options_of(text_of(SUNSET)).params == {"style": ParamPicture(SUNSET)}
    for word in ("@sunset.png", "data:image/png;base64,AA"):
        with pytest.raises(errors.ConfigError, match=r"param\.style.*"):
            options_of(word)


def test_another_picture_is_another_job(style):
    specs = (find_model(style)[0],)
    keys = {
        key_clip(None, specs, EnhanceOptions(params={"style": ParamPicture(picture)}))
        for picture in (SUNSET, SUNSET.copy(), SUNSET[::-1, ::-1], SUNSET[:-1], 255 - SUNSET)
    }
    assert len(keys) == 3


@pytest.mark.slow
def test_a_job_uses_its_picture_and_is_verified(ray_session, style, tmp_path):
    source = write_frames(tmp_path / "in.mkv", pan(6))
    read = frames_of(source)[1]
    warm = np.full((20, 30, 3), (255, 252, 248), np.uint8)
    options = EnhanceOptions(params={"style": warm}, encoding=Encoding(codec="ffv1"), check="strict")
    enhance_videos(source, tmp_path / "out.mkv", models=style, options=options)
    found = frames_of(tmp_path / "out.mkv")[1].astype(np.int16)
    assert np.abs(found - styled(read, warm)).mean() < np.abs(found - read).mean()
    record = json.loads((tmp_path / "out.mkv.record.json").read_text())
    assert parse_picture_text(record["options"]["params"]["style"]).size == (24, 16)
    assert verify_video(tmp_path / "out.mkv", tmp_path / "in.mkv", models=style).passed
    others = EnhanceOptions(params={"style": warm[..., ::-1]}, encoding=Encoding(codec="ffv1"), check="strict")
    with pytest.raises(errors.ConfigError, match=r"out\.mkv"):  # it is there, made with another picture
        enhance_videos(source, tmp_path / "out.mkv", models=style, options=others)
