"""``BatchInference`` over arrays and over ``Dataset.map_batches``: order, counts, and results that no batch size
changes."""

import io
import math

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.data
from PIL import Image

from genai_ray import BatchInference, InferenceSession, ModelCache, errors
from genai_ray.cluster import FrameRange
from genai_ray.frames import build_table, from_column, iter_frames
from genai_ray.types import ModelBackend
from tests.caches import ending

MODEL = "websr-x2-s"


@pytest.fixture(scope="module")
def cache(ray_session):
    with ending(ModelCache(2_000_000_000, name="batches")) as cache:
        cache.load_model(MODEL)
        yield cache


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(5).integers(0, 256, (10, 40, 52, 3), np.uint8)


@pytest.fixture(scope="module")
def expected(clip):
    with InferenceSession(MODEL) as session:
        return session.infer(clip)


def table_of(frames, start):
    numbers = list(range(start, start + len(frames)))
    return build_table(
        frames, video="clip.mp4", frame_index=numbers, pts=[40 * number for number in numbers], time_base="1/1000"
    )


def test_a_dataset_is_mapped_in_order(cache, clip, expected):
    tables = [table_of(clip[start : start + 4], start) for start in range(0, 10, 4)]
    calls = cache.get_session(MODEL).runtime_calls
    mapped = ray.data.from_arrow(tables).map_batches(
        BatchInference,
        fn_constructor_kwargs={"model": MODEL, "batch_size": 3, "cache_name": cache.name},
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    result = pa.concat_tables(ray.get(mapped.to_arrow_refs())).sort_by("frame_index")
    assert result.column_names == ["video", "frame_index", "pts", "time_base", "frame", "output", "latency_ms"]
    assert result.column("output").type == pa.fixed_shape_tensor(pa.uint8(), [80, 104, 3])
    assert result.column("frame").type == pa.fixed_shape_tensor(pa.uint8(), [40, 52, 3])
    assert result.column("pts").to_pylist() == [40 * number for number in range(10)]
    assert np.array_equal(np.concatenate(from_column(result.column("output"))), expected)
    assert min(result.column("latency_ms").to_pylist()) > 0
    status = cache.get_session(MODEL).status()
    assert status["runtime_calls"] - calls == sum(math.ceil(n / status["run_batch"]) for n in (3, 1, 3, 1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [(1, 4), 2])
def test_map_sets_what_ray_data_needs(cache, clip, expected, concurrency):
    tables = [table_of(clip[start : start + 2], start) for start in range(0, 10, 2)]
    batch = BatchInference(MODEL, batch_size=3, cache_name=cache.name)
    mapped = batch.map(ray.data.from_arrow(tables), concurrency=concurrency)
    result = pa.concat_tables(ray.get(mapped.to_arrow_refs())).sort_by("frame_index")
    assert result.column_names == ["video", "frame_index", "pts", "time_base", "frame", "output", "latency_ms"]
    assert result.column("output").type == pa.fixed_shape_tensor(pa.uint8(), [80, 104, 3])
    assert np.array_equal(np.concatenate(from_column(result.column("output"))), expected)


@pytest.mark.slow
def test_map_passes_on_every_option(cache, clip):
    noisy = ray.data.from_arrow(table_of(clip[:2], 0))
    batch = BatchInference("ffdnet", params={"sigma": 0.2}, cache_name=cache.name)
    found = np.stack([row["output"] for row in batch.map(noisy).take_all()])  # one actor, as by default
    with InferenceSession("ffdnet") as session:
        assert np.array_equal(found, session.infer(clip[:2], {"sigma": 0.2}))
        assert not np.array_equal(found, session.infer(clip[:2]))
    for concurrency in (0, (0, 2), (3, 2)):
        with pytest.raises(errors.ConfigError, match="concurrency="):
            BatchInference(MODEL).map(noisy, concurrency=concurrency)


def test_a_table_passes_without_a_copy_in_this_process(cache, clip, expected):
    table = table_of(clip, 0)
    result = BatchInference(MODEL, batch_size=10, cache_name=cache.name)(table)
    assert next(iter_frames(result)).__array_interface__["data"][0] == clip.__array_interface__["data"][0]
    (output,) = from_column(result.column("output"))
    assert not output.flags.owndata
    assert np.array_equal(output, expected)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 64])
def test_results_do_not_depend_on_the_batch_size(cache, clip, expected, batch_size):
    results = BatchInference(MODEL, batch_size=batch_size).process_batch(cache, list(clip))
    assert [result.frame_index for result in results] == list(range(10))
    assert all(np.array_equal(result.output, one) for result, one in zip(results, expected, strict=True))
    assert all(result.latency_ms > 0 for result in results)


@pytest.mark.parametrize("run_batch", [1, 2, 3, 4, 10])
def test_runtime_calls_are_n_over_run_batch_and_results_the_same(clip, expected, run_batch):
    with InferenceSession(MODEL) as session:
        session.run_batch = run_batch
        assert np.array_equal(session.infer(clip), expected)
        assert session.runtime_calls == math.ceil(len(clip) / run_batch)


def test_every_frame_reaches_the_session_once(cache, clip):
    session = cache.get_session(MODEL)
    before = session.inference_count
    batch = BatchInference(MODEL, batch_size=4)
    batch.process_batch(cache, list(clip))
    assert session.inference_count - before == batch.frames_done == 10


def test_interpolation_gives_one_frame_a_pair(cache, clip):
    frames = list(clip[:5, :32, :32])
    with InferenceSession("rife") as session:
        wanted = session.infer(np.ascontiguousarray(np.stack(frames)))
    results = BatchInference("rife", batch_size=2).process_batch(cache, frames)
    assert [result.frame_index for result in results] == [0, 1, 2, 3]
    assert np.array_equal(np.stack([result.output for result in results]), wanted)
    with pytest.raises(errors.InvalidInputError, match="one shape"):
        BatchInference("rife").process_batch(cache, [clip[0], clip[1][:20]])
    with pytest.raises(errors.InvalidInputError, match="interpolates"):
        BatchInference("rife", cache_name=cache.name)(table_of(clip, 0))


def test_some_frames_of_two_batches_go_on_by_reference(cache, clip, expected):
    session = cache.get_session(MODEL)
    first, second = session.submit(clip[:6]), session.submit(clip[6:])
    with InferenceSession(MODEL) as alone:
        for start, stop in ((0, 4), (2, 6), (4, 8), (7, 10)):
            pending = session.submit(FrameRange((first, second), start, stop))
            assert pending.num_frames == stop - start
            assert np.array_equal(pending.result(), alone.infer(expected[start:stop]))
    cache.evict(MODEL)  # what it had made is ours, not the session's
    assert np.array_equal(session.submit(FrameRange((first, second), 5, 7)).result()[0], session.infer(expected[5]))


def test_what_is_refused(cache, clip):
    with pytest.raises(errors.ConfigError, match="batch_size=0"):
        BatchInference(MODEL, batch_size=0)
    with pytest.raises(errors.ConfigError, match="open"):
        BatchInference(MODEL).submit(clip)
    with pytest.raises(errors.InvalidInputError, match="no frames"):
        BatchInference(MODEL).process_batch(cache, [])
    with pytest.raises(errors.InvalidInputError, match=r"\(H, W, 3\) each"):
        BatchInference(MODEL).process_batch(cache, [clip])
    with pytest.raises(errors.InvalidInputError, match="rows"):
        BatchInference(MODEL, cache_name=cache.name)(table_of(clip[:0], 0))
    floats = clip[0].astype(np.float32)
    floats[0, 0, 0] = np.nan
    with pytest.raises(errors.InvalidInputError, match="nan"):
        BatchInference(MODEL).process_batch(cache, [floats])


def rows_of(clip):
    """Frames of two sizes in turn, as users of Ray Data write them."""
    return [
        {"name": f"{number}", "frame": frame if number % 3 else frame[:24, :32].copy()}
        for number, frame in enumerate(clip)
    ]


def columns_of(rows):
    """The batches of Ray Data in its three formats, made as it makes them."""
    blocks = {"numpy": ray.data.from_items(rows).take_batch(len(rows))}
    for name in ("pandas", "pyarrow"):
        blocks[name] = ray.data.from_items(rows).take_batch(len(rows), batch_format=name)
    return blocks


@pytest.mark.parametrize("is_mixed", [False, True])
def test_batches_of_every_format_are_taken_and_given_back_in_it(cache, clip, is_mixed):
    rows = rows_of(clip) if is_mixed else [{"name": f"{number}", "frame": frame} for number, frame in enumerate(clip)]
    batch = BatchInference(MODEL, batch_size=3, cache_name=cache.name)
    with InferenceSession(MODEL) as session:
        expected = [session.infer(row["frame"]) for row in rows]
    for name, columns in columns_of(rows).items():
        result = batch(columns)
        assert type(result) is type(columns), name
        assert list(result.columns if name == "pandas" else result.column_names if name == "pyarrow" else result) == [
            "name",
            "frame",
            "output",
            "latency_ms",
        ]
        again = (
            ray.data.from_arrow(result)
            if name == "pyarrow"
            else ray.data.from_pandas(result)
            if name == "pandas"
            else None
        )
        outputs = [row["output"] for row in again.take_all()] if again is not None else list(result["output"])
        assert all(np.array_equal(found, wanted) for found, wanted in zip(outputs, expected, strict=True)), name
        assert min(result["latency_ms"].to_pylist() if name == "pyarrow" else result["latency_ms"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"batch_size": None}, {"batch_format": "pandas"}, {"batch_format": "pyarrow", "batch_size": None}]
)
def test_a_dataset_of_mixed_sizes_is_mapped_with_rays_defaults(cache, clip, options):
    with InferenceSession(MODEL) as session:
        expected = {row["name"]: session.infer(row["frame"]) for row in rows_of(clip)}
    mapped = ray.data.from_items(rows_of(clip), override_num_blocks=2).map_batches(
        BatchInference,
        fn_constructor_kwargs={"model": MODEL, "cache_name": cache.name},
        compute=ray.data.ActorPoolStrategy(size=1),
        **options,
    )
    found = {row["name"]: row["output"] for row in mapped.take_all()}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], wanted) for name, wanted in expected.items())


def test_what_no_batch_may_be_is_said(cache, clip):
    batch = BatchInference(MODEL, cache_name=cache.name)
    once = batch(table_of(clip[:2], 0))
    with pytest.raises(
        errors.InvalidInputError, match=r"the columns \['output', 'latency_ms'\] already.*rename_columns"
    ):
        batch(once)
    numpy_once = batch({"frame": clip[:2]})
    with pytest.raises(errors.InvalidInputError, match="already"):
        batch(numpy_once)
    again = batch({"frame": numpy_once["output"]})
    assert again["output"].shape == (2, 160, 208, 3)
    with pytest.raises(errors.InvalidInputError, match=r"the columns \['image'\].*'frame'.*rename_columns"):
        batch({"image": clip})
    with pytest.raises(errors.InvalidInputError, match=r"a batch of type list.*pyarrow\.Table"):
        batch([clip])
    with pytest.raises(errors.InvalidInputError, match="rows"):
        batch({"frame": clip[:0]})
    with pytest.raises(errors.InvalidInputError, match="column 'frame'"):
        batch({"frame": np.array(["a.png", "b.png"])})
    nothing = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.uint8(), [1, 1, 3]), pa.array([[1, 2, 3], None], pa.list_(pa.uint8(), 3))
    )
    with pytest.raises(errors.InvalidInputError, match="without a frame"):
        batch(pa.table({"frame": nothing}))


@pytest.mark.slow
def test_results_as_png_are_the_frames_and_small_in_parquet(cache, clip, expected, tmp_path):
    batch, small = (
        BatchInference(MODEL, batch_size=4, cache_name=cache.name),
        {"keep_frames": False, "encode_as": "png"},
    )
    batch.map(ray.data.from_arrow(table_of(clip, 0)), **small).write_parquet(tmp_path / "out")
    dataset = ray.data.read_parquet(tmp_path / "out")
    rows = sorted(dataset.take_all(), key=lambda row: row["frame_index"])
    assert list(rows[0]) == ["video", "frame_index", "pts", "time_base", "output", "latency_ms"]
    assert all(np.array_equal(pixels_of(row["output"]), wanted) for row, wanted in zip(rows, expected, strict=True))
    again = pa.concat_tables(ray.get(dataset.to_arrow_refs())).sort_by("frame_index")
    assert np.array_equal(np.concatenate(from_column(again.column("output"))), expected)
    second = batch(again.drop_columns("latency_ms").rename_columns({"output": "frame"}))  # a model takes the files
    with InferenceSession(MODEL) as session:
        assert np.array_equal(np.concatenate(from_column(second.column("output"))), session.infer(expected))
    both = batch(table_of(clip, 0), encode_as="jpeg")
    for column, wanted in (("frame", clip), ("output", expected)):
        assert both.schema.field(column).type == pa.binary()
        (found,) = from_column(both.column(column))
        assert found.shape == wanted.shape
    for name, columns in columns_of([{"name": "a", "frame": frame} for frame in clip[:2]]).items():
        result = batch(columns, **small)
        names = list(result.columns if name == "pandas" else result.column_names if name == "pyarrow" else result)
        assert names == ["name", "output", "latency_ms"]
        files = result["output"].to_pylist() if name == "pyarrow" else list(result["output"])
        assert np.array_equal(pixels_of(files[1]), expected[1])
    deep_frames = clip[:1].astype(np.uint16) * 257
    deep = batch({"frame": deep_frames}, encode_as="png")
    with InferenceSession(MODEL) as session:
        assert np.array_equal(next(iter_frames(deep, "output")), session.infer(deep_frames))
    assert np.array_equal(next(iter_frames(deep)), deep_frames)
    with pytest.raises(errors.InvalidInputError, match="float32 as PNG"):
        batch({"frame": clip[:1].astype(np.float32) / 255}, encode_as="png")
    with pytest.raises(errors.InvalidInputError, match="uint16 as JPEG"):
        batch({"frame": deep_frames}, encode_as="jpeg")
    for call in (batch, batch.map):
        with pytest.raises(errors.ConfigError, match="encode_as='webp'; allowed: png, jpeg"):
            call(ray.data.from_arrow(table_of(clip, 0)), encode_as="webp")


def pixels_of(file):
    return np.asarray(Image.open(io.BytesIO(file)))


def test_words_of_options_are_taken_or_refused_at_once():
    assert BatchInference(MODEL, backend="openvino").backend is ModelBackend.OPENVINO
    with pytest.raises(errors.ConfigError, match="backend='tf'; allowed: onnx"):
        BatchInference(MODEL, backend="tf")
