"""Whole videos and pictures against a reference: numbers, alignment, reconciled sizes, reports, and what is refused."""

import base64
import csv
import io
import json
import math
import re
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import genai_ray
from genai_ray import VideoReader, errors
from genai_ray.quality import reduce_frame, vmaf_per_frame
from genai_ray.validate import validate_videos
from genai_ray.validate.clips import open_clip
from genai_ray.video import encode_png, encode_png16, plan_video, read_picture

RNG = np.random.default_rng(11)
FRAMES = RNG.integers(0, 256, (24, 48, 64, 3), np.uint8)


def noisy(frames, deviation, seed=0):
    noise = np.random.default_rng(seed).normal(0, deviation, frames.shape)
    return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)


def write(path, frames, *, rate=Fraction(25), times=None, time_base=None, depth=8):
    """Write frames without loss: FFV1 of RGB."""
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("ffv1", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if depth == 8 else "gbrp10le"
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts = index if times is None else times[index]
            frame.time_base = time_base or 1 / rate
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    good, bad = noisy(FRAMES, 2), noisy(FRAMES, 9)
    bad[17] = 128
    large = good.repeat(2, axis=1).repeat(2, axis=2)
    return {
        "reference": write(folder / "reference.mkv", FRAMES),
        "good": write(folder / "good.mkv", good),
        "bad": write(folder / "bad.mkv", bad),
        "copy": write(folder / "copy.mkv", FRAMES),
        "large": write(folder / "large.mkv", large),
    }, {"good": good, "bad": bad}


def test_every_frame_is_measured_and_pooled_both_ways(files):
    paths, frames = files
    seen = []
    report = validate_videos(
        paths["reference"], [paths["good"], paths["bad"]], threads=2, on_progress=lambda *n: seen.append(n)
    )
    for scores, name in zip(report.candidates, ("good", "bad"), strict=True):
        expected = [genai_ray.psnr(a, b) for a, b in zip(FRAMES, frames[name], strict=True)]
        assert scores.per_frame["psnr"].tolist() == pytest.approx(expected)
        expected_ssim = [genai_ray.ssim(a, b) for a, b in zip(FRAMES, frames[name], strict=True)]
        assert scores.per_frame["ssim"].tolist() == pytest.approx(expected_ssim)
        pooled = scores.pooled["psnr"]
        assert pooled["psnr_of_mean_mse"] == pytest.approx(genai_ray.psnr(FRAMES, frames[name]))
        assert pooled["mean"] == pytest.approx(np.mean(expected))
        assert pooled["min"] == pytest.approx(min(expected))
    assert report.candidates[1].pooled["psnr"]["min_frame"] == 17
    assert report.candidates[1].worst[0].index == 17
    assert np.array_equal(report.candidates[1].worst[0].candidate, frames["bad"][17])
    assert np.array_equal(report.candidates[1].worst[0].reference, FRAMES[17])
    assert report.seconds.tolist() == pytest.approx([index / 25 for index in range(24)], abs=1e-3)
    assert seen == [(number, 48) for number in range(1, 49)]


def test_numbers_do_not_depend_on_threads_or_company(files):
    paths, _ = files
    alone = validate_videos(paths["reference"], paths["bad"], threads=1)
    beside = validate_videos(paths["reference"], [paths["good"], paths["bad"]], threads=3)
    for name in ("psnr", "ssim"):
        assert np.array_equal(alone.candidates[0].per_frame[name], beside.candidates[1].per_frame[name])


def test_a_copy_is_infinite_and_json_says_so(files):
    report = validate_videos(files[0]["reference"], files[0]["copy"])
    (scores,) = report.candidates
    assert scores.pooled["psnr"]["psnr_of_mean_mse"] == math.inf
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["candidates"][0]["pooled"]["psnr"]["mean"] == "inf"
    assert told["candidates"][0]["per_frame"]["ssim"] == [pytest.approx(1.0)] * 24
    assert "infinite in every frame" in report.to_html()


def test_frames_of_infinite_psnr_have_their_own_line(files, tmp_path):
    partly = noisy(FRAMES, 5)
    partly[3:6] = FRAMES[3:6]
    report = validate_videos(files[0]["reference"], write(tmp_path / "partly.mkv", partly), metrics=["psnr"])
    page = report.to_html()
    assert ">infinite</text>" in page
    (points,) = re.findall(r'points="([^"]*)"', page)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert [index for index, height in enumerate(heights) if height == 8.0] == [3, 4, 5]
    assert min(height for height in heights if height != 8.0) == 28.0
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))["candidates"][0]
    assert list(told["pooled"]["psnr"]) == ["psnr_of_mean_mse", "mean", "min", "min_frame"]
    assert (told["pooled"]["psnr"]["mean"], told["per_frame"]["psnr"][3]) == ("inf", "inf")
    assert isinstance(told["pooled"]["psnr"]["min_frame"], int)


def test_pictures_of_the_page_are_small(tmp_path):
    large = RNG.integers(0, 256, (300, 1301, 3), np.uint8)
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path, picture in zip(paths, (large, noisy(large, 5)), strict=True):
        Path(path).write_bytes(encode_png(picture))
    page = validate_videos(*paths, metrics=["psnr"]).to_html()
    shown = re.findall(r"data:image/png;base64,([\w+/=]+)", page)
    sizes = []
    for number, text in enumerate(shown):
        (tmp_path / f"shown-{number}.png").write_bytes(base64.b64decode(text))
        sizes.append(read_picture(str(tmp_path / f"shown-{number}.png"))[0].shape)
    assert sizes == [(100, 433, 3)] * 3
    assert "shown smaller than 1301x300" in page


def test_what_is_left_out_is_said(tmp_path, clip_of_pq):
    for name, channels in (("a.png", 4), ("b.png", 3)):
        with av.open(str(tmp_path / name), "w", format="image2", options={"update": "1"}) as sink:
            stream = sink.add_stream("png", rate=1)
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "rgba" if channels == 4 else "rgb24"
            pixels = np.full((48, 64, channels), 100, np.uint8)
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format=stream.pix_fmt)) + stream.encode(None))
    report = validate_videos(str(tmp_path / "b.png"), str(tmp_path / "a.png"))
    assert report.candidates[0].notes == (f"{tmp_path}/a.png: alpha is not compared",)
    whole = write(tmp_path / "whole.mkv", FRAMES)
    plan = plan_video(whole)
    assert open_clip(whole).notes == ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genai_ray.validate.clips.plan_video", lambda _: replace(plan, skipped=2))
        assert open_clip(whole).notes == (f"{whole}: 2 frames at the start do not decode and are not compared",)
    with pytest.raises(errors.QualityError, match=r"whole.mkv of SDR for .*pq.mkv of HDR \(PQ\).*another light"):
        validate_videos(clip_of_pq, whole)


@pytest.fixture
def clip_of_pq(tmp_path):
    path = tmp_path / "pq.mkv"
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.color_trc = 16
        stream.codec_context.color_primaries = stream.codec_context.colorspace = 9
        for pixels in FRAMES:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.color_trc = 16
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    return str(path)


def test_the_larger_frame_is_reduced_and_the_report_says_so(files):
    paths, frames = files
    down = validate_videos(paths["reference"], paths["large"])
    up = validate_videos(paths["large"], paths["reference"])
    same = validate_videos(paths["reference"], paths["good"])
    for report in (down, up):
        assert report.candidates[0].notes == ("128x96 reduced to 64x48 by the mean of 2x2 pixels",)
        assert np.array_equal(report.candidates[0].per_frame["psnr"], same.candidates[0].per_frame["psnr"])
    assert reduce_frame(frames["good"][0].repeat(2, 0).repeat(2, 1), 2).tolist() == frames["good"][0].tolist()


def test_vmaf_of_a_clip_is_libvmafs(files):
    paths, frames = files
    seen = []
    report = validate_videos(
        paths["reference"], paths["bad"], metrics=["vmaf", "psnr"], on_progress=lambda *n: seen.append(n)
    )
    expected = vmaf_per_frame(FRAMES, frames["bad"], model="vmaf_v0.6.1neg")
    assert report.candidates[0].per_frame["vmaf"].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert report.candidates[0].pooled["vmaf"]["harmonic_mean"] <= report.candidates[0].pooled["vmaf"]["mean"]
    assert report.definitions["vmaf"] == "VMAF, vmaf_v0.6.1neg, BT.709 luma"
    assert seen == [(number, 24) for number in range(1, 25)]


def test_frames_pair_by_time_whatever_the_time_base(tmp_path):
    times = [0, 40, 80, 200, 240]  # milliseconds: the rate varies
    one = write(tmp_path / "one.mkv", FRAMES[:5], times=times, time_base=Fraction(1, 1000))
    late = [1000 * 90 + 90 * time for time in times]  # begins at one second, in units of a transport stream
    two = write(tmp_path / "two.nut", FRAMES[:5], times=late, time_base=Fraction(1, 90000))
    report = validate_videos(one, two)
    assert report.candidates[0].pooled["psnr"]["psnr_of_mean_mse"] == math.inf
    assert report.seconds.tolist() == pytest.approx([time / 1000 for time in times])
    moved = write(tmp_path / "moved.mkv", FRAMES[:5], times=[0, 40, 120, 200, 240], time_base=Fraction(1, 1000))
    with pytest.raises(errors.QualityError, match=r"2 have no partner: frame 2 \(0\.080 s\) of .*one"):
        validate_videos(one, moved)


def test_pictures_are_compared(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.png", "b.png", "deep.png", "c.png")]
    (tmp_path / "a.png").write_bytes(encode_png(FRAMES[0]))
    (tmp_path / "b.png").write_bytes(encode_png(noisy(FRAMES[0], 5)))
    (tmp_path / "deep.png").write_bytes(encode_png16(FRAMES[0].astype(np.uint16) * 257))
    (tmp_path / "c.png").write_bytes(b"no picture")
    report = validate_videos(paths[0], paths[1])
    assert report.candidates[0].per_frame["psnr"] == [genai_ray.psnr(FRAMES[0], noisy(FRAMES[0], 5))]
    assert "<circle" in report.to_html()
    with pytest.raises(errors.QualityError, match="more than 8 bits"):
        validate_videos(paths[2], paths[0])
    with pytest.raises(errors.VideoError, match=r"c\.png"):
        validate_videos(paths[0], paths[3])


def test_a_jpeg_is_near_its_png(tmp_path):
    smooth = np.indices((48, 64)).sum(axis=0)[..., None] + np.array([0, 60, 120])
    pixels = np.clip(smooth, 0, 255).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(encode_png(pixels))
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 64, 48, "yuvj420p", Fraction(1)
    codec.options = {"qmin": "1", "qmax": "1"}
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuvj420p")
    (tmp_path / "a.jpg").write_bytes(b"".join(bytes(packet) for packet in codec.encode(frame) + codec.encode(None)))
    report = validate_videos(str(tmp_path / "a.png"), str(tmp_path / "a.jpg"))
    assert 35 < report.candidates[0].per_frame["psnr"][0] < 60


def test_the_reports_hold_every_number(files, tmp_path):
    paths, _ = files
    report = validate_videos(paths["reference"], [paths["good"], paths["bad"]])
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert len(rows) == 48
    assert float(rows[24 + 17]["psnr"]) == report.candidates[1].per_frame["psnr"][17]
    page = report.to_html()
    assert page.count("<polyline") == 4
    assert page.count("data:image/png;base64,") == sum(3 * len(scores.worst) for scores in report.candidates) == 12
    assert "frame 17 at 0.680 s" in page
    assert not any(word in page for word in ("http://", "https://", "<script"))
    assert "bad.mkv" in report._repr_html_()
    assert repr(report) == "QualityReport(24 frames, 2 candidates, psnr, ssim)"
    figure = report.plot()
    assert [len(panel.get_lines()) for panel in figure.axes] == [2, 2]
    assert "Against seconds" not in page
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_plot_without_matplotlib_says_what_to_install(files, monkeypatch):
    report = validate_videos(files[0]["reference"], files[0]["good"], metrics=["psnr"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(errors.BackendUnavailableError, match="pip install matplotlib"):
        report.plot()


def test_what_cannot_be_compared_is_refused(files, tmp_path):
    paths, _ = files
    reference = paths["reference"]
    link = tmp_path / "link.mkv"
    link.symlink_to(reference)
    hard = tmp_path / "hard.mkv"
    hard.hardlink_to(reference)
    empty = tmp_path / "empty.mkv"
    empty.touch()
    hollow = tmp_path / "hollow.mkv"
    with av.open(str(hollow), "w") as sink:
        sink.add_stream("ffv1", rate=25).pix_fmt = "bgr0"
        sink.start_encoding()
    refused = {
        "itself": ([reference], {}, errors.QualityError, "the reference itself"),
        "itself by a link": ([str(link)], {}, errors.QualityError, "the reference itself"),
        "itself by a hard link": ([str(hard)], {}, errors.QualityError, "the reference itself"),
        "twice": ([paths["good"], paths["good"]], {}, errors.QualityError, "twice"),
        "nobody": ([], {}, errors.QualityError, "without candidates"),
        "shorter": (
            [write(tmp_path / "a.mkv", FRAMES[:20])],
            {},
            errors.QualityError,
            "20 frames .* 4 have no partner",
        ),
        "longer": (
            [write(tmp_path / "b.mkv", np.concatenate([FRAMES, FRAMES[:1]]))],
            {},
            errors.QualityError,
            r"1 have no partner: frame 24 \(0.960 s\) of .*b.mkv",
        ),
        "faster": (
            [write(tmp_path / "c.mkv", FRAMES, rate=Fraction(30))],
            {},
            errors.QualityError,
            "at 30 per second for 24 at 25 per second",
        ),
        "another size": ([write(tmp_path / "d.mkv", FRAMES[:, :40])], {}, errors.QualityError, "64x40 for .* 64x48"),
        "deeper": ([write(tmp_path / "e.mkv", FRAMES, depth=10)], {}, errors.QualityError, "more than 8 bits"),
        "small for MS-SSIM": ([paths["good"]], {"metrics": ["ms_ssim"]}, errors.QualityError, "64x48 for ms_ssim.*161"),
        "no metric": ([paths["good"]], {"metrics": ["psnr", "lpips"]}, errors.InvalidInputError, "lpips"),
        "no metrics": ([paths["good"]], {"metrics": []}, errors.InvalidInputError, "psnr, ssim"),
        "threads": ([paths["good"]], {"threads": 0}, errors.InvalidInputError, "0 threads"),
        "model": (
            [paths["good"]],
            {"metrics": ["vmaf"], "vmaf_model": "vmaf_v9"},
            errors.InvalidInputError,
            "vmaf_v0.6.1",
        ),
        "empty": ([str(empty)], {}, errors.VideoError, "empty"),
        "without frames": ([str(hollow)], {}, errors.VideoError, "hollow.mkv: "),
        "missing": ([str(tmp_path / "none.mkv")], {}, errors.VideoError, "no such file"),
    }
    for candidates, options, error, words in refused.values():
        with pytest.raises(error, match=words):
            validate_videos(reference, candidates, **options)


def test_the_command_prints_and_writes(files, tmp_path, command):
    paths, frames = files
    page, table = tmp_path / "new" / "report.html", tmp_path / "report.csv"
    pair = [paths["reference"], paths["bad"]]
    done = command("validate", *pair, "--json", "--html", page, "--csv", table)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    expected = genai_ray.psnr(FRAMES, frames["bad"])
    assert told["candidates"][0]["pooled"]["psnr"]["psnr_of_mean_mse"] == pytest.approx(expected)
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert len(table.read_text().splitlines()) == 25
    shown = command("validate", *pair, "--metrics", "psnr")
    assert f"of mean MSE {expected:.2f}" in " ".join(shown.stdout.split())
    failed = command("validate", paths["reference"], paths["reference"])
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "the reference itself" in failed.stderr
    for wrong in (["--metrics", "lpips"], ["--html", page]):
        refused = command("validate", *pair, *wrong)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith("error: ")
    wrong = command("validate", *pair, "--metrics", "ms_ssim")
    assert "allowed: psnr, ssim, ms-ssim, vmaf" in wrong.stderr
    before = Path(paths["bad"]).read_bytes()
    for wrong, words in (
        (["--html", paths["bad"], "-y"], "one of the inputs"),
        (["--html", tmp_path / "same", "--csv", tmp_path / "same"], "both --csv and --html"),
        (["--csv", tmp_path], "is a folder"),
        (["--csv", page / "below" / "a.csv"], "cannot be written"),
    ):
        refused = command("validate", *pair, *wrong)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert words in refused.stderr
    assert Path(paths["bad"]).read_bytes() == before
    assert list(tmp_path.rglob("*.partial")) == []
    silent = command("validate", *pair, "--html", page, "--overwrite", "--quiet")
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")


def test_the_packaged_pair(samples):
    small, large = (str(samples / f"bigbuckbunny-{lines}p.mp4") for lines in (360, 720))
    report = validate_videos(small, large, metrics=["psnr"])
    assert report.candidates[0].pooled["psnr"]["psnr_of_mean_mse"] == pytest.approx(41.16, abs=0.05)
    with VideoReader(small) as first, VideoReader(large) as second:
        expected = genai_ray.psnr(first[40].frame, np.rint(reduce_frame(second[40].frame, 2)).astype(np.uint8))
    assert report.candidates[0].per_frame["psnr"][40] == pytest.approx(expected)
