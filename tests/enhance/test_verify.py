"""The record beside a result of ``check="strict"``, and ``verify``: what is planted in file or record is found."""

import hashlib
import json
import shutil
from fractions import Fraction
from itertools import combinations

import av
import numpy as np
import pytest

from genai_ray import EnhanceOptions, ModelCache, enhance_videos, errors, verify_video
from genai_ray.enhance.job.clip_plan import examine_clip, open_clip
from genai_ray.enhance.job.records import expand_times, options_of
from genai_ray.enhance.job.segment_store import node_kind
from genai_ray.enhance.job.steps import run_segment
from genai_ray.enhance.job.verify import count_sampled, miss_rate
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.options import check_models
from genai_ray.enhance.segment.segment import JobContext
from genai_ray.session import processor_kind
from genai_ray.video import Encoding, plan_video, read_record_name
from genai_ray.video.reading.digest import name_record
from tests.enhance.moving import pan, write_frames
from tests.video.clips import write

MODEL = "websr-x2-s"
FRAMES = 12
FAST = Encoding(preset="ultrafast")


def strict(**others):
    return EnhanceOptions(**{"encoding": FAST, "segment_frames": 4, "check": "strict"} | others)


@pytest.fixture(scope="module")
def clips(ray_session, tmp_path_factory):
    """A folder with a source, its result, and the result's record."""
    folder = tmp_path_factory.mktemp("verified")
    write_frames(folder / "a.mkv", pan(FRAMES, size=(96, 64)))
    enhance_videos(folder / "a.mkv", folder / "b.mp4", models=MODEL, options=strict())
    return folder


@pytest.fixture
def copy(clips, tmp_path):
    """The result with its record, to be spoiled."""
    for name in ("b.mp4", "b.mp4.record.json"):
        shutil.copy(clips / name, tmp_path)
    return tmp_path / "b.mp4"


def record_of(path):
    return path.with_name(path.name + ".record.json")


@pytest.mark.slow
def test_a_record_says_what_was_made_of_what(clips):
    content = record_of(clips / "b.mp4").read_bytes()
    record = json.loads(content)
    assert read_record_name(str(clips / "b.mp4")) == hashlib.sha256(content).hexdigest()
    assert [len(record["models"]), record["models"][0]["model"], record["precision"]] == [1, MODEL, "fp32"]
    assert [part["source_frames"] for part in record["segments"]] == [[0, 4], [4, 8], [8, 12]]
    for part in record["segments"]:
        assert (part["frames"], part["frames_checked"], len(part["frames_sha256"])) == (4, 4, 64)
        assert part["measured"]["lowest_consistency_db"] > 26
    assert expand_times(record["result"]) == [Fraction(index, 25) for index in range(FRAMES)]
    assert options_of(record) == strict(encoding=FAST.fit(".mp4"))
    assert str(clips) not in content.decode()


def test_a_whole_result_passes(clips):
    report = verify_video(clips / "b.mp4")
    assert (report.passed, report.failures, report.frames, report.segments) == (True, (), FRAMES, 3)
    assert (report.sampled, report.seed, report.miss_rates) == ((), None, ())
    report = verify_video(clips / "b.mp4", clips / "a.mkv", sample="50%", seed=3)
    assert (report.passed, report.is_exact, len(report.sampled), report.seed) == (True, True, 2, 3)
    assert report.sampled == verify_video(clips / "b.mp4", clips / "a.mkv", sample="2", seed=3).sampled
    assert dict(report.miss_rates) == {1: pytest.approx(1 / 3)}


def spoil_picture(path):
    """Encode one frame otherwise, and keep everything else."""
    spoiled = path.with_name("spoiled.mp4")
    with av.open(str(path)) as box, av.open(str(spoiled), "w") as sink:
        old = box.streams.video[0]
        stream = sink.add_stream("libx264", rate=25, options={"crf": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = old.width, old.height, old.pix_fmt
        stream.time_base = stream.codec_context.time_base = old.time_base
        codec, before = stream.codec_context, old.codec_context
        codec.colorspace, codec.color_range = before.colorspace, before.color_range
        codec.color_primaries, codec.color_trc = before.color_primaries, before.color_trc
        sink.metadata.update(box.metadata)
        for index, frame in enumerate(box.decode(old)):
            if index == 5:
                plane = frame.planes[0]
                data = bytearray(bytes(plane))
                data[0] ^= 1
                plane.update(bytes(data))
            frame.pict_type = 0
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    spoiled.replace(path)


def remux(path, *, tag=None, delay=0, drop=()):
    """Copy the packets with other tags or times."""
    moved = path.with_name("moved.mp4")
    with av.open(str(path)) as box, av.open(str(moved), "w") as sink:
        old = box.streams.video[0]
        stream = sink.add_stream_from_template(old)
        stream.time_base = old.time_base
        sink.metadata.update({key: value for key, value in box.metadata.items() if key != "comment" or tag is None})
        if tag:
            sink.metadata["comment"] = tag
        packets = [packet for packet in box.demux(old) if packet.size]
        for index, packet in enumerate(packets):
            if index in drop:
                continue
            packet.stream = stream
            if index >= len(packets) // 2:  # ultrafast has no B-frames: decode order is display order
                packet.pts += delay
                packet.dts += delay
            sink.mux(packet)
    moved.replace(path)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            spoil_picture,
            "1 of 3 segments have other frames than the record says: 1; the first one begins with frame 4 at",
        ),
        (lambda path: remux(path, tag=""), "names no record"),
        (lambda path: remux(path, tag=f"genai-ray record sha256:{'0' * 64}"), "names the record sha256:0000"),
        (lambda path: remux(path, drop=range(8, 12)), "it has 8 frames; the record says 12"),
        (lambda path: remux(path, delay=4000), "s after the first one; the record says"),
    ],
    ids=["one bit of one pixel", "no name", "another name", "fewer frames", "later frames"],
)
def test_what_is_planted_in_the_file_is_found(copy, spoil, told):
    spoil(copy)
    report = verify_video(copy)
    assert not report.passed
    assert any(told in text for text in report.failures), report.failures


def test_a_changed_record_is_found(copy):
    record = json.loads(record_of(copy).read_bytes())
    record["segments"][2]["frames_sha256"] = "0" * 64
    record["result"]["colour"][0] = 9
    record["result"]["steps"] = [[11, 1]]
    record_of(copy).write_text(json.dumps(record))
    told = " | ".join(verify_video(copy).failures)
    for words in ("but the record beside it is", "colour tags", "segments have other frames than the record says: 2"):
        assert words in told


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("segments",), []),
        (("segments", 1, "frames"), 3),
        (("segments", 1, "frames"), -4),
        (("result", "frames"), 11),
        (("result", "frames"), 12.0),
        (("result", "steps"), [[10**12, 1]]),
        (("segments", 0, "frames_sha256"), None),
        (("models",), None),
    ],
)
def test_a_record_whose_numbers_disagree_is_an_error(copy, place, value):
    record = json.loads(record_of(copy).read_bytes())
    spoiled = record
    for name in place[:-1]:
        spoiled = spoiled[name]
    if value is None:
        del spoiled[place[-1]]
    else:
        spoiled[place[-1]] = value
    rename(copy, record)
    with pytest.raises(errors.VideoError, match="not a whole record"):
        verify_video(copy)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"format": "genai-ray record 2"}', b"\xff", b"[" * 10**5]
)
def test_what_is_no_record_is_an_error(copy, content):
    record_of(copy).write_bytes(content)
    with pytest.raises(errors.VideoError, match=r"b\.mp4\.record\.json: (not a whole record|a record of format)"):
        verify_video(copy)


def test_missing_files_are_errors(copy, clips):
    with pytest.raises(errors.VideoError, match="no such file"):
        verify_video(copy.with_name("none.mp4"))
    record_of(copy).unlink()
    with pytest.raises(errors.VideoError, match=r"has no record.*--check strict"):
        verify_video(copy)


def test_another_source_or_model_is_found(clips, tmp_path, copy):
    other = write_frames(tmp_path / "a.mkv", pan(FRAMES, size=(96, 64), step=(2, 1)))
    report = verify_video(clips / "b.mp4", other)
    assert (report.passed, report.sampled) == (False, ())
    assert "a.mkv is not the source: its packets are sha256:" in report.failures[0]
    record = json.loads(record_of(copy).read_bytes())
    record["models"][0]["sha256"] = "0" * 64
    record_of(copy).write_text(json.dumps(record))
    assert "model websr-x2-s is sha256:" in verify_video(copy, clips / "a.mkv").failures[-1]
    record["models"][0]["model"] = "mine.onnx"
    record_of(copy).write_text(json.dumps(record))
    with pytest.raises(errors.ConfigError, match=r"model mine\.onnx is a file.*--model"):
        verify_video(copy, clips / "a.mkv")


def rename(copy, record):
    """Write a record, and name it in the file: what a computation gives that does not do what it says."""
    content = json.dumps(record).encode()
    record_of(copy).write_bytes(content)
    remux(copy, tag=f"genai-ray record sha256:{hashlib.sha256(content).hexdigest()}")


def test_what_was_computed_otherwise_is_found_by_computing_again(clips, tmp_path, copy):
    record = json.loads(record_of(copy).read_bytes())
    enhance_videos(clips / "a.mkv", tmp_path / "c.mp4", models="websr-x2-m", options=strict())
    made = json.loads(record_of(tmp_path / "c.mp4").read_bytes())
    made["models"] = record["models"]
    rename(tmp_path / "c.mp4", made)
    report = verify_video(tmp_path / "c.mp4", clips / "a.mkv", sample="100%")
    assert len(report.failures) == 3
    assert report.failures[0].startswith("segment 0 has other frames when it is computed again from the source: PSNR ")
    assert verify_video(tmp_path / "c.mp4").passed  # nothing but the source can tell


def test_other_versions_need_only_agree(clips, copy):
    record = json.loads(record_of(copy).read_bytes())
    record["versions"][0] = "genai-ray=0.0.1"
    rename(copy, record)
    report = verify_video(copy, clips / "a.mkv", sample="1")
    assert (report.passed, report.is_exact, report.tolerance_db, report.miss_rates) == (True, False, 30.0, ())
    assert "which proves no model" in repr(report)
    assert "of the record: genai-ray=0.0.1" in report.inexact_because
    assert report.to_dict()["lowest_db"] == "inf"


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("result", "colour"), [5, 1, 5, 6], "give the colour tags"),
        (("result", "rotation"), 90, "give a rotation of 0 degrees; the record says 90"),
        (("result", "steps"), [[5, 40], [6, 45]], "show frame 6 0.240 s after the first one; the record says 0.245 s"),
        (("segments", 1, "precision"), "fp16", "segment 1 has another precision in the record"),
        (("segments", 1, "measured"), {}, "segment 1 has another measured in the record"),
    ],
)
def test_what_the_source_does_not_give_is_found(clips, copy, place, value, told):
    record = json.loads(record_of(copy).read_bytes())
    spoiled = record
    for name in place[:-1]:
        spoiled = spoiled[name]
    spoiled[place[-1]] = value
    rename(copy, record)
    failures = " | ".join(verify_video(copy, clips / "a.mkv", sample="100%").failures)
    assert told in failures


def test_each_segment_has_the_kind_of_its_processor(clips, copy):
    """As if one of three segments had been computed on another node."""
    record = json.loads(record_of(copy).read_bytes())
    assert [part["processors"] for part in record["segments"]] == [[processor_kind("cpu")]] * 3
    assert "node" not in record
    record["segments"][1]["processors"] = sorted([processor_kind("cpu"), processor_kind("NVIDIA L4")])
    rename(copy, record)
    report = verify_video(copy, clips / "a.mkv", sample="100%")
    assert (report.failures, report.is_exact, report.lowest_db) == ((), False, float("inf"))
    assert report.inexact_because == "segment 1 was computed on another kind of processor or GPU"
    alone = [verify_video(copy, clips / "a.mkv", sample="1", seed=seed) for seed in range(6)]
    assert {report.sampled[0] == 1 for report in alone} == {True, False}
    assert all(report.is_exact is (report.sampled[0] != 1) for report in alone)


def test_a_record_of_a_stranger_decides_nothing(clips, copy):
    record = json.loads(record_of(copy).read_bytes())
    record["options"]["cache_name"] = "theirs"
    rename(copy, record)
    with pytest.raises(errors.VideoError, match="'cache_name', which no record has"):
        verify_video(copy, clips / "a.mkv")
    del record["options"]["cache_name"]
    record["options"]["encoding"]["options"] = {"x264-params": "pass=1:stats=theirs"}
    rename(copy, record)
    with pytest.raises(errors.ConfigError, match=r"pass=1:stats=theirs to the encoder.*--trust-encoder-options"):
        verify_video(copy, clips / "a.mkv")


@pytest.mark.parametrize("more", [{"sample": "1%"}, {"seed": 0}, {"models": "a.onnx"}, {"address": "auto"}])
def test_options_for_computing_need_a_source(clips, more):
    with pytest.raises(errors.ConfigError, match=rf"{next(iter(more))} without a source.*--source"):
        verify_video(clips / "b.mp4", **more)


def test_sound_before_zero_moves_all_times_of_matroska(clips, samples, tmp_path):
    piece = strict(end=0.2, input_height=90)
    enhance_videos(samples / "bigbuckbunny-360p.mp4", tmp_path / "a.mp4", models=MODEL, options=piece)
    enhance_videos(tmp_path / "a.mp4", tmp_path / "b.mkv", models=MODEL, options=strict())
    assert verify_video(tmp_path / "b.mkv", tmp_path / "a.mp4").failures == ()


def test_a_name_within_a_line_is_replaced():
    metadata = {"comment": f"mine genai-ray record sha256:{'1' * 64}\n\nmore"}
    name_record(metadata, "2" * 64)
    assert metadata == {"comment": f"mine\n\nmore\ngenai-ray record sha256:{'2' * 64}"}
    name_record(metadata, "")
    assert metadata == {"comment": "mine\n\nmore"}


def test_a_lost_record_is_written_again(clips, tmp_path):
    """The work folder still has the marker, as after a job that died between publishing and clearing."""
    shutil.copy(clips / "a.mkv", tmp_path)
    made = enhance_videos(tmp_path / "a.mkv", tmp_path / "b.mp4", models=MODEL, options=strict(overwrite=True))
    assert made.videos[0].record
    record_of(tmp_path / "b.mp4").unlink()
    enhance_videos(tmp_path / "a.mkv", tmp_path / "b.mp4", models=MODEL, options=strict(overwrite=True))
    assert verify_video(tmp_path / "b.mp4").passed


def test_a_later_result_without_a_record_removes_the_old_one(clips, tmp_path):
    options = strict(overwrite=True)
    report = enhance_videos(clips / "a.mkv", tmp_path / "b.mp4", models=MODEL, options=options)
    assert report.videos[0].record == str(record_of(tmp_path / "b.mp4"))
    assert (tmp_path / "b.mp4").read_bytes() == (clips / "b.mp4").read_bytes()
    report = enhance_videos(
        clips / "a.mkv", tmp_path / "b.mp4", models=MODEL, options=strict(overwrite=True, check="off")
    )
    assert report.videos[0].record == ""
    assert [path.name for path in tmp_path.iterdir()] == ["b.mp4"]
    assert read_record_name(str(tmp_path / "b.mp4")) == ""


def test_a_resumed_job_gives_the_same_record(clips, tmp_path):
    """Segments of an earlier job: two of them whole, and of one the note for the record is damaged."""
    (target,) = resolve_targets([clips / "a.mkv"], tmp_path / "b.mp4", strict())
    specs, kind = check_models(MODEL, strict()), node_kind(is_gpu=False)
    planned = open_clip(examine_clip(target, specs, strict()), specs, kind)
    cache = ModelCache()
    for index in range(planned.segments):
        run_segment(planned, index, JobContext(specs, (), strict(), cache, "resumed", kind))
    cache.close()
    first, *_ = notes = sorted((tmp_path / "b.mp4.genai-ray").glob("*.note"))
    first.write_bytes(first.read_bytes().replace(b'"frames_checked": 4', b'"frames_checked": 3'))
    assert len(notes) == 3
    report = enhance_videos(clips / "a.mkv", tmp_path / "b.mp4", models=MODEL, options=strict())
    assert (report.segments_reused, report.frames_checked) == (2, 4)
    assert record_of(tmp_path / "b.mp4").read_bytes() == record_of(clips / "b.mp4").read_bytes()
    assert (tmp_path / "b.mp4").read_bytes() == (clips / "b.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.mp4", "b.mp4.record.json"]


def test_only_videos_have_records(clips, tmp_path):
    options = strict(encoding=Encoding())
    report = enhance_videos(clips / "a.mkv", tmp_path / "b.parquet", models=MODEL, options=options)
    assert report.videos[0].record == ""
    assert "it has no record: only a video file can name one" in report.videos[0].notes
    with pytest.raises(errors.ConfigError, match=r"a name of 2\d\d bytes"):
        enhance_videos(clips / "a.mkv", tmp_path / f"{'b' * 240}.mp4", models=MODEL, options=strict())


def test_a_result_of_a_result_names_its_own_record(clips, tmp_path):
    enhance_videos(clips / "b.mp4", tmp_path / "c.mkv", models=MODEL, options=strict(end=0.16))
    assert verify_video(tmp_path / "c.mkv", clips / "b.mp4", sample="100%").passed
    enhance_videos(clips / "b.mp4", tmp_path / "d.mkv", models=MODEL, options=strict(end=0.16, check="default"))
    assert read_record_name(str(tmp_path / "d.mkv")) == ""


@pytest.mark.parametrize(
    ("sample", "segments", "wanted"),
    [("1%", 7, 1), ("1%", 1000, 10), ("0.1%", 1500, 2), ("7%", 100, 7), ("100%", 9, 9), ("3", 9, 3), ("20", 9, 9)],
)
def test_a_sample_is_a_share_or_a_number(sample, segments, wanted):
    assert count_sampled(sample, segments) == wanted


@pytest.mark.parametrize("sample", ["", "0", "0%", "101%", "1.5", "-1", "all", "1 in 5"])
def test_another_sample_is_refused(clips, sample):
    with pytest.raises(errors.ConfigError, match="a share such as 1%"):
        verify_video(clips / "b.mp4", clips / "a.mkv", sample=sample)


@pytest.mark.parametrize(("segments", "wrong", "sampled"), [(6, 1, 1), (6, 2, 3), (7, 3, 2), (5, 4, 3), (5, 0, 2)])
def test_the_miss_rate_is_what_counting_gives(segments, wrong, sampled):
    samples = list(combinations(range(segments), sampled))
    missed = sum(min(sample) >= wrong for sample in samples)
    assert miss_rate(segments, wrong, sampled) == pytest.approx(missed / len(samples))


def test_the_command_says_what_differs(ray_session, command, clips, copy):
    done = command("verify", clips / "b.mp4", "--source", clips / "a.mkv", "--seed", 1)
    assert done.returncode == 0, done.stderr
    for words in (
        "1 of 3 segments computed again, seed 1",
        "if there were 1 wrong segment: missed",
        "as its record says",
    ):
        assert words in done.stdout
    remux(copy, tag="")
    done = command("verify", copy, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["failures"] == ["the file names no record in its metadata"]


CASES = [
    (".mp4", "libx264", "yuv420p", {}),
    (".mov", "prores_ks", "yuv422p10le", {}),
    (".mkv", "ffv1", "yuv444p", {}),
    (".webm", "libvpx-vp9", "yuv420p", {"preset": "8"}),
    (".mkv", "libsvtav1", "yuv420p10le", {"preset": "12"}),
    (".mp4", "libx265", "yuv420p10le", {"preset": "ultrafast"}),
]


def write_alpha(path, frames):
    with av.open(str(path), "w") as box:
        stream = box.add_stream("qtrle", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "argb"
        for frame in frames:
            box.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba").reformat(format="argb")))
        box.mux(stream.encode(None))


def test_alpha_of_prores_is_kept_and_recorded(ray_session, tmp_path):
    frames = np.full((4, 64, 96, 4), 100, np.uint8)
    frames[..., 3] = np.arange(96)
    write_alpha(tmp_path / "a.mov", frames)
    enhance_videos(
        tmp_path / "a.mov", tmp_path / "b.mov", models=MODEL, options=strict(encoding=Encoding(codec="prores_ks"))
    )
    with av.open(str(tmp_path / "b.mov")) as box:
        context = box.streams.video[0].codec_context
        assert (context.codec_tag, context.pix_fmt.startswith("yuva")) == ("ap4h", True)
    assert verify_video(tmp_path / "b.mov").failures == ()


def test_alpha_that_a_container_cannot_hold_is_not_encoded(ray_session, tmp_path):
    frames = np.full((4, 64, 96, 4), 100, np.uint8)
    frames[..., 3] = np.arange(96)
    write_alpha(tmp_path / "a.mov", frames)
    options = strict(encoding=Encoding(codec="vp9", preset="8"))
    report = enhance_videos(tmp_path / "a.mov", tmp_path / "b.mp4", models=MODEL, options=options)
    assert "alpha was left out: .mp4 cannot hold it with libvpx-vp9" in report.videos[0].notes
    verified = verify_video(tmp_path / "b.mp4", tmp_path / "a.mov", sample="100%")
    assert (verified.failures, verified.is_exact) == ((), True)
    assert plan_video(tmp_path / "b.mp4").info.pix_fmt == "yuv420p"


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "codec", "pix_fmt", "more"), CASES, ids=[f"{case[1]}{case[0]}" for case in CASES])
def test_every_container_and_encoder_gives_its_frames_again(ray_session, tmp_path, suffix, codec, pix_fmt, more):
    """Sound that begins first, times that vary, a comment of the source's own, and full-range colour."""
    pts = [2 * index + index % 3 for index in range(40)]
    clip = write(tmp_path / "a.mkv", pix_fmt="yuv420p", pts=pts, colour=(1, 2, 1, 1), options={"g": "7", "bf": "2"})
    options = strict(
        encoding=Encoding(codec=codec, bit_depth=10 if "10" in pix_fmt else None, **more), segment_frames=11
    )
    output = tmp_path / f"b{suffix}"
    enhance_videos(clip, output, models=MODEL, options=options)
    report = verify_video(output, clip, sample="100%")
    assert report.failures == ()
    assert len(report.sampled) == report.segments == 4
