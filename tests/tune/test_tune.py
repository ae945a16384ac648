"""AUTO: what is measured is real, what is chosen follows from it, and a record is used only if it holds."""

import json
import math
import time

import numpy as np
import openvino as ov
import pytest

from genai_ray import InferenceSession, ModelBackend, ModelPrecision, SessionLimits, errors
from genai_ray.session import count_cores
from genai_ray.tune import REFERENCE, Measured, Way, candidates, choose_way, find_tuning, tune_model
from genai_ray.tune.measure import PART_PX
from tests.processes import ROOT
from tests.session.test_any_model import save, value

FP32, BF16, FP16, AUTO = (ModelPrecision(word) for word in ("fp32", "bf16", "fp16", "auto"))
EXACT, LOWER = Way(ModelBackend.OPENVINO, FP32), Way(ModelBackend.OPENVINO, BF16)
HAS_BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "genai_ray" / "tuned"


def table(onnx=100.0, exact=100.0, lower=100.0, lower_db=55.0):
    """Measurements of one model; None for a way that was refused."""
    found = []
    for way, speed, quality in ((REFERENCE, onnx, None), (EXACT, exact, 130.0), (LOWER, lower, lower_db)):
        found.append(Measured(way, speed, quality) if speed is not None else Measured(way, refused="no"))
    return found


@pytest.mark.parametrize(
    ("models", "precision", "min_db", "way"),
    [
        ([table(100, 104, 104)], AUTO, 40, REFERENCE),  # not faster than the noise
        ([table(100, 106, 106)], AUTO, 40, EXACT),  # BF16 is not faster than FP32
        ([table(100, 106, 112)], AUTO, 40, LOWER),
        ([table(100, 90, 106)], AUTO, 40, LOWER),
        ([table(100, 106, 999)], FP32, 40, EXACT),
        ([table(100, 106, 999)], AUTO, 55, LOWER),
        ([table(100, 106, 999)], AUTO, 55.1, EXACT),
        ([table(100, 999, 999)], AUTO, 120, EXACT),
        ([table(100, 999, 999, math.inf)], AUTO, 120, EXACT),
        ([table(100, None, None)], AUTO, 40, REFERENCE),
        ([table(100, 200, None)], AUTO, 40, EXACT),
        ([table(100, 400, 900), table(100, 110, None)], AUTO, 40, EXACT),  # one model of the chain lacks BF16
        ([table(1000, 4000, 4000), table(10, 9, 9)], AUTO, 40, REFERENCE),  # the slow model counts
        ([table(1000, 900, 900), table(10, 10, 20)], AUTO, 40, LOWER),
    ],
)
def test_the_choice_follows_from_measurements(models, precision, min_db, way):
    assert choose_way(models, precision, min_db) == way
    assert choose_way([list(reversed(model)) for model in models], precision, min_db) == way


def test_a_model_after_an_upscaler_counts_by_its_larger_frames():
    models = [table(100, 126, None), table(100, 95, None)]
    assert choose_way(models, FP32, 40, [1, 1]) == EXACT
    assert choose_way(models, FP32, 40, [1, 16]) == REFERENCE


def test_the_choice_is_that_of_the_table_of_the_page():
    """Measurements that were kept: what docs/backends.md says of this processor."""
    kept = json.loads((ROOT / "tests/benchmarks/results/backend_speed.json").read_text())
    chosen = {}
    for model_id, ways in kept.items():
        if not isinstance(ways, dict) or "onnx fp32" not in ways:
            continue
        found = []
        for name, one in ways.items():
            backend, precision = name.split()
            way = Way(ModelBackend(backend), ModelPrecision(precision))
            if "refused" in one:
                found.append(Measured(way, refused=one["refused"]))
            else:
                quality = None if way == REFERENCE else float(one["db"])
                found.append(Measured(way, 176 * 144e3 / np.median(one["ms"]), quality))
        chosen[model_id] = [choose_way([found], precision, 40) for precision in (FP32, AUTO)]
    assert len(chosen) == 13
    assert [name for name, (exact, _) in chosen.items() if exact == EXACT] == [
        "realesr-animevideov3-x2",
        "realesr-animevideov3-x4",
        "rife",
    ]
    assert [name for name, (_, lower) in chosen.items() if lower == REFERENCE] == [
        "selfie-segmentation",
        "selfie-segmentation-landscape",
        "websr-x2-s",
    ]


def test_candidates_begin_with_the_reference():
    assert candidates(FP32, is_gpu=False) == (REFERENCE, EXACT)
    assert candidates(AUTO, is_gpu=False) == (REFERENCE, EXACT, LOWER, Way(ModelBackend.OPENVINO, FP16))
    assert candidates(FP32, is_gpu=True) == (REFERENCE,)
    assert candidates(AUTO, is_gpu=True) == (REFERENCE,)


@pytest.mark.parametrize(
    ("model_id", "size"),
    [
        ("websr-x2-s", (300, 70)),
        pytest.param("esrgan-2x", (40, 48), marks=pytest.mark.slow),
        pytest.param("rife", (64, 64), marks=pytest.mark.slow),
    ],
)
def test_what_is_measured_is_real(folder, monkeypatch, model_id, size):
    """Speeds lie between the shortest call and the whole time; dB and refusals are those of sessions."""
    calls = {}
    infer = InferenceSession.infer

    def watched(session, frames, *args, **options):
        started = time.perf_counter()
        result = infer(session, frames, *args, **options)
        way = (session.backend, session.precision)
        count = len(frames) - (model_id == "rife")
        calls.setdefault(way, []).append((time.perf_counter() - started, count * frames.shape[1] * frames.shape[2]))
        return result

    monkeypatch.setattr(InferenceSession, "infer", watched)
    started = time.perf_counter()
    tuning = tune_model(model_id, size, device="cpu")
    elapsed_s = time.perf_counter() - started
    assert [one.way for one in tuning.measured] == list(candidates(AUTO, is_gpu=False))
    assert tuning.part == ((min(size[0], PART_PX), size[1]) if model_id != "rife" else size)
    limits = SessionLimits(max_frame=tuning.part)
    for one in tuning.measured:
        backend, precision = one.way
        options = {"backend": backend, "precision": precision, "device": "cpu", "limits": limits}
        if one.refused:
            with pytest.raises(errors.GenAIRayError) as refusal:
                InferenceSession(model_id, **options)
            assert one == Measured(one.way, refused=str(refusal.value))
            continue
        with InferenceSession(model_id, **options) as session:
            told = session.status()
        assert (one.num_runs, one.run_batch, one.tile_size_px) == (
            told["num_runs"],
            told["run_batch"],
            told["tile_size_px"],
        )
        assert one.precision_db == (None if one.way == REFERENCE else pytest.approx(float(told["precision_db"])))
        assert one.memory_bytes >= 0  # a process that has used much memory before need not grow
        seconds, pixels = zip(*calls[one.way], strict=True)
        assert len(seconds) >= 2
        assert pixels[0] / elapsed_s < one.pixels_per_s <= pixels[0] / min(seconds)
        assert tuning.frames_per_s(one) == one.pixels_per_s / (size[0] * size[1])


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no BF16")
def test_a_model_that_differs_is_refused(folder):
    tuning = tune_model("selfie-segmentation-landscape", (72, 72), device="cpu")
    refused = {one.way: one.refused for one in tuning.measured}
    assert "agrees with fp32 by only" in refused[LOWER]
    assert choose_way([tuning.measured], AUTO, 40) != LOWER


def test_a_loop_is_left_to_the_reference(folder, tmp_path):
    """OpenVINO computes loops wrongly: the only way that is left is ONNX Runtime."""
    path = save_loop(tmp_path / "loop.onnx")
    tuning = tune_model(path, (64, 64), device="cpu")
    refused = {one.way: one.refused for one in tuning.measured}
    assert "control flow" in refused[EXACT]
    assert all(refused[way] for way in candidates(AUTO, is_gpu=False)[1:])
    assert choose_way([tuning.measured], AUTO, 40) == REFERENCE


def save_loop(path):
    """An upscaler by 2 whose result passes an If."""
    import onnx
    from onnx import helper

    x, y = value("x", ["n", 3, "h", "w"]), value("y", ["n", 3, "h2", "w2"])

    def branch(name, kind):
        return helper.make_graph(
            [helper.make_node("DepthToSpace", ["c"], [name], blocksize=2, mode=kind)],
            name,
            [],
            [value(name, ["n", 3, "h2", "w2"])],
        )

    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Less", ["m", "zero"], ["is_dark"]),
        helper.make_node("If", ["is_dark"], ["y"], then_branch=branch("a", "DCR"), else_branch=branch("b", "DCR")),
    ]
    kernel = np.zeros((12, 3, 3, 3), np.float32)
    kernel[np.arange(12), np.arange(12) % 3, 1, 1] = 1
    save(path, nodes, [x], [y], {"k": kernel, "zero": np.float32(0)})
    onnx.checker.check_model(str(path))
    return path


@pytest.mark.slow
def test_a_record_is_used_by_the_next_run(folder):
    size = (64, 64)
    assert find_tuning("websr-x2-s", size, device="cpu") is None
    first = tune_model("websr-x2-s", size, precision=FP32, device="cpu")
    assert not first.is_recorded
    assert find_tuning("websr-x2-s", size, precision=FP32, device="cpu").measured == first.measured
    assert find_tuning("websr-x2-s", size, device="cpu") is None  # BF16 was not measured
    assert find_tuning("websr-x2-m", size, precision=FP32, device="cpu") is None
    assert find_tuning("websr-x2-s", (64, 65), precision=FP32, device="cpu") is None
    both = tune_model("websr-x2-s", size, device="cpu")
    assert not both.is_recorded
    again = tune_model("websr-x2-s", (50, 60), device="cpu")  # of the same bucket
    assert (again.is_recorded, again.measured) == (True, both.measured)
    assert find_tuning("websr-x2-s", size, precision=FP32, device="cpu").measured == both.measured[:2]
    assert tune_model("websr-x2-s", size, device="cpu", is_new=True).is_recorded is False
    (path,) = folder.iterdir()
    assert path.suffix == ".json"


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A record of ``websr-x2-s`` for FP32 and frames of 32x32: its name and its text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place := tmp_path_factory.mktemp("record")))
        tune_model("websr-x2-s", (32, 32), precision=FP32, device="cpu")
    (path,) = (place / "genai_ray" / "tuned").iterdir()
    return path.name, path.read_text()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:-20], "damaged"),
        (lambda text: "[]", "damaged"),
        (lambda text: text.replace('"pixels_per_s": ', '"pixels_per_s": -'), "damaged"),
        (lambda text: text.replace('"openvino"', '"openmind"'), "damaged"),
        (lambda text: text.replace('"format": 2', '"format": 1'), "other versions"),
        (lambda text: text.replace('"numpy=', '"numpy=0.'), "other versions"),
    ],
)
def test_a_damaged_or_old_record_is_not_used(folder, record, caplog, damage, words):
    name, whole = record
    folder.mkdir(parents=True)
    (folder / name).write_text(whole)
    assert find_tuning("websr-x2-s", (32, 32), precision=FP32, device="cpu").is_recorded
    (folder / name).write_text(damage(whole))
    assert (folder / name).read_text() != whole
    assert find_tuning("websr-x2-s", (32, 32), precision=FP32, device="cpu") is None
    assert words in caplog.text
    assert str(folder / name) in caplog.text


def test_a_damaged_record_is_measured_anew(folder, record):
    folder.mkdir(parents=True)
    (folder / record[0]).write_text("[]")
    assert not tune_model("websr-x2-s", (32, 32), precision=FP32, device="cpu").is_recorded
    assert tune_model("websr-x2-s", (32, 32), precision=FP32, device="cpu").is_recorded


def test_a_changed_model_is_measured_anew(folder, tmp_path):
    from tests.session.test_any_model import save_upscaler

    path = save_upscaler(tmp_path / "own.onnx", scale=2)
    tune_model(path, (32, 32), precision=FP32, device="cpu")
    assert find_tuning(path, (32, 32), precision=FP32, device="cpu") is not None
    save_upscaler(path, scale=3)
    assert find_tuning(path, (32, 32), precision=FP32, device="cpu") is None


def test_a_record_that_cannot_be_written_is_told(folder, caplog):
    folder.parent.mkdir(parents=True)
    folder.write_text("a file")
    assert not tune_model("websr-x2-s", (32, 32), precision=FP32, device="cpu").is_recorded
    assert "cannot be written" in caplog.text


@pytest.mark.slow
def test_the_command(folder, command):
    done = command("tune", "websr-x2-s", "--size", "64x48", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    head, *rows, end = done.stdout.splitlines()
    assert head.split() == ["backend", "precision", "frames/s", "dB", "MB", "runs", "batch", "tile"]
    assert rows[0].split()[4:7] == [f"{count_cores()}", "1", "256"]  # the reference has no dB
    assert [row.split()[:2] for row in rows] == [str(way).split() for way in candidates(AUTO, is_gpu=False)]
    assert sum(row.rstrip().endswith("chosen") for row in rows) == 1
    assert end.startswith("websr-x2-s, 64x48 in parts of 64x48, on ")
    assert "trying openvino fp32" in done.stderr
    told = json.loads(
        command("tune", "websr-x2-s", "--size", "64x48", "--device", "cpu", "--min-quality-db", "120", "--json").stdout
    )
    assert (told["size"], told["min_quality_db"], len(told["tried"])) == ([64, 48], 120, 4)
    assert told["chosen"] == told["chosen_fp32"]
    assert told["chosen"]["precision"] == "fp32"
    assert all(one["frames_per_s"] > 0 or one["refused"] for one in told["tried"])
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["no-such-model"], "no-such-model"),
        (["websr-x2-s", "--size", "large"], "WIDTHxHEIGHT"),
        (["websr-x2-s", "--size", "0x10"], "sides from 1 to 16384"),
        (["websr-x2-s", "--size", "99999x10"], "sides from 1 to 16384"),
        (["websr-x2-s", "--min-quality-db", "39"], "from 40"),
        (["websr-x2-s", "--min-quality-db", "121"], "to 120"),
        (["websr-x2-s", "--min-quality-db", "nan"], "from 40"),
        (["websr-x2-s", "--device", "tpu"], "auto, cpu, cuda"),
    ],
)
def test_bad_input_is_refused(folder, command, asked, words):
    done = command("tune", *asked)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert not folder.exists()


def test_a_model_without_frames_is_refused(folder, tmp_path):
    from onnx import helper

    path = save(
        tmp_path / "add.onnx", [helper.make_node("Add", ["x", "x"], ["y"])], [value("x", [4])], [value("y", [4])]
    )
    with pytest.raises(errors.InvalidInputError, match="takes no frames"):
        tune_model(path, (64, 64))
    with pytest.raises(errors.ConfigError, match="fp32 or auto"):
        tune_model("websr-x2-s", (64, 64), precision=BF16)
