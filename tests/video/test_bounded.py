"""Segments of at most so many bytes: the search, the files, and headers that all segments share."""

from fractions import Fraction

import av
import pytest

from genai_ray import errors
from genai_ray.video import Budget, Encoding, SegmentWriter, open_writer, plan_video
from genai_ray.video.codecs import CODECS
from genai_ray.video.encoding.bounded import FULL_SHARE, MOST_TRIES, Search, measure_part
from tests.video.clips import picture, write

SIZE = (96, 64)
NUM_FRAMES = 10
PRESETS = {"libx264": "ultrafast", "libx265": "ultrafast", "libsvtav1": "12"}
SEARCHED = [name for name, codec in CODECS.items() if codec.crf_halving]


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    return plan_video(write(tmp_path_factory.mktemp("info") / "a.mkv", tracks=0, pts=[0, 1])).info


def encode(writer):
    with writer:
        for index in range(NUM_FRAMES):
            writer.write(picture(index, *SIZE), index)
    return writer


def bounded(path, info, codec, num_bytes, **more):
    encoding = Encoding(codec=codec, preset=PRESETS[codec])
    budget = Budget(num_bytes, NUM_FRAMES, **more)
    return open_writer(path, info=info, size=SIZE, encoding=encoding, budget=budget)


def plain(path, info, **settings):
    return encode(SegmentWriter(path, info=info, size=SIZE, encoding=Encoding(**settings)))


def search(codec, wanted, size_of, pixels=100_000):
    found = Search(wanted, CODECS[codec])
    factor = found.first(pixels)
    while factor is not None:
        found.sizes[factor] = size_of(factor)
        factor = found.next()
    return found


@pytest.mark.parametrize("codec", SEARCHED)
@pytest.mark.parametrize("halving", [3, 6, 12])
def test_the_search_ends_full_whatever_a_factor_is_worth(codec, halving):
    """Also if the encoder's size falls twice as fast or half as fast with the factor as expected."""
    for wanted in (10_000, 33_333, 100_000):
        found = search(codec, wanted, lambda factor: int(4_000_000 * 2 ** (-factor / halving)))
        reached = found.sizes[found.best()]
        least = int(4_000_000 * 2 ** (-CODECS[codec].max_crf / halving))
        if least > wanted:
            assert reached == least
        else:
            assert FULL_SHARE * wanted <= reached <= wanted, found.sizes
        assert len(found.sizes) <= MOST_TRIES


def test_the_search_takes_the_largest_that_fits():
    found = search("libsvtav1", 10_000, lambda factor: int(1_000_000 * 0.9 ** round(factor)))
    assert found.sizes[found.best()] == 9697  # one step less is 10,775
    assert len(found.sizes) <= MOST_TRIES


def test_the_search_ends_if_no_factor_fits_or_fills():
    assert search("libx264", 1000, lambda factor: 2000 - int(factor)).best() == 51
    found = search("libx264", 10**9, lambda factor: 5000 - int(factor))
    assert found.best() == 1
    assert search("libx264", 1, lambda _: 1).best() in search("libx264", 1, lambda _: 1).sizes


@pytest.mark.parametrize("codec", SEARCHED)
def test_segments_fit_and_share_their_headers(codec, info, tmp_path):
    usual = plain(tmp_path / "a.nut", info, codec=codec, preset=PRESETS[codec]).path
    headers = set()
    for share in (0.8, 1.5):
        wanted = int(measure_part(usual) * share)
        path = encode(bounded(tmp_path / "b.nut", info, codec, wanted)).path
        assert 0.7 * wanted < measure_part(path) <= wanted  # of ten tiny frames, steps of the factor are large
        with av.open(str(path)) as box:
            stream = box.streams.video[0]
            headers.add(bytes(stream.codec_context.extradata or b""))
            times = [frame.pts * frame.time_base for frame in box.decode(stream)]
            assert [time - times[0] for time in times] == [Fraction(index, 1000) for index in range(NUM_FRAMES)]
    assert len(headers) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nut", "b.nut"]


@pytest.mark.parametrize("bits", [8, 10])
def test_pictures_are_encoded_again_as_they_were(bits, info, tmp_path):
    """The file has the bytes that the found factor gives at once."""
    settings = {"preset": "ultrafast", "bit_depth": bits}
    usual = measure_part(plain(tmp_path / "a.nut", info, **settings).path)
    budget = Budget(usual // 2, NUM_FRAMES)
    writer = encode(open_writer(tmp_path / "b.nut", info=info, size=SIZE, encoding=Encoding(**settings), budget=budget))
    assert len(writer._search.sizes) > 1
    factor = writer._search.best()
    at_once = plain(tmp_path / "c.nut", info, **settings, crf=factor, options={"x264-params": "stitchable=1"})
    assert writer.path.read_bytes() == at_once.path.read_bytes()


def test_what_fails_leaves_nothing(info, tmp_path):
    class StoppedError(Exception):
        pass

    def stop():
        raise StoppedError

    with pytest.raises(StoppedError):
        encode(bounded(tmp_path / "b.nut", info, "libx264", 100, check=stop))
    assert list(tmp_path.iterdir()) == []

    def write_another_size():
        with bounded(tmp_path / "b.nut", info, "libx264", 100) as writer:
            writer.write(picture(0, *SIZE), 0)
            writer.write(picture(0, 64, 64), 1)

    with pytest.raises(errors.InvalidInputError, match="a frame"):
        write_another_size()
    assert list(tmp_path.iterdir()) == []


def test_own_options_stay(info, tmp_path):
    encoding = Encoding(codec="libx264", preset="ultrafast", options={"x264-params": "keyint=3"})
    writer = open_writer(tmp_path / "b.nut", info=info, size=SIZE, encoding=encoding, budget=Budget(4000, NUM_FRAMES))
    encode(writer)
    with av.open(str(tmp_path / "b.nut")) as box:
        assert [packet.is_keyframe for packet in box.demux(video=0) if packet.size] == [
            index % 3 == 0 for index in range(NUM_FRAMES)
        ]
