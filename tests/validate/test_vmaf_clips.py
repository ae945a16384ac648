"""VMAF of whole clips: what is measured as stored, what is converted, and that FFmpeg's own command says the same."""

import csv
import subprocess

import av
import imageio_ffmpeg
import numpy as np
import pytest

from genai_ray import QualityValidator, VideoReader, errors
from genai_ray.quality import VmafMeter, vmaf_per_frame
from genai_ray.validate import validate_videos
from tests.validate.test_validate import FRAMES, noisy

MODEL = "vmaf_v0.6.1neg"


def write_yuv(path, frames, *, pix_fmt="yuv420p", matrix=6, span=1, transfer=2):
    """Write frames without loss: FFV1 of YUV."""
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, span
        stream.codec_context.color_trc = transfer
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


def test_a_number_does_not_depend_on_other_candidates(smooth, tmp_path):
    """Each pair has its own rule, and candidates of different ones say so."""
    one = write_yuv(tmp_path / "one.mkv", smooth)
    same = write_yuv(tmp_path / "same.mkv", noisy(smooth, 12))
    others = [write_yuv(tmp_path / "other.mkv", noisy(smooth, 12), matrix=1)]
    others += [write_yuv(tmp_path / "full.mkv", noisy(smooth, 12), span=2)]
    alone = validate_videos(one, same, metrics=["vmaf"]).candidates[0]
    assert (alone.vmaf_planes, alone.notes) == ("as stored", ())
    for metrics in (["vmaf"], ["psnr", "vmaf"]):
        report = validate_videos(one, [others[0], same, others[1]], metrics=metrics)
        assert report.definitions["vmaf"] == f"VMAF, {MODEL}, BT.709 luma or as stored"
        stored = report.candidates[1]
        assert stored.per_frame["vmaf"].tolist() == alone.per_frame["vmaf"].tolist()
        assert stored.notes == ("VMAF: as stored; another candidate is measured in the other way",)
        for path, scores in zip(others, report.candidates[::2], strict=True):
            with VideoReader(one) as before, VideoReader(path) as after:
                expected = vmaf_per_frame(before[:].frames, after[:].frames, model=MODEL)
            assert scores.per_frame["vmaf"].tolist() == expected.tolist()
            assert scores.notes == ("VMAF: BT.709 luma; another candidate is measured in the other way",)
            assert scores.quality("vmaf") == pytest.approx(alone.quality("vmaf"), abs=1.5)
        assert "BT.709 luma or as stored" in report.to_html()
        told = [one["vmaf_planes"] for one in report.to_dict()["candidates"]]
        assert told == ["BT.709 luma", "as stored", "BT.709 luma"]


@pytest.mark.parametrize(("transfer", "light"), [(16, "HDR (PQ)"), (18, "HDR (HLG)")])
def test_vmaf_of_hdr_is_said(smooth, tmp_path, transfer, light):
    deep = {"pix_fmt": "yuv420p10le", "matrix": 9, "transfer": transfer}
    one = write_yuv(tmp_path / "one.mkv", smooth, **deep)
    two = write_yuv(tmp_path / "two.mkv", noisy(smooth, 12), **deep)
    (scores,) = validate_videos(one, two, metrics=["vmaf"]).candidates
    words = f"VMAF of {light}: its models know SDR alone"
    assert [note for note in scores.notes if note.startswith(words)] == list(scores.notes)
    assert scores.notes
    assert validate_videos(one, two, metrics=["psnr"]).candidates[0].notes == ()
    assert QualityValidator(one, -100.0, vmaf=0.0).validate(two).notes == (words,)


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
