"""A session holds one copy of its model, whatever the dtype of its frames, and what is reserved is what it takes."""

import numpy as np
import pytest
from onnx import helper

from genai_ray import InferenceSession, ModelCache, SessionLimits
from genai_ray.catalog import ModelSpec, TensorSpec, dump_spec
from genai_ray.types import ModelBackend
from tests.caches import ending
from tests.session.test_any_model import save, value

SIDE = 8
FRAMES = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
WEIGHT_BYTES = 4 * 512 * 512 * 9 * 4


def save_heavy(path):
    """Four convolutions of 9 MB each, described beside the file."""
    generator = np.random.default_rng(1)
    names = ["x", "a", "b", "c", "d", "e", "y"]
    shapes = [(512, 3, 1, 1), *[(512, 512, 3, 3)] * 4, (3, 512, 1, 1)]
    nodes, weights = [], {}
    for number, shape in enumerate(shapes):
        weights[f"w{number}"] = (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        pads = [shape[-1] // 2] * 4
        nodes.append(helper.make_node("Conv", [names[number], f"w{number}"], [names[number + 1]], pads=pads))
    spec = ModelSpec(
        model_id="heavy", task="denoising", file=str(path), inputs=(TensorSpec(),), outputs=(TensorSpec(),)
    )
    path.with_suffix(".yaml").write_text(dump_spec(spec.model_copy(update={"receptive_field_px": 4})))
    return save(path, nodes, [value("x", ["n", 3, "h", "w"])], [value("y", ["n", 3, "h", "w"])], weights)


def calls_of(session):
    """One call for each kind of tensors."""
    raw = {"x": np.ascontiguousarray(FRAMES[:1].transpose(0, 3, 1, 2)).astype(np.float32) / 255}
    kinds = {"uint8": FRAMES, "uint16": FRAMES.astype(np.uint16) * 257, "float32": FRAMES.astype(np.float32) / 255}
    infer = {name: lambda frames=frames: session.infer(frames) for name, frames in kinds.items()}
    return infer | {"raw": lambda: session.run(raw)["y"]}


def expect(folder, kinds=("uint8", "uint16", "float32", "raw"), **options):
    """Write the model, and compute with it alone what is expected."""
    path = save_heavy(folder / "heavy.onnx")
    with InferenceSession(path, **options, limits=SessionLimits(max_frame=(SIDE, SIDE))) as session:
        session.warmup()
        return path, {name: calls_of(session)[name]() for name in kinds}


@pytest.mark.slow
def test_what_is_reserved_is_what_every_kind_takes(tmp_path, ray_session):
    path, expected = expect(tmp_path)
    for first in expected:  # the dtype that a session gets first is no other than those that come later
        with ending(ModelCache(3_000_000_000, name=f"{first} first")) as cache:
            cache.load_model(path, max_frame=(SIDE, SIDE))
            session = cache.get_session(path)
            one, _ = cache.memory_usage()
            calls = calls_of(session)
            for name in (first, *calls):
                assert np.array_equal(calls[name](), expected[name])
                (entry,) = cache.status().models
                assert entry.bytes == pytest.approx(entry.session["memory_bytes"], rel=0.1), name
            assert cache.memory_usage()[0] - one < WEIGHT_BYTES / 2


@pytest.mark.slow
def test_room_is_made_for_a_variant_with_its_own_weights(tmp_path, ray_session):
    """In OpenVINO."""
    path, expected = expect(tmp_path, ("uint8", "uint16"), backend="openvino")

    def use_both(cache):
        cache.load_model(path, ModelBackend.OPENVINO, max_frame=(SIDE, SIDE))
        one, _ = cache.memory_usage()
        calls = calls_of(cache.get_session(path, ModelBackend.OPENVINO))
        assert all(np.array_equal(calls[name](), expected[name]) for name in expected)
        return one, cache.memory_usage()[0]

    with ending(ModelCache(3_000_000_000, name="copies")) as cache:
        one, two = use_both(cache)
    assert two - one > WEIGHT_BYTES
    with ending(ModelCache(two + 20_000_000, name="few copies")) as cache:
        cache.load_model("websr-x2-s")
        use_both(cache)
        assert cache.loaded_models() == [str(path)]
        used, budget = cache.memory_usage()
        assert used <= budget
