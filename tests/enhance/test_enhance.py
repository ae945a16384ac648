"""The main job on a real clip, as a person runs it, and what it refuses."""

import json
import subprocess
import sys

import av
import numpy as np
import pytest

from genai_ray.cli import main
from tests.video.clips import NUM_FRAMES, write


def run(*args):
    return subprocess.run(
        [sys.executable, "-m", "genai_ray.cli", *map(str, args)], capture_output=True, text=True, check=False
    )


def facts(path):
    with av.open(str(path)) as box:
        video = box.streams.video[0]
        frames = [(frame.pts * frame.time_base, frame.width, frame.height) for frame in box.decode(video)]
        colour = (video.codec_context.colorspace, video.codec_context.color_range)
    with av.open(str(path)) as box:
        audio = (
            [bytes(packet) for packet in box.demux(box.streams.audio[0]) if packet.size] if box.streams.audio else []
        )
    return frames, colour, audio


@pytest.mark.slow
def test_a_clip_becomes_a_better_one(samples, tmp_path):
    source, result = samples / "bigbuckbunny-360p.mp4", tmp_path / "enhanced.mp4"
    done = run(
        "enhance",
        source,
        "-o",
        result,
        "--model",
        "websr-x2-s",
        "--encoder-preset",
        "ultrafast",
        "--segment-frames",
        50,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    assert (report["frames"], report["segments"], report["segments_reused"]) == (132, 3, 0)
    assert report["frames_inferred"] == 132
    assert report["models"] == [
        {"model_id": "websr-x2-s", "backend": "onnx", "precision": "fp32", "device": "cpu", "device_kind": "cpu"}
    ]
    assert report["outputs"] == [str(result)]
    before, after = facts(source), facts(result)
    assert [time for time, _, _ in after[0]] == [time for time, _, _ in before[0]]
    assert {size for _, *size in map(tuple, after[0]) for size in [tuple(size)]} == {(1280, 720)}
    assert after[1] == before[1]
    assert after[2] == before[2]
    assert list(tmp_path.iterdir()) == [result]


@pytest.fixture
def bad(tmp_path, samples):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    whole = (samples / "bigbuckbunny-720p.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with av.open(str(tmp_path / "sound.mp4"), "w") as sink:
        stream = sink.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.rate = 48000
        sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    (tmp_path / "there.mp4").write_bytes(b"precious")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "output", "more", "code", "words"),
    [
        ("missing.mp4", "out.mp4", [], 2, "missing.mp4: no such file"),
        ("empty.mp4", "out.mp4", [], 1, "empty.mp4: the file is empty"),
        ("text.mp4", "out.mp4", [], 1, "text.mp4: not a video"),
        ("sound.mp4", "out.mp4", [], 1, "sound.mp4: no video stream"),
        ("cut.mp4", "out.mp4", [], 1, "cut.mp4"),
        ("cut.mp4", "nowhere/out.mp4", [], 1, "cut.mp4"),
        ("cut.mp4", "text.mp4/out.mp4", [], 2, "text.mp4 is a file"),
        ("cut.mp4", "nowhere", [], 2, "End the name of a folder with /"),
        ("cut.mp4", "cut.mp4", [], 2, "is an input"),
        ("cut.mp4", "there.mp4", [], 2, "--overwrite"),
        ("cut.mp4", "out.avi", [], 2, ".mp4, .mkv"),
        ("cut.mp4", "out.mp4", ["--model", "websr-x2"], 2, "Did you mean"),
        ("cut.mp4", "out.mp4", ["--model", "rife", "--model", "rife"], 2, "one model that adds frames"),
        (
            "cut.mp4",
            "out.mp4",
            ["--model", "selfie-segmentation", "--model", "websr-x2-s"],
            2,
            "as the last of the chain",
        ),
        ("cut.mp4", "out.mp4", ["--model", "rife", "--factor", "99"], 2, "from 2 to 16"),
        ("cut.mp4", "out.mp4", ["--model", "rife", "--fps", "sixty"], 2, "60000/1001"),
        ("cut.mp4", "out.mp4", ["--model", "rife", "--fps", "60", "--factor", "2"], 2, "one of them"),
        ("cut.mp4", "out.mp4", ["--model", "rife", "--param", "timestep=0.3"], 2, "timestep"),
        ("cut.mp4", "out.mp4", ["--model", "rife", "--scene-threshold", "2"], 2, "from 0 to 1"),
        ("cut.mp4", "out.mp4", ["--model", "websr-x2-s", "--scene-threshold", "0"], 2, "Add --model rife"),
        (
            "cut.mp4",
            "out.mp4",
            ["--model", "rife", "--scene-threshold", "0.2", "--scene-detector", "transnetv2"],
            2,
            "one of them: a threshold is for the detector 'threshold'",
        ),
        ("cut.mp4", "out.mp4", ["--model", "selfie-segmentation", "--background", "alpha"], 2, "ffv1"),
        ("cut.mp4", "out.mp4", ["--model", "selfie-segmentation", "--background", "green"], 2, "#00b140"),
        ("cut.mp4", "out.mp4", ["--start", "noon"], 2, "seconds such as 90"),
        ("cut.mp4", "out.mp4", ["--start", "-1"], 2, "start -1; allowed: from 0"),
        ("cut.mp4", "out.mp4", ["--start", "0:05", "--end", "3"], 2, "an end after its start"),
        ("cut.mp4", "out.mp4", ["--end", "3", "--duration", "3"], 2, "one of them"),
        ("cut.mp4", "out.mp4", ["--preview", "--end", "3"], 2, "one of them"),
        ("cut.mp4", "out.mp4", ["--size", "0x1080"], 2, "from 1 to 65535 pixels"),
        ("cut.mp4", "out.mp4", ["--height", "1081"], 2, "even sides"),
        ("cut.mp4", "out.mp4", ["--width", "1920", "--scale", "2"], 2, "one of them"),
        ("cut.mp4", "out.mp4", ["--fit", "pad"], 2, "--size 1920x1080"),
        ("cut.mp4", "out.mp4", ["--factor", "2"], 2, "Add --model rife"),
        ("cut.mp4", "out.mp4", ["--param", "sigma=1"], 2, "sigma"),
        ("cut.mp4", "out.mp4", ["--crf", "99"], 2, "crf"),
        ("cut.mp4", "out.mp4", ["--device", "tpu"], 2, "tpu"),
        ("cut.mp4", "out.mp4", ["--profile", "desktop"], 2, "laptop"),
        ("cut.mp4", "out.mp4", ["--backend", "ONNX2"], 2, "ONNX2"),
        ("cut.mp4", "out.mp4", ["--precision", "bf16"], 2, "precision 'bf16' of backend 'onnx'; allowed: fp32 or fp16"),
        ("cut.mp4", "out.mp4", ["--backend", "openvino", "--device", "cuda"], 1, "allowed: auto or cpu"),
    ],
)
def test_refusals(bad, source, output, more, code, words, monkeypatch, capsys):
    before = sorted(bad.iterdir())
    models = [] if "--model" in more else ["--model", "websr-x2-s"]
    monkeypatch.setattr(
        sys, "argv", ["genai-ray", "enhance", str(bad / source), "-o", str(bad / output), *models, *more]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    told = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == code, told
    assert words in told
    assert sorted(bad.iterdir()) == before
    assert (bad / "there.mp4").read_bytes() == b"precious"


@pytest.mark.slow
def test_ten_bits_and_their_tags_are_kept(tmp_path):
    source, result = tmp_path / "hlg.mkv", tmp_path / "enhanced.mkv"
    write(source, pix_fmt="yuv420p10le", colour=(9, 1, 9, 18))
    done = run("enhance", source, "-o", result, "--model", "websr-x2-s", "--codec", "ffv1", "--json")
    assert done.returncode == 0, done.stderr
    assert not any("bits" in note for note in json.loads(done.stdout)["videos"][0]["notes"])
    with av.open(str(result)) as box:
        codec = box.streams.video[0].codec_context
        tags = codec.colorspace, codec.color_range, codec.color_primaries, codec.color_trc
        frames = [frame.to_ndarray() for frame in box.decode(video=0)]
    assert (codec.pix_fmt, tags) == ("yuv420p10le", (9, 1, 9, 18))
    assert len(frames) == NUM_FRAMES
    assert np.count_nonzero(frames[0] % 4) > frames[0].size // 4  # values that 8 bits do not have
