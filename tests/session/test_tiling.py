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
    is_uniform=st.booleans(),
)
def test_spans_cover_the_axis_once_with_halo_and_aligned_origins(length, tile, overlap, stride, is_uniform):
    spans = split_length(length, tile, overlap, stride, is_uniform=is_uniform)
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
    if is_uniform and len(spans) > 1 and (length - longest_span(tile, overlap, stride)) % stride == 0:
        assert sizes | {spans[-1].stop - spans[-1].start} == {longest_span(tile, overlap, stride)}


def longest_span(tile, overlap, stride):
    """Return the length of uniform spans: a multiple of the stride that keeps something between two halos."""
    halo = -(-overlap // stride) * stride
    return max(tile // stride * stride, 2 * halo + 4 * stride)


def test_a_frame_that_fits_is_one_tile():
    (tile,) = split_frame(144, 176, 256, 7)
    assert (tile.rows.stop, tile.columns.stop) == (144, 176)


def test_a_4k_frame_is_cut_row_by_row_into_tiles_of_one_shape():
    tiles = split_frame(2160, 3840, 256, 7)
    assert {(t.rows.stop - t.rows.start, t.columns.stop - t.columns.start) for t in tiles} == {(253, 254)}
    assert [t.rows.start for t in tiles] == sorted(t.rows.start for t in tiles)


def test_frames_of_all_sizes_have_uniform_tiles_of_one_shape():
    """One engine of TensorRT computes all of them."""
    shapes = set()
    for height, width in ((720, 1280), (1080, 1920), (2160, 3840), (480, 853), (257, 300)):
        tiles = split_frame(height, width, 256, 7, is_uniform=True)
        shapes |= {tile.shape for tile in tiles}
        assert len(tiles) <= 1.5 * len(split_frame(height, width, 256, 7))
    assert shapes == {(256, 256)}
