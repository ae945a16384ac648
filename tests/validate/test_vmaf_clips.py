"""VMAF of whole clips: what is measured as stored, what is converted, and that FFmpeg's own command says the same."""

import csv
import subprocess

import av
import imageio_ffmpeg
import numpy as np
import pytest

from genai_ray import VideoReader, errors
from genai_ray.quality import VmafMeter, vmaf_per_frame
from genai_ray.validate import validate_videos
from tests.validate.test_validate import FRAMES, noisy

MODEL = "vmaf_v0.6.1neg"


def write_yuv(path, frames, *, pix_fmt="yuv420p", matrix=6, span=1):
    """Write frames without loss: FFV1 of YUV."""
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, span
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=span)
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    return str(path)


def by_ffmpeg(reference, candidate, folder):
    graph = f"[0:v][1:v]libvmaf=model=version={MODEL}:log_fmt=csv:log_path=scores.csv"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-i", candidate, "-i", reference]
    subprocess.run([*command, "-lavfi", graph, "-f", "null", "-"], check=True, cwd=folder)
    with (folder / "scores.csv").open(newline="") as file:
        return [float(row["vmaf"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def smooth():
    """12 frames of 85x63: odd sides, so that chroma has half a pixel more."""
    base = np.kron(FRAMES[0, :8, :11], np.ones((8, 8, 1)))[:63, :85]
    return np.clip(np.stack([np.roll(base, step, axis=1) for step in range(12)]), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("pix_fmt", "matrix"), [("yuv420p", 6), ("yuv444p10le", 1)])
def test_stored_pictures_are_measured_as_ffmpeg_measures_them(smooth, tmp_path, pix_fmt, matrix):
    one = write_yuv(tmp_path / "one.mkv", smooth, pix_fmt=pix_fmt, matrix=matrix)
    two = write_yuv(tmp_path / "two.mkv", noisy(smooth, 12), pix_fmt=pix_fmt, matrix=matrix)
    report = validate_videos(one, two, metrics=["vmaf"], threads=2)
    assert report.definitions["vmaf"] == f"VMAF, {MODEL}, as stored"
    assert report.candidates[0].per_frame["vmaf"].tolist() == by_ffmpeg(one, two, tmp_path)
    beside = validate_videos(one, two, metrics=["vmaf", "psnr", "ssim"], threads=1)
    assert beside.candidates[0].per_frame["vmaf"].tolist() == report.candidates[0].per_frame["vmaf"].tolist()


def test_pictures_of_several_kinds_are_converted(smooth, tmp_path):
    """One definition for all candidates of a report, and it is told."""
    one = write_yuv(tmp_path / "one.mkv", smooth)
    same = write_yuv(tmp_path / "same.mkv", noisy(smooth, 12))
    other = write_yuv(tmp_path / "other.mkv", noisy(smooth, 12), matrix=1)
    full = write_yuv(tmp_path / "full.mkv", noisy(smooth, 12), span=2)
    stored = validate_videos(one, same, metrics=["vmaf"])
    for candidate in (other, full):
        report = validate_videos(one, [same, candidate], metrics=["vmaf"])
        assert report.definitions["vmaf"] == f"VMAF, {MODEL}, BT.709 luma"
        for path, scores in zip((same, candidate), report.candidates, strict=True):
            with VideoReader(one) as before, VideoReader(path) as after:
                expected = vmaf_per_frame(before[:].frames, after[:].frames, model=MODEL)
            assert scores.per_frame["vmaf"].tolist() == expected.tolist()
        assert report.candidates[0].quality("vmaf") == pytest.approx(stored.candidates[0].quality("vmaf"), abs=1.5)
        assert "BT.709 luma" in report.to_html()


def test_a_frame_that_does_not_decode_ends_ffmpeg_too(smooth, tmp_path):
    paths = [tmp_path / "one.mkv", tmp_path / "two.mkv"]
    for path in paths:
        with av.open(str(path), "w") as sink:
            stream = sink.add_stream("libx264", rate=25, options={"crf": "10", "bf": "0"})
            stream.width, stream.height, stream.pix_fmt = 84, 62, "yuv420p"
            for pixels in noisy(smooth[:, :62, :84], 12):
                sink.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
            sink.mux(stream.encode(None))
    with av.open(str(paths[1])) as source:
        packet = [packet for packet in source.demux(video=0) if packet.size][7]
        begins, size = packet.pos, packet.size
    data = bytearray(paths[1].read_bytes())
    place = data.index(bytes(packet)[:64], begins)
    data[place + 64 : place + size] = b"\xff" * (size - 64)
    paths[1].write_bytes(data)
    with pytest.raises(errors.VideoError, match=r"two\.mkv: frame 7 at 0\.280 s is damaged|7 of 12 frames decode"):
        validate_videos(*map(str, paths), metrics=["vmaf"])


def measure(reference, candidate, **options):
    with VmafMeter((64, 48), "rgb24", **options) as meter:
        for _ in range(200):
            meter.add(reference, candidate)
        return meter.finish()


def test_an_error_of_a_function_reaches_the_caller():
    def break_off():
        raise ZeroDivisionError("a frame that breaks off")

    with pytest.raises(ZeroDivisionError, match="breaks off"):
        measure(lambda: [FRAMES[0]], break_off)


def test_what_libvmaf_refuses_ends_the_meter():
    with pytest.raises(errors.QualityError, match=r"did not measure frames of 64x48: .*libvmaf ERROR"):
        measure(lambda: [FRAMES[0]], lambda: [FRAMES[0]], model="vmaf_v1.0.16_3d0h")
