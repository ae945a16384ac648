"""What a notebook shows of objects: one line, a table, a figure."""

import dataclasses
import inspect
import io
import pydoc
import re

import numpy as np
import pytest
from PIL import Image

import genai_ray
from genai_ray import (
    BatchInference,
    InferenceResult,
    InferenceSession,
    ModelCatalog,
    QualityValidator,
    VideoReader,
    errors,
)
from genai_ray.display import draw_pictures, format_bytes, format_count, to_html
from tests.video.clips import NUM_FRAMES, write


def picture_of(figure):
    return Image.open(io.BytesIO(figure._repr_png_()))


def fields_of(thing):
    """Return the fields of a dataclass or of a model of pydantic; none of anything else."""
    is_ours = dataclasses.is_dataclass(thing)
    return [field.name for field in dataclasses.fields(thing)] if is_ours else list(getattr(thing, "model_fields", ()))


@pytest.mark.parametrize("name", [name for name in genai_ray.__all__ if fields_of(getattr(genai_ray, name))])
def test_help_describes_every_public_field(name):
    thing = getattr(genai_ray, name)
    text = inspect.getdoc(thing)  # what IPython shows
    for field in fields_of(thing):
        assert field.startswith("_") or re.search(rf"^    {field}: \S", text, re.M), field
    if type(thing) is type:  # of another metaclass, Python's own help shows the docstring of none
        shown = pydoc.plain(pydoc.render_doc(thing))
        assert all(line in shown for line in text.splitlines())


def test_frames_of_a_video_are_one_line(tmp_path):
    clip = write(tmp_path / "a.mp4", size=(64, 48), tracks=0)
    with VideoReader(clip) as video:
        assert repr(video) == f"VideoReader({clip}: {NUM_FRAMES} frames of 64x48, h264)"
        assert "<td>rotation</td><td>0</td>" in video._repr_html_()
        assert repr(video[1]) == f"VideoFrame(1, {video[1].pts_seconds:.3f} s, (48, 64, 3) uint8)"
        assert repr(video[1:3]) == "VideoFrames((2, 48, 64, 3) uint8)"
        result = InferenceResult(1, video[1].frame, 2.345)
        assert repr(result) == "InferenceResult(1, (48, 64, 3) uint8, 2.3 ms)"
    assert repr(BatchInference("websr-x2-s", backend="onnx")) == "BatchInference(websr-x2-s, onnx, batch_size=8)"


def test_a_table_is_escaped():
    assert to_html("<a>", [("x", "<b>")], ("&", "y")) == (
        "<table><caption>&lt;a&gt;</caption><tr><th>&amp;</th><th>y</th></tr><tr><td>x</td><td>&lt;b&gt;</td></tr></table>"
    )


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (1_250_000_000, "1.25 GB"), (5e15, "5e+03 TB")]
)
def test_bytes_have_three_digits_and_a_unit(num_bytes, text):
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 frames"), (1, "1 frame"), (12, "12 frames")])
def test_one_of_a_thing_has_no_plural(count, text):
    assert format_count(count, "frame") == text


def test_a_session_compares_a_frame_and_shows_itself(frames):
    with InferenceSession("websr-x2-s") as session:
        figure = session.compare(frames[0])
        assert [panel.get_title() for panel in figure.axes] == ["before, 61x49", "after, 122x98"]
        assert np.array_equal(figure.axes[1].images[0].get_array(), session.infer(frames[0]))
        assert repr(session) == "InferenceSession(websr-x2-s, onnx, fp32, cpu)"
        assert "<td>model_id</td><td>websr-x2-s</td>" in session._repr_html_()
        assert re.search(r"<td>memory_bytes</td><td>[\d.]+ MB</td>", session._repr_html_())
        with pytest.raises(errors.InvalidInputError, match="one frame"):
            session.compare(frames)
    assert repr(figure).startswith("<Figure size ")
    assert picture_of(figure).width > 500


def test_a_catalog_and_a_result_show_themselves(frames):
    catalog = ModelCatalog.default()
    assert repr(catalog) == f"ModelCatalog({len(catalog.ids())} models)"
    assert all(f"<td>{model}</td>" in catalog._repr_html_() for model in catalog.ids())
    assert repr(QualityValidator(frames, ssim=0.9, source=frames)) == (
        "QualityValidator(threshold_db=30, ssim=0.9, source checks)"
    )
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
