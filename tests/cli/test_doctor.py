"""``genai-ray doctor``: what it tries on this machine, and how it says what is broken."""

import io
import json
import os
import sys

import pytest
from rich.console import Console

from genai_ray import ModelCatalog
from genai_ray.catalog import dump_spec
from genai_ray.cli.doctor import print_diagnosis
from genai_ray.doctor import Diagnosis, Finding, State, diagnose
from genai_ray.doctor.clusters import check_cluster
from genai_ray.doctor.folders import check_folders
from genai_ray.doctor.media import check_media
from tests.processes import run


@pytest.fixture(scope="module")
def told():
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = run("doctor", "--json", env=env)
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def by_name(findings):
    return {finding["name"]: finding for finding in findings}


def test_what_this_machine_has_is_tried(told):
    found = by_name(told["findings"])
    assert told["works"] is True
    topics = list(dict.fromkeys(finding["topic"] for finding in told["findings"]))
    assert topics == ["machine", "runtimes", "video", "models", "folders", "cluster"]
    for name in ("ONNX Runtime, CPU", "OpenVINO, fp32"):
        assert (found[name]["state"], "ran websr-x2-s" in found[name]["detail"]) == ("ok", True)
    assert "untested" in found["GPU"]["detail"]
    assert "untested" in found["ONNX Runtime, CUDA"]["detail"]
    assert found["encodes, decodes"]["detail"] == "h264, hevc, av1, vp9, ffv1, prores, png, jpeg"
    assert "mpeg2video" in found["decodes too"]["detail"]
    assert found["VMAF"]["state"] == "ok"
    assert found["packaged"]["detail"].startswith("13 models")
    assert (found["u2net"]["state"], found["u2net"]["do"]) == ("absent", "genai-ray models pull u2net")
    assert "GB free" in found["temporary"]["detail"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_cuts_nothing(told, width):
    findings = [Finding(**finding | {"state": State(finding["state"])}) for finding in told["findings"]]
    findings.append(Finding("models", "x", State.BROKEN, "a hash is wrong", "genai-ray models pull x"))
    screen = io.StringIO()
    print_diagnosis(Diagnosis(tuple(findings)), Console(file=screen, width=width))
    lines = screen.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    text = "".join("".join(lines).split())
    for finding in findings:
        assert "".join(finding.name.split()) in text
        assert all(word in text for word in finding.detail.split() if len(word) < 20)
    assert "do:" in screen.getvalue()
    assert lines[-1] == "broken: x"


def test_a_corrupt_model_is_broken_and_the_exit_code_says_so(tmp_path):
    spec = ModelCatalog.default().get("websr-x2-s").model_copy(update={"sha256": "0" * 64})
    (tmp_path / "websr-x2-s.yaml").write_text(dump_spec(spec))
    (tmp_path / "wrong.yaml").write_text("model_id: wrong\ntask: dancing\n")
    done = run("doctor", env=os.environ | {"GENAI_RAY_MODELS": str(tmp_path), "RAY_ADDRESS": "127.0.0.1:9"})
    assert done.returncode == 1, done.stderr
    words = " ".join(done.stdout.split())
    assert "nothing answers at 127.0.0.1:9, which RAY_ADDRESS names" in words
    assert "wrong.yaml left out" in words
    assert done.stdout.splitlines()[-1] == "broken: ONNX Runtime, CPU, websr-x2-s, running"


def test_a_named_cluster_that_does_not_answer_is_broken():
    *_, last = check_cluster("127.0.0.1:9")
    assert (last.state, "--address names" in last.detail, "ray start --head" in last.do) == (State.BROKEN, True, True)


def test_folders_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file" / "below"))
    found = {finding.name: finding for finding in check_folders()}
    assert (found["of Ray"].state, "RAY_TMPDIR" in found["of Ray"].do) == (State.BROKEN, True)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "new"))
    found = {finding.name: finding for finding in check_folders()}
    assert "made when it is needed" in found["of Ray"].detail
    assert not (tmp_path / "new").exists()


def test_vmaf_without_its_extra_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    *_, vmaf = check_media()
    assert (vmaf.state, vmaf.do) == (State.ABSENT, 'pip install "genai-ray[vmaf]"')


def test_a_library_that_does_not_load_is_broken(monkeypatch):
    for topic in ("machine", "runtimes", "media", "models", "folders"):
        monkeypatch.setitem(sys.modules, f"genai_ray.doctor.{topic}", None)
    diagnosis = diagnose("127.0.0.1:9")
    assert not diagnosis.works
    assert [finding.topic for finding in diagnosis.findings if finding.name == "packages"] == [
        *("machine", "runtimes", "video", "models", "folders"),
    ]
    assert all("pip install" in finding.do for finding in diagnosis.findings if finding.name == "packages")
