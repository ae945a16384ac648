"""Tiles cover a frame exactly once, with halos, at aligned origins."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from genai_ray.session.tiling import split_frame, split_length


@given(
    length=st.integers(1, 5000),
    tile=st.integers(1, 700),
    overlap=st.integers(0, 64),
    stride=st.sampled_from([1, 2, 4, 8, 32]),
)
def test_spans_cover_the_axis_once_with_halo_and_aligned_origins(length, tile, overlap, stride):
    spans = split_length(length, tile, overlap, stride)
    longest = max(tile, 2 * (overlap + stride) + 4 * stride)
    assert spans[0].keep_start == 0
    assert spans[-1].keep_stop == length
    for span in spans:
        assert 0 <= span.start <= span.keep_start < span.keep_stop <= span.stop <= length
        assert span.start % stride == 0
        assert span.stop - span.start <= longest + stride
        assert span.start == 0 or span.keep_start - span.start >= overlap
        assert span.stop == length or span.stop - span.keep_stop >= overlap
    for left, right in itertools.pairwise(spans):
        assert left.keep_stop == right.keep_start
    sizes = {span.stop - span.start for span in spans[:-1]} or {length}
    assert len(sizes) == 1


def test_a_frame_that_fits_is_one_tile():
    (tile,) = split_frame(144, 176, 256, 7)
    assert (tile.rows.stop, tile.columns.stop) == (144, 176)


def test_a_4k_frame_is_cut_row_by_row_into_tiles_of_one_shape():
    tiles = split_frame(2160, 3840, 256, 7)
    assert {(t.rows.stop - t.rows.start, t.columns.stop - t.columns.start) for t in tiles} == {(253, 254)}
    assert [t.rows.start for t in tiles] == sorted(t.rows.start for t in tiles)
