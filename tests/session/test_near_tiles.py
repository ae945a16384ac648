"""Tiles with a halo smaller than the receptive field, and frames with reflected edges: always the same, and near."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from genai_ray import EnhanceOptions, InferenceSession, ModelBackend, SessionLimits, errors
from genai_ray.catalog import ModelSpec, TensorSpec, TileSpec, dump_spec, load_spec
from genai_ray.cluster import SessionRequest
from genai_ray.cluster.client.requests import to_request
from genai_ray.enhance.plan.options import check_models
from genai_ray.session import describe_seams
from genai_ray.session.tiling import split_frame
from genai_ray.types import ModelPrecision, ModelTask

TILE, HALO, RADIUS, EDGE = 40, 6, 14, 5


def save(folder, **fields):
    """A net of x2 that blurs over 29 pixels with weights that fall off, with a spec beside it."""
    falling = 0.5 ** np.abs(np.arange(-RADIUS, RADIUS + 1))
    kernel = np.zeros((12, 3, 2 * RADIUS + 1, 2 * RADIUS + 1), np.float32)
    for channel in range(12):
        kernel[channel, channel % 3] = np.outer(falling, falling) / falling.sum() ** 2
    pads = [RADIUS] * 4
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=pads),
        helper.make_node("DepthToSpace", ["c"], ["y"], blocksize=2),
    ]
    ends = [helper.make_tensor_value_info(name, 1, ["n", 3, f"h{name}", f"w{name}"]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(kernel, "k")])
    path = folder / "blur.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    spec = ModelSpec(
        model_id="blur",
        task=ModelTask.UPSCALING,
        file=str(path),
        inputs=(TensorSpec(),),
        outputs=(TensorSpec(),),
        scale=2,
        receptive_field_px=RADIUS,
        tiles=TileSpec(size_px=TILE, halo_px=HALO, error_levels=2.0),
        edge_px=EDGE,
    )
    path.with_suffix(".yaml").write_text(dump_spec(spec.model_copy(update=fields)))
    return path


@pytest.fixture(scope="module")
def blur(tmp_path_factory):
    return save(tmp_path_factory.mktemp("near"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save(tmp_path_factory.mktemp("whole"), tiles=None)


PICTURES = np.random.default_rng(0).integers(0, 256, (3, 50, 90, 3), np.uint8)


@pytest.fixture(scope="module")
def expected(blur):
    with InferenceSession(blur, threads=1) as session:
        return session.infer(PICTURES)


def raw(session, frames):
    """The net alone, by its own tensors."""
    tensor = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).astype(np.float32) / 255
    return np.rint(np.clip(session.run({"x": tensor})["y"] * 255, 0, 255)).astype(np.uint8).transpose(0, 2, 3, 1)


def test_a_frame_is_reflected_and_cut_into_the_tiles_of_its_spec(blur, expected):
    pads = [(0, 0), (EDGE, EDGE), (EDGE, EDGE), (0, 0)]
    padded = np.pad(PICTURES, pads, mode="reflect")
    large = np.zeros((3, 2 * padded.shape[1], 2 * padded.shape[2], 3), np.uint8)
    tiles = split_frame(*padded.shape[1:3], TILE, HALO)
    assert len(tiles) == 2 * 4
    with InferenceSession(blur, threads=1) as session:
        for tile in tiles:
            rows, columns = tile.rows, tile.columns
            assert max(rows.stop - rows.start, columns.stop - columns.start) <= TILE
            part = raw(session, padded[:, rows.start : rows.stop, columns.start : columns.stop])
            kept = part[:, rows.kept_of_tile(2), columns.kept_of_tile(2)]
            large[:, rows.kept_of_frame(2), columns.kept_of_frame(2)] = kept
    difference = np.abs(large[:, 2 * EDGE : -2 * EDGE, 2 * EDGE : -2 * EDGE].astype(np.int16) - expected)
    assert (difference.max() <= 1, (difference > 0).mean() < 1e-3) == (True, True)  # of rounding 8-bit frames to 0..1


@pytest.mark.parametrize("threads", [2, 8])
def test_the_result_is_the_same_for_any_threads_batch_and_memory(blur, expected, threads):
    limits = SessionLimits(
        max_bytes=None if threads == 2 else 200_000_000, max_frame=(50, 90) if threads == 8 else None
    )
    with InferenceSession(blur, threads=threads, limits=limits) as session:
        assert np.array_equal(session.infer(PICTURES), expected)
        assert np.array_equal(session.infer(PICTURES[1]), expected[1])
        assert session.runtime_calls == 4 * 8
        assert session.tile_size_px == TILE


def test_openvino_computes_the_same_tiles(blur, expected):
    with InferenceSession(blur, backend=ModelBackend.OPENVINO, threads=2) as session:
        found = session.infer(PICTURES)
        assert session.runtime_calls == 3 * 8
        assert np.array_equal(session.infer(PICTURES[0]), found[0])
    assert np.abs(found.astype(np.int16) - expected).max() <= 1


def test_tiles_are_as_near_to_the_whole_frame_as_a_note_says(blur, whole):
    frames = PICTURES[0].astype(np.float32) / 255
    with InferenceSession(blur) as near, InferenceSession(whole) as exact:
        error = 255 * np.abs(near.infer(frames) - exact.infer(frames)).max()
        (note,) = near.notes
        assert (exact.runtime_calls, exact.notes) == (1, ())
        stated = near.spec.tiles.error_levels
    assert stated / 100 < error < stated
    assert note == (
        "blur.onnx computes tiles of 40 px with a halo of 6 px, and its receptive field reaches 14 px: "
        "results differ from those of whole frames by at most 2 of 255 levels, as measured"
    )
    spec = load_spec(blur.with_suffix(".yaml"))
    assert describe_seams(spec, (TILE - 2 * EDGE, 9)) is None
    assert describe_seams(spec, (TILE - 2 * EDGE + 1, 9)) is not None
    unknown = spec.model_copy(update={"receptive_field_px": None, "tiles": TileSpec(size_px=TILE, halo_px=HALO)})
    assert describe_seams(unknown).endswith("field is the whole frame: results differ from those of whole frames by an "
                                            "unknown amount")  # fmt: skip


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (6, 25), (30, 30)])
def test_small_frames_are_reflected_as_far_as_they_go(blur, size):
    frame = PICTURES[:1, : size[0], : size[1]]
    padded = frame
    for axis in (1, 2):
        reflected = min(EDGE, size[axis - 1] - 1)
        for mode, count in (("reflect", reflected), ("edge", EDGE - reflected)):
            padded = np.pad(padded, [(count, count) if each == axis else (0, 0) for each in range(4)], mode=mode)
    with InferenceSession(blur, threads=1) as session:
        cropped = raw(session, padded)[:, 2 * EDGE : -2 * EDGE, 2 * EDGE : -2 * EDGE]
        assert np.abs(session.infer(frame).astype(np.int16) - cropped).max() <= 1


def test_the_lines_of_tiles_are_those_of_the_frame(blur):
    with InferenceSession(blur) as session:
        rows, columns = session.tile_lines(50, 90)
        tiles = split_frame(50 + 2 * EDGE, 90 + 2 * EDGE, TILE, HALO)
        assert rows == tuple(sorted({tile.rows.keep_start - EDGE for tile in tiles if tile.rows.keep_start}))
        assert columns == tuple(sorted({tile.columns.keep_start - EDGE for tile in tiles if tile.columns.keep_start}))
        assert session.tile_lines(TILE - 2 * EDGE, 20) == ((), ())


@pytest.mark.parametrize(("asked", "got"), [(0, "no tiles"), (128, "tiles of 128 px")])
def test_other_tiles_are_refused_wherever_they_are_asked_for(blur, asked, got):
    words = f"{got} for .*blur.onnx, whose results depend on its tiles; allowed: 40 px, or automatic"
    with pytest.raises(errors.ConfigError, match=words):
        InferenceSession(blur, limits=SessionLimits(tile_size_px=asked))
    with pytest.raises(errors.ConfigError, match=words):
        check_models(["websr-x2-s", blur], EnhanceOptions(tile_size_px=asked))
    with pytest.raises(errors.ConfigError, match=words):
        to_request(SessionRequest(str(blur), ModelBackend.ONNX, ModelPrecision.FP32, tile_size_px=asked))
    check_models(blur, EnhanceOptions(tile_size_px=TILE))


def test_too_little_memory_is_refused_and_changes_no_tiles(blur):
    with pytest.raises(errors.ResourceExhaustedError, match="too little for tiles of 40 px"):
        InferenceSession(blur, limits=SessionLimits(max_bytes=10_000))


def test_a_warm_up_is_one_run_of_the_largest_tile(blur, monkeypatch):
    with InferenceSession(blur, threads=2) as session:
        ran = []
        with session._variants.use("uint8", int) as runtime:
            run = runtime.run
            monkeypatch.setattr(
                runtime, "run", lambda feeds, into=None: ran.append(feeds["frames"].shape) or run(feeds, into)
            )
        session.warmup()
        assert ran == [(1, TILE, TILE, 3)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tiles: {size_px: 39, halo_px: 12}", "halo of 12 px need a size_px of 40 or more"),
        ("tiles: {size_px: 64, halo_px: -1}", "halo_px"),
        ("tiles: {size_px: 64, halo_px: 4}\ntask: interpolation", "single frames of any size"),
        ("tiles: {size_px: 64, halo_px: 4}\ninputs: [{height: 64}]", "single frames of any size"),
        ("edge_px: -1", "edge_px"),
    ],
)
def test_a_spec_of_impossible_tiles_is_refused(tmp_path, text, words):
    path = tmp_path / "spec.yaml"
    path.write_text(f"model_id: a\nfile: a.onnx\n{text}\n")
    with pytest.raises(errors.ConfigError, match=words):
        load_spec(path)
