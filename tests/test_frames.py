"""Frames enter and leave Arrow without a copy."""

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from genai_ray import errors, psnr
from genai_ray.frames import (
    FILES_AT_A_TIME,
    append_results,
    build_table,
    encode_frames,
    from_column,
    iter_frames,
    to_column,
)
from genai_ray.video import decode_pixels, encode_pixels, read_picture


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


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_files_are_the_frames_whatever_their_kind(dtype, channels):
    values = np.random.default_rng(7).integers(0, np.iinfo(dtype).max, (5, 37, 23, channels), dtype, endpoint=True)
    table = encode_frames(pa.table({"frame": to_column(values), "name": list("abcde")}), "png")
    assert table.schema.names == ["frame", "name"]
    assert table.schema.field("frame").type == pa.binary()
    assert np.array_equal(np.concatenate(from_column(table.column("frame"))), values)
    again = encode_frames(table)
    assert again.column("frame").to_pylist() == table.column("frame").to_pylist()
    for batch in ({"frame": values}, pd.DataFrame({"frame": list(values)})):
        files = encode_frames(batch)
        assert type(files) is type(batch)
        assert np.array_equal(np.concatenate(list(iter_frames(files))), values)


def smooth(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, rows + columns], axis=-1).clip(0, 255).astype(np.uint8)


def test_jpeg_files_are_near_the_frames(tmp_path):
    picture = smooth(75, 101)
    (found,) = from_column(encode_frames(pa.table({"frame": to_column(picture[None])}), "jpeg").column("frame"))
    assert found.shape == (1, 75, 101, 3)
    assert 40 < psnr(picture[None], found) < np.inf
    path = tmp_path / "a.jpg"
    path.write_bytes(encode_pixels(picture, "jpeg"))
    assert np.array_equal(found[0], read_picture(str(path))[0])
    grey = io.BytesIO()
    Image.fromarray(picture[..., 0]).save(grey, "JPEG", quality=95)
    assert np.abs(decode_pixels(grey.getvalue()).astype(int) - picture[..., :1]).max() < 12
    for wrong in (picture[..., :1], np.dstack([picture, picture[..., :1]]), picture.astype(np.uint16)):
        with pytest.raises(errors.InvalidInputError, match=r"as JPEG; allowed: \(H, W, 3\) uint8. Choose png"):
            encode_frames({"frame": wrong[None]}, "jpeg")
    with pytest.raises(errors.InvalidInputError, match=r"a frame \(4, 6, 2\) as PNG; allowed: \(H, W, 1\), "):
        encode_frames({"frame": np.zeros((1, 4, 6, 2), np.uint16)})  # it could not be read again
    with pytest.raises(errors.ConfigError, match="kind='webp'; allowed: png, jpeg"):
        encode_frames({"frame": picture[None]}, "webp")


def test_files_are_decoded_some_at_a_time_and_join_by_shape():
    many = encode_frames({"frame": np.zeros((FILES_AT_A_TIME + 3, 4, 6, 3), np.uint8)})["frame"]
    other = encode_frames({"frame": np.ones((2, 6, 4, 3), np.uint8)})["frame"]
    column = pa.array([*many, *other], pa.large_binary())
    assert [len(run) for run in from_column(column)] == [FILES_AT_A_TIME, 3, 2]
    decoded = iter_frames(pa.table({"frame": pa.array([*many, b"no picture"], pa.binary())}))
    assert len(next(decoded)) == FILES_AT_A_TIME  # what comes later was not read


def palette():
    file = io.BytesIO()
    Image.fromarray(smooth(8, 8)).quantize(4).save(file, "PNG")
    return file.getvalue()


def claims(width):
    png = bytearray(encode_pixels(smooth(8, 8), "png"))
    png[16:24] = width.to_bytes(4, "big") * 2
    return bytes(png)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"", "0 bytes that are no picture"),
        (b"GIF89a", "no picture; allowed: a PNG or JPEG file"),
        (encode_pixels(smooth(64, 64), "png")[:-60], "a PNG that does not decode"),
        (encode_pixels(smooth(64, 64), "jpeg")[:-60], "a JPEG that does not decode"),
        (claims(1 << 20), "a PNG that does not decode"),
        (palette(), "a PNG of pal8; allowed: grey, RGB or RGBA"),
    ],
)
def test_files_that_are_no_frames_are_refused(file, said):
    with pytest.raises(errors.InvalidInputError, match=said):
        from_column(pa.array([file], pa.binary()))


def test_the_row_of_a_damaged_file_is_told():
    file = encode_pixels(smooth(8, 8), "png")
    column = pa.chunked_array([pa.array([file, file], pa.binary()), pa.array([file, b"GIF89a"], pa.binary())])
    with pytest.raises(errors.InvalidInputError, match=r"^row 3: 6 bytes that are no picture; allowed: a PNG or JPEG"):
        from_column(column)
    with pytest.raises(errors.InvalidInputError, match=r"^row 1: 6 bytes that are no picture"):
        list(iter_frames({"frame": np.array([file, b"GIF89a"], object)}))


def test_a_row_without_a_file_is_told():
    file = encode_pixels(smooth(8, 8), "png")
    with pytest.raises(errors.InvalidInputError, match="1 rows without a frame"):
        from_column(pa.array([file, None], pa.binary()))
    with pytest.raises(errors.InvalidInputError, match="NoneType in row 1, among files"):
        list(iter_frames({"frame": np.array([file, None], object)}))
