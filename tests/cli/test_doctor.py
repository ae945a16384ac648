"""``genai-ray doctor``: what it tries on this machine, and how it says what is broken."""

import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

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
    hardware = found["in hardware"]
    assert hardware["state"] == ("absent" if hardware["detail"].startswith("no encoder works: ") else "ok")
    assert "h264_" in hardware["detail"]
    assert found["VMAF"]["state"] == "ok"
    assert found["packaged"]["detail"].startswith("17 models")
    assert (found["u2net"]["state"], found["u2net"]["do"]) == ("absent", "genai-ray models pull u2net")
    assert " free" in found["temporary"]["detail"]


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


@contextmanager
def listening(answer):
    """Listen on a port of this machine, and give every connection to ``answer``."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            held = []
            with suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    with suppress(OSError):
                        answer(held[-1])
            for connection in held:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)  # ends accept
            thread.join()


def test_a_listener_that_is_silent_is_no_cluster(monkeypatch):
    monkeypatch.setattr("genai_ray.cluster.runtime.probe.ANSWER_WITHIN_S", 1.0)
    with listening(lambda connection: None) as address:
        *_, last = check_cluster(address)
    said = f"something listens at {address}, which --address names, but does not answer as Ray"
    assert (last.name, last.state, last.detail.startswith(said)) == ("running", State.BROKEN, True)


def test_a_listener_that_speaks_of_something_else_is_no_cluster(monkeypatch):
    with listening(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        *_, last = check_cluster(None)
    assert (last.state, "which RAY_ADDRESS names, but does not answer as Ray" in last.detail) == (State.BROKEN, True)


def test_a_listener_that_speaks_tls_is_not_tried():
    """It has no certificate, so that its answer is an alert, as is that to a client without one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with listening(lambda connection: context.wrap_socket(connection, server_side=True).close()) as address:
        *_, last = check_cluster(address)
    assert (last.state, last.detail) == (
        State.WARNING,
        f"not tried: {address}, which --address names, speaks TLS",
    )


@pytest.mark.parametrize("address", ["ray://dead:10001", "nonsense", "head:port"])
def test_an_address_of_another_form_is_not_tried(address):
    *_, last = check_cluster(address)
    assert (last.name, last.state) == ("running", State.WARNING)
    assert last.detail == f"not tried: {address}, which --address names, is not host:port"


@pytest.mark.parametrize("address", ["head..cluster:6379", "127.0.0.1:²", f"127.0.0.1:{10**30}"])
def test_an_address_that_cannot_be_one_does_not_answer(address):
    *_, last = check_cluster(address)
    assert (last.name, last.state, "nothing answers" in last.detail) == ("running", State.BROKEN, True)


def test_without_a_temporary_folder_the_rest_is_tried(tmp_path, monkeypatch):
    """No file may get a byte, so that Python finds no folder that it can write to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # without graphs that other tests have kept
    words = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", sys.executable, "-m", "genai_ray.cli", "doctor", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found = by_name(json.loads(done.stdout)["findings"])
    for name in ("ONNX Runtime, CPU", "video", "temporary"):
        assert (found[name]["state"], found[name]["do"]) == ("broken", "Set TMPDIR to a writable folder.")
        assert "no temporary folder is writable" in found[name]["detail"]
    assert found["FFmpeg"]["state"] == found["packaged"]["state"] == found["Ray"]["state"] == "ok"
    assert "packages" not in found


_LOOK = """
import json
from genai_ray.doctor import _check_folders, _check_models, _collect
both = {"folders": _check_folders, "models": _check_models}
print(json.dumps([(f.topic, f.name, f.state, f.detail, f.do) for topic in both for f in _collect(topic, both[topic])]))
"""


def as_user_without_rights():
    """Return what runs a command as a user whom the modes of files stop; None if that is not possible here."""
    if os.getuid():
        return []
    command = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    works = (
        shutil.which("unshare") and not subprocess.run([*command, "true"], check=False, capture_output=True).returncode
    )
    return command if works else None


@pytest.mark.parametrize("variable", ["HOME", "GENAI_RAY_MODELS"])
def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path, variable):
    user = as_user_without_rights()
    if user is None:
        pytest.skip("root may look into everything")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    own = ("HOME", "GENAI_RAY_MODELS", "XDG_DATA_HOME", "XDG_CACHE_HOME")
    env = {name: value for name, value in os.environ.items() if name not in own} | {variable: str(closed)}
    done = subprocess.run([*user, sys.executable, "-c", _LOOK], capture_output=True, text=True, check=False, env=env)
    closed.chmod(0o700)
    found = {(topic, name): rest for topic, name, *rest in json.loads(done.stdout)}
    state, detail, do = found["folders", "models"]
    assert (state, "is not writable: Permission denied" in detail) == ("warning", True)
    assert do == "Set GENAI_RAY_MODELS to a writable folder."
    # Of a home that may not be entered, not even the catalog's folder can be seen.
    name, expected = ("catalog", "broken") if variable == "HOME" else ("u2net", "warning")
    state, detail, do = found["models", name]
    assert (state, detail.startswith(str(closed)), "Permission denied" in detail) == (expected, True, True)
    assert do == "Set GENAI_RAY_MODELS to a folder that this user may read."
    assert ("folders", "shared memory") in found
    assert ("models", "packaged") in found or variable == "HOME"


def test_a_path_that_the_system_refuses_stops_only_its_checks(monkeypatch, tmp_path):
    refused = tmp_path / ("x" * 300)
    monkeypatch.setenv("GENAI_RAY_MODELS", str(refused))
    found = {(finding.topic, finding.name): finding for finding in diagnose("nonsense").findings}
    for topic, name in (("runtimes", "runtimes"), ("models", "catalog")):
        finding = found[topic, name]
        assert (finding.state, finding.detail) == (State.BROKEN, f"{refused}: File name too long")
        assert "GENAI_RAY_MODELS" in finding.do
    assert found["video", "VMAF"].state is State.OK
    assert not [name for _, name in found if name == "packages"]


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
