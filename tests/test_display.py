"""What a notebook shows of objects: one line, a table, a figure."""

import io

import numpy as np
import pytest
from PIL import Image

import genai_ray
from genai_ray import InferenceSession, ModelCatalog, QualityValidator, VideoReader, errors
from genai_ray.display import draw_pictures, format_bytes, to_html
from tests.video.clips import NUM_FRAMES, write


def picture_of(figure):
    return Image.open(io.BytesIO(figure._repr_png_()))


def test_a_table_is_escaped():
    assert to_html("<a>", [("x", "<b>")], ("&", "y")) == (
        "<table><caption>&lt;a&gt;</caption><tr><th>&amp;</th><th>y</th></tr><tr><td>x</td><td>&lt;b&gt;</td></tr></table>"
    )


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (1_250_000_000, "1.25 GB"), (5e15, "5e+03 TB")]
)
def test_bytes_have_three_digits_and_a_unit(num_bytes, text):
    assert format_bytes(num_bytes) == text


def test_a_session_compares_a_frame_and_shows_itself(frames):
    with InferenceSession("websr-x2-s") as session:
        figure = session.compare(frames[0])
        assert [panel.get_title() for panel in figure.axes] == ["before, 61x49", "after, 122x98"]
        assert np.array_equal(figure.axes[1].images[0].get_array(), session.infer(frames[0]))
        assert repr(session) == "InferenceSession(websr-x2-s, onnx, fp32, cpu)"
        assert "<td>model_id</td><td>websr-x2-s</td>" in session._repr_html_()
        with pytest.raises(errors.InvalidInputError, match="one frame"):
            session.compare(frames)
    assert picture_of(figure).width > 500


def test_a_catalog_and_a_result_show_themselves(frames):
    catalog = ModelCatalog.default()
    assert repr(catalog) == f"ModelCatalog({len(catalog.ids())} models)"
    assert all(f"<td>{model}</td>" in catalog._repr_html_() for model in catalog.ids())
    result = QualityValidator(frames, threshold_db=30.0).validate(frames)
    assert repr(result).startswith("ValidationResult(passed=True, psnr=inf, score=1, num_frames=3")
    assert "None" not in repr(result)
    assert "<td>psnr</td><td>inf</td>" in result._repr_html_()


def test_frames_of_a_video_and_of_arrays_are_shown(tmp_path, frames):
    clip = write(tmp_path / "a.mp4", tracks=0)
    figure = genai_ray.show(clip, count=3)
    assert [panel.get_title().partition(",")[0] for panel in figure.axes] == [
        "frame 0",
        f"frame {round((NUM_FRAMES - 1) / 2)}",
        f"frame {NUM_FRAMES - 1}",
    ]
    with VideoReader(clip) as video:
        assert np.array_equal(figure.axes[0].images[0].get_array(), video[0].frame)
        assert len(genai_ray.show(video, count=100).axes) >= NUM_FRAMES
    assert [panel.get_title() for panel in genai_ray.show(frames[0]).axes] == ["61x49"]
    assert len(genai_ray.show(frames, count=2).axes) == 2
    deep = draw_pictures({"deep": frames[0].astype(np.uint16) * 257, "mask": frames[0][..., :1]})
    assert np.array_equal(deep.axes[0].images[0].get_array(), frames[0])


@pytest.mark.parametrize(
    ("media", "words"),
    [
        (7, r"int \(\); allowed: a path"),
        (np.zeros((4, 4)), r"ndarray \(4, 4\)"),
        (np.zeros((4, 4, 3)), "float64; allowed"),
        (np.zeros((0, 4, 4, 3), np.uint8), "no picture to show"),
    ],
)
def test_what_cannot_be_shown_is_said(media, words):
    with pytest.raises(errors.InvalidInputError, match=words):
        genai_ray.show(media)
    with pytest.raises(errors.InvalidInputError, match="count=0"):
        genai_ray.show(np.zeros((4, 4, 3), np.uint8), count=0)
