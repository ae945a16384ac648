"""``read_videos``: the frames of many videos as blocks of one shape, only those that are asked for."""

import io
import logging
import math

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import ray
import ray.data
from ray._private.log import PlainRayHandler

from genai_ray import BatchInference, FrameSelection, InferenceSession, ModelCache, errors, read_videos
from genai_ray.frames import FRAME_COLUMNS, iter_frames
from genai_ray.video import decode_frames, decode_segment, plan_video
from tests.caches import ending
from tests.video.clips import NUM_FRAMES, write


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write(folder / "a.mp4", tracks=0, options={"g": "10", "bf": "2", "sc_threshold": "0"})
    write(folder / "b.mkv", tracks=0, size=(128, 80), options={"g": "8"})
    write(folder / "c.mkv", tracks=0, pix_fmt="yuv420p10le", codec="ffv1", pts=[3, 4, 6, 7, 9])
    (folder / "notes.txt").write_text("no video")
    return folder


def frames_of(path, indices=None):
    plan = plan_video(path)
    found = [frame.frame for segment in plan.segments for frame in decode_segment(plan, segment)]
    return np.stack(found if indices is None else [found[index] for index in indices])


def tables_of(dataset):
    """The blocks of a dataset, those with rows."""
    return [table for table in ray.get(dataset.to_arrow_refs()) if table.num_rows]


def frames_in(tables, video):
    rows = pa.concat_tables(
        [
            table.filter(pa.compute.equal(table["video"], str(video)))
            for table in tables
            if str(video) in table["video"].to_pylist()
        ]
    )
    rows = (
        rows.take(pa.compute.sort_indices(rows, [("frame_index", "ascending")]))
        if "frame" not in rows.column_names
        else rows
    )
    order = np.argsort(rows["frame_index"].to_numpy())
    return rows["frame_index"].to_numpy()[order].tolist(), np.concatenate(list(iter_frames(rows)))[order]


def test_every_frame_of_a_folder_in_blocks_of_one_shape(ray_session, clips):
    tables = tables_of(read_videos(clips, batch_size=6, segment_frames=13))
    assert all(tuple(table.column_names) == FRAME_COLUMNS for table in tables)
    assert {str(table.schema.field("frame").type) for table in tables} == {
        str(pa.fixed_shape_tensor(pa.uint8(), [64, 96, 3])),
        str(pa.fixed_shape_tensor(pa.uint8(), [80, 128, 3])),
        str(pa.fixed_shape_tensor(pa.uint16(), [64, 96, 3])),
    }
    assert len(tables) > 9  # several to a video
    for name in ("a.mp4", "b.mkv", "c.mkv"):
        indices, frames = frames_in(tables, clips / name)
        assert indices == list(range(len(frames)))
        assert np.array_equal(frames, frames_of(clips / name))
    alike = tables_of(read_videos(clips / "b.mkv", batch_size=6, segment_frames=100))
    assert sorted(table.num_rows for table in alike) == [4, 6, 6, 6, 6, 6, 6]


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        (FrameSelection(every=7), list(range(0, NUM_FRAMES, 7))),
        (FrameSelection(keys_only=True), [0, 10, 20, 30]),
        (FrameSelection(ranges_s=((0.2, 0.4), (1.0, 1.1))), [5, 6, 7, 8, 9, 25, 26, 27]),
        (FrameSelection(every=3, ranges_s=((1.0, 99.0),)), [27, 30, 33, 36, 39]),
        (FrameSelection(every=20, keys_only=True), [0, 20]),
    ],
)
def test_frames_are_chosen_in_the_plan(ray_session, clips, selection, wanted):
    dataset = read_videos(clips / "a.mp4", selection=selection, segment_frames=16)
    assert dataset.count() == len(wanted)
    indices, frames = frames_in(tables_of(dataset), clips / "a.mp4")
    assert indices == wanted
    assert np.array_equal(frames, frames_of(clips / "a.mp4", wanted))


def test_columns_are_pushed_into_the_plan(ray_session, clips, tmp_path):
    dataset = read_videos(clips, columns=["video", "pts"])
    assert sum(table.num_rows for table in tables_of(dataset)) == 2 * NUM_FRAMES + 5
    broken = tmp_path / "a.mkv"  # packets are there, pictures are not: whoever decodes them finds out
    data = (clips / "b.mkv").read_bytes()
    plan = plan_video(clips / "b.mkv")
    with av.open(str(clips / "b.mkv")) as box:
        for packet in list(box.demux(box.streams.video[0]))[
            20:-1
        ]:  # the first ones are decoded to learn what they are like
            data = data.replace(bytes(packet), b"\xff" * packet.size)
    broken.write_bytes(data)
    with pytest.raises(errors.VideoError, match="Invalid data"):
        read_videos(broken).take_all()
    rows = read_videos(broken).select_columns(["frame_index"]).take_all()
    assert [row["frame_index"] for row in rows] == list(range(len(plan.pts)))
    assert "frame" not in read_videos(broken).select_columns(["frame_index"]).schema().names


@pytest.mark.slow
def test_models_map_over_it_and_it_is_written(ray_session, clips, tmp_path):
    with ending(ModelCache(2_000_000_000, name="datasets")) as cache:
        dataset = read_videos([clips / "a.mp4", clips / "b.mkv"], selection=FrameSelection(every=8), batch_size=3)
        mapped = dataset.map_batches(
            BatchInference,
            fn_constructor_kwargs={"model": "websr-x2-s", "cache_name": cache.name},
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        mapped.write_parquet(str(tmp_path / "results"))
    files = sorted((tmp_path / "results").glob("*.parquet"))
    tables = [pyarrow.parquet.read_table(file) for file in files]
    assert sum(table.num_rows for table in tables) == 2 * math.ceil(NUM_FRAMES / 8)
    with InferenceSession("websr-x2-s") as session:
        for name in ("a.mp4", "b.mkv"):
            own = [table for table in tables if str(clips / name) in table["video"].to_pylist()]
            indices = [index for table in own for index in table["frame_index"].to_pylist()]
            outputs = np.concatenate([array for table in own for array in iter_frames(table, "output")])
            wanted = session.infer(frames_of(clips / name, indices))
            assert sorted(indices) == list(range(0, NUM_FRAMES, 8))
            assert np.array_equal(outputs, wanted)


def test_chosen_frames_equal_those_of_a_whole_decode(clips):
    plan = plan_video(clips / "a.mp4")
    everything = frames_of(clips / "a.mp4")
    for indices in ([39], [0, 39], [11, 12, 38], list(plan.keys)):
        frames = list(decode_frames(plan, indices))
        assert [frame.index for frame in frames] == indices
        assert [frame.pts for frame in frames] == [plan.pts[index] for index in indices]
        assert np.array_equal(np.stack([frame.frame for frame in frames]), everything[indices])


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"columns": ["picture"]}, errors.ConfigError, "picture"),
        ({"columns": []}, errors.ConfigError, "columns"),
        ({"batch_size": 0}, errors.ConfigError, "batch_size=0"),
        ({"paths": []}, errors.ConfigError, "at least one video is required"),
        ({"paths": "missing.mp4"}, errors.VideoError, "missing.mp4: no such file"),
        ({"paths": "*.webm"}, errors.VideoError, "no video matches"),
    ],
)
def test_what_is_refused(ray_session, clips, arguments, kind, words):
    paths = arguments.pop("paths", clips)
    with pytest.raises(kind, match=words.replace("*", r"\*")):
        read_videos(paths, **arguments)


def test_a_selection_is_checked_when_it_is_made():
    with pytest.raises(errors.ConfigError, match="every=0; allowed: 1 or more"):
        FrameSelection(every=0)
    with pytest.raises(errors.ConfigError, match=r"ranges \(\(2, 1\),\); allowed: pairs of seconds"):
        FrameSelection(ranges_s=((2, 1),))


def test_ray_data_tells_of_its_runs_in_its_log_alone(ray_session, clips, monkeypatch):
    printed = io.StringIO()
    log = logging.getLogger("ray.data")
    (console,) = [one for one in log.handlers if isinstance(one, PlainRayHandler)]
    monkeypatch.setattr(console, "stream", printed)
    read_videos(clips).take(1)
    log.warning("a fault")
    assert [line.rpartition("-- ")[2] for line in printed.getvalue().splitlines()] == ["a fault"]
