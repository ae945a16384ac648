"""Results of a size: how bytes are divided, what is refused, and that workers and restarts change no byte."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from genai_ray import EnhanceOptions, enhance_videos, errors, forecast_videos, verify_video
from genai_ray.enhance.job.clip_plan import examine_clip
from genai_ray.enhance.plan.budget import describe_size, divide_bytes
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.fields import plan_fields
from genai_ray.enhance.plan.options import check_models
from genai_ray.types import Deinterlace
from genai_ray.video import Encoding, plan_video, weigh_segments
from tests.enhance.moving import write_frames
from tests.processes import descendants, is_alive, kill, start, wait_until
from tests.rays import ray_of
from tests.video.clips import repeatable, write

FAST = Encoding(codec="libx264", preset="ultrafast")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Forty frames of 96x64 with a track of AAC."""
    return write(tmp_path_factory.mktemp("clip") / "a clip.mp4", options={"g": "10"})


def examine(source, output, **settings):
    options = EnhanceOptions(encoding=replace(FAST, **settings), segment_frames=10)
    (target,) = resolve_targets(source, output, options)
    return examine_clip(target, check_models("websr-x2-s", options), options)


def test_bytes_are_divided_by_time_and_by_the_source():
    assert divide_bytes(1000, [10, 10], [500, 500]) == (500, 500)
    assert divide_bytes(1000, [10, 10], [0, 0]) == (500, 500)
    assert divide_bytes(1000, [10, 10], [1, 0]) == (900, 100)
    assert divide_bytes(1000, [30, 10], [100, 100]) == (550, 450)
    assert divide_bytes(1000, [10, 0], [100, 100]) == (1000, 0)
    assert sum(divide_bytes(10**12 + 7, [3, 7, 11], [13, 17, 19])) <= 10**12 + 7


def test_the_packets_of_each_segment_are_counted(source):
    plan = plan_video(source, segment_frames=10)
    weights = weigh_segments(plan)
    with av.open(str(source)) as box:
        assert sum(weights) == sum(packet.size for packet in box.demux(video=0))
    assert len(weights) == len(plan.segments) == 4
    assert all(weights)


@pytest.mark.parametrize(("how", "made"), [(Deinterlace.FIELD, 20), (Deinterlace.IVTC, 8)])
def test_packets_are_counted_where_frames_are_made_of_them(how, made, tmp_path):
    """Ten stored frames each; the frames that are made have times in other units."""
    path = write(tmp_path / "a.mkv", rate=15, tracks=0, options={"g": "10"})
    plan = plan_video(path, segment_frames=10)
    found, _ = plan_fields(plan, how, None, segment_frames=made)
    assert found.info.time_base < plan.info.time_base
    assert weigh_segments(found) == weigh_segments(plan)
    piece = replace(found, segments=(replace(found.segments[1], stop=found.segments[1].start + 1),))
    assert 0 < weigh_segments(piece)[0] < weigh_segments(plan)[1]


def test_sound_and_container_are_taken_off_first(source, tmp_path):
    plan = examine(source, tmp_path / "b.mp4", max_size="60kB")
    with av.open(str(source)) as box:
        sound = sum(packet.size for packet in box.demux(audio=0))
    room = 60_000 - sum(plan.timeline.budgets)
    assert sound < room < sound + 6000
    assert any(note.startswith("size: of 60,000 bytes, ") for note in plan.notes)
    plan = examine(source, tmp_path / "b.mp4", video_bitrate="400k")
    assert 80_000 - 4 <= sum(plan.timeline.budgets) <= 80_000  # 1.6 s
    assert any(note.startswith("pictures get 400 kb/s") for note in plan.notes)
    assert examine(source, tmp_path / "b.mp4").timeline.budgets == ()


@pytest.mark.parametrize(
    ("settings", "name", "unit"),
    [({"max_size": "10kB"}, "max_size", "kB"), ({"video_bitrate": "2k"}, "video_bitrate", "k")],
)
def test_too_little_is_refused_with_the_smallest_that_would_do(settings, name, unit, source, tmp_path):
    with pytest.raises(errors.ConfigError, match=rf"{name} \d+.* with libx264") as caught:
        examine(source, tmp_path / "b.mp4", **settings)
    smallest = caught.value.allowed.removesuffix(" or more")
    assert smallest.endswith(unit)
    assert examine(source, tmp_path / "b.mp4", **{name: smallest}).timeline.budgets
    assert list(tmp_path.iterdir()) == []


def test_noise_is_refused_or_doubted_at_the_start(tmp_path):
    """It takes many bits even at the lowest quality, and a model's more or fewer than a filter's."""
    source = tmp_path / "noise.mkv"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 64, 96, 3), np.uint8)
    write_frames(source, pixels)
    planned = examine(source, tmp_path / "a.mkv", video_bitrate="74k")
    assert any("enlarged by a filter. If the models' pictures need more" in note for note in planned.notes)
    with pytest.raises(
        errors.ConfigError, match=r"video_bitrate 36000 for 192x128 with libx264; allowed: \d+k or more"
    ):
        examine(source, tmp_path / "a.mkv", video_bitrate="36k")
    planned = examine(source, tmp_path / "a.mkv", video_bitrate="500k")
    assert not any("filter" in note for note in planned.notes)


def test_a_result_that_is_too_large_or_too_small_is_told():
    asked, rate = Encoding(max_size=1000), Encoding(video_bitrate="80k")
    assert describe_size(asked, 1000, 1000, "b.mp4") == describe_size(asked, 950, 1000, "b.mp4") == ()
    small = "size: 949 of 1,000 bytes: the best quality does not take more"
    assert describe_size(asked, 949, 1000, "b.mp4") == (small,)
    with pytest.raises(errors.VideoError, match=r"would have 1,001 bytes.*allowed: 1,000 bytes.*--max-size 2kB"):
        describe_size(asked, 1001, 1000, "b.mp4")
    with pytest.raises(errors.VideoError, match=r"would have 2,000 bytes of pictures.*--video-bitrate 164k"):
        describe_size(rate, 2000, 1000, "b.mp4")


def test_manifests_have_them_by_the_same_names(source, tmp_path):
    manifest = tmp_path / "jobs.csv"
    with manifest.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["uri", "output", "max_size", "video_bitrate"])
        rows.writerow([source, "a.mp4", "60kB", ""])
        rows.writerow([source, "b.mp4", "", "4000k"])
        rows.writerow([source, "c.mp4", "", ""])
    options = EnhanceOptions(encoding=FAST)
    found = [target.options(options).encoding for target in resolve_targets(manifest, tmp_path / "out", options)]
    assert [(one.max_size, one.video_bitrate) for one in found] == [(60_000, None), (None, 4_000_000), (None, None)]
    with pytest.raises(errors.ConfigError, match="crf and max_size; allowed: one of them"):
        resolve_targets(manifest, tmp_path / "out", EnhanceOptions(encoding=replace(FAST, crf=20)))


JOBS = {
    ".mp4": {"codec": "libx264", "preset": "ultrafast", "max_size": "150kB"},
    ".mov": {"codec": "libx265", "preset": "ultrafast", "video_bitrate": "500k"},
    ".mkv": {"codec": "libsvtav1", "preset": "12", "max_size": "120kB"},
}
PIECE = {"start": "f9", "duration": "f36", "input_height": 90, "segment_frames": 9}


def cut_clip(samples, path):
    """Encode 54 frames of a real clip with a key frame in nine, and copy its sound."""
    with av.open(str(samples / "bigbuckbunny-360p.mp4")) as box, av.open(str(path), "w") as sink:
        video = sink.add_stream("libx264", rate=25, options=repeatable("libx264", {"g": "9"}, "yuv420p", (320, 180)))
        video.width, video.height, video.pix_fmt = 320, 180, "yuv420p"
        sound = sink.add_stream_from_template(box.streams.audio[0])
        for packet in box.demux():
            if packet.stream.type == "audio" and packet.size and packet.pts * packet.time_base < 2:
                packet.stream = sound
                sink.mux(packet)
            elif packet.stream.type == "video":
                for frame in packet.decode():
                    if frame.time < 54 / 25:
                        picture = frame.reformat(320, 180)
                        picture.pict_type = PictureType.NONE
                        sink.mux(video.encode(picture))
        sink.mux(video.encode(None))
    return path


def results(clip, folder):
    """Enhance a piece of a real clip with every encoder that has sizes; bytes by suffix."""
    found = {}
    for suffix, settings in JOBS.items():
        output = folder / f"b{suffix}"
        options = EnhanceOptions(encoding=Encoding(**settings), check="strict", **PIECE)
        (video,) = enhance_videos(clip, output, models="websr-x2-s", options=options).videos
        assert (video.frames, video.segments) == (36, 4), video
        found[suffix] = output.read_bytes()
        assert verify_video(output).failures == ()
        if "max_size" in settings:
            most = Encoding(**settings).max_size
            assert 0.95 * most <= len(found[suffix]) <= most, (suffix, len(found[suffix]), video.notes)
        else:
            with av.open(str(output)) as box:
                taken = sum(packet.size for packet in box.demux(video=0))
            assert 0.95 <= taken * 8 / (500_000 * 36 / 25) <= 1
    return found


@pytest.mark.cluster
@pytest.mark.slow
def test_sizes_hold_whatever_the_workers_and_restarts(ray_session, command, samples, tmp_path):
    clip = cut_clip(samples, tmp_path / "a clip.mp4")
    folders = [tmp_path / name for name in ("one", "two", "killed")]
    for folder in folders:
        folder.mkdir()
    options = EnhanceOptions(encoding=Encoding(**JOBS[".mp4"]), **PIECE)
    (told,) = forecast_videos(clip, folders[0] / "b.mp4", models="websr-x2-s", options=options).clips
    assert any("kb/s" in note for note in told.notes)
    with ray_of(1):
        alone = results(clip, folders[0])
    assert results(clip, folders[1]) == alone  # by as many workers as there are CPUs
    for suffix in (".mp4", ".mov"):
        data = alone[suffix]
        assert 0 < data.index(b"moov") < data.index(b"mdat")  # fast start
    assert b"hvc1" in alone[".mov"]
    output = folders[2] / "b.mp4"
    settings = JOBS[".mp4"]
    words = ["--max-size", settings["max_size"], "--encoder-preset", settings["preset"], "--check", "strict"]
    words += [word for name, value in PIECE.items() for word in (f"--{name.replace('_', '-')}", value)]
    words = ["enhance", clip, "-o", output, "--model", "websr-x2-s", "--json", *words]
    job = start(*words)
    work = output.with_name(output.name + ".genai-ray")
    wait_until(lambda: any(work.glob("*.nut")) or output.exists(), job)
    children = descendants(job.pid)
    kill(job.pid)
    job.communicate()
    wait_until(lambda: not any(is_alive(pid) for pid in children))
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["segments"] == 4
    assert output.read_bytes() == alone[".mp4"]
    assert sorted(path.name for path in folders[2].iterdir()) == ["b.mp4", "b.mp4.record.json"]


@pytest.mark.cluster
@pytest.mark.slow
def test_all_kinds_of_clips_keep_to_a_size(ray_session, tmp_path):
    """No sound, two tracks of it, odd sides, 10 bits, a variable rate, a rotation, one frame; and one too still."""
    clips = {
        "no sound.mkv": {"tracks": 0},
        "two tracks.mp4": {"tracks": 2},
        "odd.mkv": {"size": (95, 63), "pix_fmt": "yuv444p"},
        "deep.mkv": {"pix_fmt": "yuv420p10le", "codec": "ffv1"},
        "variable.mkv": {"pts": [index * index // 8 + index for index in range(40)]},
        "turned.mp4": {"more": lambda stream: stream.set_display_rotation(90)},
        "one frame.mkv": {"pts": [0], "tracks": 0},
    }
    sources = [write(tmp_path / name, **made) for name, made in clips.items()]
    options = EnhanceOptions(encoding=replace(FAST, max_size="70kB"), segment_frames=10, check="off")
    report = enhance_videos(sources, tmp_path / "out", models="websr-x2-s", options=options)
    assert [video.error for video in report.videos] == [""] * len(clips)
    for video in report.videos:
        size = Path(video.output).stat().st_size
        is_noted = any("the best quality does not take more" in note for note in video.notes)
        assert size <= 70_000, video
        assert is_noted == (size < 0.95 * 70_000), video
        assert is_noted == video.source.endswith("one frame.mkv"), video
    by_name = {Path(video.source).name: plan_video(video.output).info for video in report.videos}
    assert by_name["deep.mkv"].bit_depth == 10
    assert by_name["turned.mp4"].rotation == 90
