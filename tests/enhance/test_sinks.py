"""Results that are no video: folders of PNG and JPEG frames, and tables of frames."""

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from genai_ray import EnhanceOptions, InferenceSession, QualityValidator, enhance_videos, errors
from genai_ray.frames import FRAME_COLUMNS, iter_frames
from genai_ray.video import Encoding, decode_segment, plan_video
from tests.video.clips import write

OPTIONS = EnhanceOptions(segment_frames=4)


def enhanced(source):
    """The frames that the model makes, without the engine."""
    plan = plan_video(source)
    frames = np.stack([frame.frame for segment in plan.segments for frame in decode_segment(plan, segment)])
    with InferenceSession("websr-x2-s") as session:
        return session.infer(frames)


def picture(path):
    with av.open(str(path)) as box:
        frame = next(box.decode(video=0))
        return frame.to_ndarray() if frame.format.is_rgb else frame.to_ndarray(format="rgb24")


@pytest.mark.parametrize(("pix_fmt", "kind"), [("yuv420p", np.uint8), ("yuv420p10le", np.uint16)])
def test_frames_as_png_are_the_models_own(ray_session, pix_fmt, kind, tmp_path):
    source = write(tmp_path / "a.mkv", pix_fmt=pix_fmt, pts=list(range(10)), codec="ffv1")
    report = enhance_videos(source, tmp_path / "frames" / "%04d.png", models="websr-x2-s", options=OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "frames"]
    files = sorted((tmp_path / "frames").iterdir())
    assert [path.name for path in files] == [f"{number:04d}.png" for number in range(1, 11)]
    assert report.videos[0].notes[-1] == "audio stream 1 was left out: a folder of frames cannot hold it"
    for path, wanted in zip(files, enhanced(source), strict=True):
        found = picture(path)
        assert found.dtype == kind
        assert np.array_equal(found, wanted)


def test_jpeg_frames_are_near_and_each_input_has_a_folder(ray_session, tmp_path):
    sources = [write(tmp_path / name, tracks=0, pts=list(range(5))) for name in ("a.mkv", "b.mp4")]
    (tmp_path / "out").mkdir()
    enhance_videos(
        sources, tmp_path / "out", models="websr-x2-s", options=EnhanceOptions(encoding=Encoding(codec="jpeg"))
    )
    for source in sources:
        files = sorted((tmp_path / "out" / source.stem).iterdir())
        assert [path.name for path in files] == [f"{number:06d}.jpg" for number in range(1, 6)]
        for path, wanted in zip(files, enhanced(source), strict=True):
            assert QualityValidator(wanted).validate(np.ascontiguousarray(picture(path))).psnr > 30


def test_a_table_of_frames_has_the_schema_and_the_frames(ray_session, tmp_path):
    source = write(tmp_path / "a.mkv", pts=[3, 4, 6, 7, 9, 12], rate=50)
    enhance_videos(source, tmp_path / "b.parquet", models="websr-x2-s", options=OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "b.parquet"]
    table = pq.read_table(tmp_path / "b.parquet")
    plan = plan_video(source)
    assert tuple(table.column_names) == FRAME_COLUMNS
    assert table["pts"].to_pylist() == list(plan.pts)
    assert table["frame_index"].to_pylist() == list(range(6))
    assert set(table["video"].to_pylist()) == {str(source)}
    assert set(table["time_base"].to_pylist()) == {"1/1000"}
    assert table.schema.field("frame").type.shape == [128, 192, 3]
    assert np.array_equal(np.concatenate(list(iter_frames(table))), enhanced(source))


def test_pictures_are_turned_as_a_player_would(ray_session, tmp_path):
    source = write(tmp_path / "a.mp4", tracks=0, pts=[0, 1], more=lambda stream: stream.set_display_rotation(90))
    enhance_videos(source, tmp_path / "frames" / "%d.png", models="websr-x2-s", options=OPTIONS)
    assert np.array_equal(picture(tmp_path / "frames" / "1.png"), np.rot90(enhanced(source)[0]))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("frame.png", "one number in the file name"),
        ("%d-%d.png", "one number in the file name"),
        ("%d/%d.png", "one number in the file name"),
        ("full/%d.png", "not empty"),
        ("file/%d.png", "is a file"),
        ("file/frames/%d.png", "file is a file"),
        ("frames.bmp", "an output ending in '.bmp'"),
    ],
)
def test_folders_that_cannot_be(tmp_path, output, words):
    source = tmp_path / "a.mkv"
    source.write_bytes(b"x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.ConfigError, match=words):
        enhance_videos(source, tmp_path / output, models="websr-x2-s")
    with pytest.raises(errors.ConfigError, match=r"full holds letter\.txt"):
        enhance_videos(
            source, tmp_path / "full" / "%d.png", models="websr-x2-s", options=EnhanceOptions(overwrite=True)
        )


def test_frames_are_replaced_only_when_asked(ray_session, tmp_path):
    folder = tmp_path / "frames"
    for number, more in ((6, {}), (4, {"overwrite": True})):
        source = write(tmp_path / "a.mp4", tracks=0, pts=list(range(number)))
        enhance_videos(source, folder / "%d.png", models="websr-x2-s", options=EnhanceOptions(**more))
        assert len(list(folder.iterdir())) == number
    with pytest.raises(errors.ConfigError, match="not empty"):
        enhance_videos(source, folder / "%d.png", models="websr-x2-s")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "frames"]
