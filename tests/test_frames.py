"""Frames enter and leave Arrow without a copy."""

import numpy as np
import pyarrow as pa
import pytest

from genai_ray import errors
from genai_ray.frames import append_results, build_table, from_column, iter_frames, to_column


def address(array):
    return array.__array_interface__["data"][0]


def test_no_copy_in_either_direction(frames):
    column = to_column(frames)
    assert column.type == pa.fixed_shape_tensor(pa.uint8(), [49, 61, 3])
    assert column.storage.values.buffers()[1].address == address(frames)
    (view,) = from_column(column)
    assert address(view) == address(frames)
    assert not view.flags.writeable
    (part,) = from_column(column.slice(1, 2))
    assert address(part) == address(frames[1:])


def test_a_table_holds_frames_and_results(frames):
    table = build_table(frames, video="a.mp4", frame_index=[4, 5, 6], pts=[40, 50, 60], time_base="1/10")
    assert table.column_names == ["video", "frame_index", "pts", "time_base", "frame"]
    (view,) = iter_frames(table)
    assert address(view) == address(frames)
    outputs = [frames[:2].repeat(2, axis=1), frames[2:].repeat(2, axis=1)]
    result = append_results(table, outputs, np.array([1.0, 1.0, 2.0]))
    views = from_column(result.column("output"))
    assert [address(view) for view in views] == [address(output) for output in outputs]
    assert result.column("latency_ms").to_pylist() == [1.0, 1.0, 2.0]


def test_a_strided_array_does_not_make_a_permuted_type(frames):
    column = to_column(frames.transpose(0, 2, 1, 3))
    assert column.type.permutation in (None, [0, 1, 2])
    assert np.array_equal(from_column(column)[0], frames.transpose(0, 2, 1, 3))


def test_no_frames_and_several_chunks(frames):
    assert from_column(to_column(frames[:0])) == []
    chunks = from_column(pa.chunked_array([to_column(frames[:1]), to_column(frames[1:])]))
    assert [len(chunk) for chunk in chunks] == [1, 2]


def test_what_is_refused(frames):
    with pytest.raises(errors.InvalidInputError, match=r"\(N, H, W, C\)"):
        to_column(frames[0])
    with pytest.raises(errors.InvalidInputError, match="int64"):
        from_column(pa.array([1, 2]))
    with pytest.raises(errors.InvalidInputError, match="column 'frame'"):
        list(iter_frames(pa.table({"a": [1]})))
    with pytest.raises(errors.InvalidInputError, match="3 frames with 1"):
        build_table(frames, video="", frame_index=[0], pts=[0, 1, 2], time_base="1/1")
    table = build_table(frames, video="", frame_index=[0, 1, 2], pts=[0, 1, 2], time_base="1/1")
    with pytest.raises(errors.InvalidInputError, match="for frames of one shape"):
        append_results(table, [frames[:1], frames[1:, :8]], np.ones(3))
