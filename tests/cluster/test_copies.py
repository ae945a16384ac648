"""A session that gets frames of another dtype, or raw tensors, needs another copy of its model: the cache reserves it
before it is loaded."""

import numpy as np
import pytest
from onnx import helper

from genai_ray import InferenceSession, ModelCache, SessionLimits
from genai_ray.catalog import ModelSpec, TensorSpec, dump_spec
from tests.caches import ending
from tests.processes import wait_until
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


def expect(folder):
    """Write the model, and compute with it alone what is expected."""
    path = save_heavy(folder / "heavy.onnx")
    with InferenceSession(path, limits=SessionLimits(max_frame=(SIDE, SIDE))) as session:
        session.warmup()
        return path, {name: call() for name, call in calls_of(session).items()}


@pytest.mark.slow
def test_the_cache_reserves_every_copy_and_makes_room_for_it(tmp_path, ray_session):
    path, expected = expect(tmp_path)
    with ending(ModelCache(3_000_000_000, name="copies")) as cache:
        cache.load_model(path, max_frame=(SIDE, SIDE))
        session = cache.get_session(path)
        one, _ = cache.memory_usage()
        for name, call in calls_of(session).items():
            assert np.array_equal(call(), expected[name])
            (entry,) = cache.status().models
            assert entry.session["memory_bytes"] <= entry.bytes <= 1.1 * entry.session["memory_bytes"], name
        four, _ = cache.memory_usage()
    with ending(ModelCache((one + four) // 2, name="few copies")) as cache:
        cache.load_model("websr-x2-s")
        cache.load_model(path, max_frame=(SIDE, SIDE))
        session = cache.get_session(path)
        for name, call in [*calls_of(session).items()] * 2:
            assert np.array_equal(call(), expected[name])
            used, budget = cache.memory_usage()
            assert used <= budget

            def is_reserved():
                """What a used process grows by is reserved when the cache looks next."""
                entry = next(entry for entry in cache.status().models if entry.model_id == str(path))
                return entry.session["memory_bytes"] <= entry.bytes

            wait_until(is_reserved)
