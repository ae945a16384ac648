"""Parts of the endpoint that need neither Ray nor a network: merging, names, HAProxy's configuration, ports,
figures."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from ray._common.utils import import_attr
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE
from ray.serve.schema import ServeDeploySchema

from genai_ray import errors
from genai_ray.catalog import ModelServing, ServeProfile
from genai_ray.catalog.files import configs_folder
from genai_ray.serve.deployment.haproxy import ANSWER, rewrite, write_launcher
from genai_ray.serve.deployment.ingress import main
from genai_ray.serve.deployment.ports import Record, check_ports, find_free_ports, process_started
from genai_ray.serve.engine.batching import Batcher
from genai_ray.serve.engine.limits import ByteBudget, max_frames_together
from genai_ray.serve.engine.repository import Repository
from genai_ray.serve.engine.statistics import Statistics
from genai_ray.serve.oip.grpc import add_inference_service
from tests.processes import is_alive, wait_until
from tests.serve.models import add_number, add_sub


class Calls:
    """Computes nothing until it is told to."""

    def __init__(self):
        self.seen, self.gates = [], []

    async def __call__(self, items):
        self.seen.append(list(items))
        gate = asyncio.get_running_loop().create_future()
        self.gates.append(gate)
        await gate
        return [item * 10 for item in items]


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_lone_item_goes_at_once_and_what_waits_is_merged():
    async def story():
        calls = Calls()
        batcher = Batcher(calls, max_size=3, max_calls=2)
        tasks = [asyncio.create_task(batcher.submit(number)) for number in range(7)]
        await settle()
        assert calls.seen == [[0], [1]]
        calls.gates[0].set_result(None)
        await settle()
        assert calls.seen[2:] == [[2, 3, 4]]
        tasks[5].cancel()
        await settle()
        calls.gates[1].set_result(None)
        await settle()
        assert calls.seen[3:] == []  # one waits beside a call of three
        calls.gates[2].set_result(None)
        await settle()
        assert calls.seen[3:] == [[6]]
        calls.gates[3].set_result(None)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers.pop(5), asyncio.CancelledError)
        assert answers == [0, 10, 20, 30, 40, 60]
        assert batcher.is_idle

    asyncio.run(story())


def test_a_call_beside_another_is_as_large():
    async def story():
        calls = Calls()
        batcher = Batcher(calls, max_size=4, max_calls=2)
        first = [asyncio.create_task(batcher.submit(0, size)) for size in (2, 9)]
        await settle()
        assert calls.seen == [[0], [0]]  # nine are four and more
        rest = [asyncio.create_task(batcher.submit(number)) for number in range(1, 4)]
        calls.gates[0].set_result(None)
        await settle()
        assert len(calls.seen) == 2
        rest.append(asyncio.create_task(batcher.submit(4)))
        await settle()
        assert calls.seen[2:] == [[1, 2, 3, 4]]
        for gate in calls.gates[1:]:
            gate.set_result(None)
        assert await asyncio.gather(*first, *rest) == [0, 0, 10, 20, 30, 40]

    asyncio.run(story())


def test_items_count_by_their_size_and_an_error_is_everybodys():
    async def story():
        seen = []

        async def call(items):
            seen.append(items)
            if "bad" in items:
                raise errors.InvalidInputError("bad")
            return items

        batcher = Batcher(call, max_size=4, max_calls=1)
        answers = await asyncio.gather(
            *(
                batcher.submit(item, size)
                for item, size in (("a", 1), ("b", 3), ("c", 2), ("big", 9), ("bad", 1), ("d", 1))
            ),
            return_exceptions=True,
        )
        assert [list(items) for items in seen] == [["a"], ["b"], ["c"], ["big"], ["bad", "d"]]
        assert answers[:4] == ["a", "b", "c", "big"]
        assert all(isinstance(answer, errors.InvalidInputError) for answer in answers[4:])

    asyncio.run(story())


def test_a_wait_for_a_batch_is_bounded_and_ends_when_it_is_full():
    async def story():
        seen = []

        async def call(items):
            seen.append(list(items))
            return items

        loop = asyncio.get_running_loop()
        batcher = Batcher(call, max_size=2, wait_s=0.2)
        began = loop.time()
        assert await batcher.submit("lone") == "lone"
        assert loop.time() - began >= 0.19
        patient = Batcher(call, max_size=2, wait_s=1000.0)
        assert await asyncio.wait_for(asyncio.gather(patient.submit(1), patient.submit(2)), 60) == [1, 2]
        assert seen == [["lone"], [1, 2]]

    asyncio.run(story())


def test_a_lone_waiting_request_is_tried_however_slow_calls_are():
    async def call(items):
        await asyncio.sleep(0.05)
        return items

    async def story():
        batcher = Batcher(call, max_size=2, wait_s=0.02)
        for _ in range(20):  # a call takes most of what each has
            assert await batcher.submit(1, 1, time.monotonic() + 0.09) == 1

    asyncio.run(story())


def test_requests_that_would_be_late_are_refused_for_others():
    """Four times as much as can be done, for some seconds: nearly all that is done is done in time."""
    call_s, within_s, outcomes, computed = 0.02, 0.4, [], []

    async def call(items):
        computed.extend(items)
        await asyncio.sleep(call_s)
        return items

    async def ask(batcher):
        try:
            async with asyncio.timeout(within_s):
                await batcher.submit(1, 1, time.monotonic() + within_s)
            outcomes.append("done")
        except errors.TooManyRequestsError:
            outcomes.append("refused")
        except TimeoutError:
            outcomes.append("late")

    async def story():
        batcher = Batcher(call, max_size=1, max_calls=1)
        async with asyncio.TaskGroup() as group:
            over = time.monotonic() + 4.0
            while time.monotonic() < over:
                group.create_task(ask(batcher))
                await asyncio.sleep(call_s / 4)
        assert batcher.is_idle

    asyncio.run(story())
    assert outcomes.count("refused") > 0
    assert outcomes.count("done") > 0.7 * len(computed)


def test_whoever_goes_leaves_nothing_in_the_line():
    async def story():
        calls = Calls()
        batcher = Batcher(calls, max_size=1, max_calls=1)
        tasks = [asyncio.create_task(batcher.submit(number)) for number in range(100)]
        await settle()
        for task in tasks[1:]:
            task.cancel()
        await settle()
        assert not batcher._waiting
        calls.gates[0].set_result(None)
        assert await tasks[0] == 0
        assert calls.seen == [[0]]

    asyncio.run(story())


def test_a_repository_offers_files_versions_and_options(tmp_path):
    add_sub(tmp_path / "one.onnx")
    (tmp_path / "one.serve.yaml").write_text("max_batch_size: 4\nmax_frame: [270, 480]\n")
    for version in (1, 10, 9):
        add_number(tmp_path / "many" / str(version) / "model.onnx", version)
    add_number(tmp_path / "many" / "draft" / "model.onnx", 0)
    (tmp_path / "empty").mkdir()
    repository = Repository(tmp_path, ("esrgan",))
    assert [model.name for model in repository.models()] == ["esrgan-4x", "many", "one"]
    assert repository.get("esrgan").name == "esrgan-4x"
    assert repository.get("many").latest == "10"
    assert repository.get("many").source("9").endswith("many/9/model.onnx")
    assert repository.get("one").serving.max_batch_size == 4
    assert repository.get("one").request().max_frame == (270, 480)
    for name in ("three", "../one", str(tmp_path / "one.onnx"), "", "one.onnx"):
        with pytest.raises(errors.ModelNotFoundError):
            repository.get(name)
    with pytest.raises(errors.ModelNotFoundError, match="1, 9, 10"):
        repository.get("many").source("2")
    (tmp_path / "one.serve.yaml").write_text("max_batch: 4\n")
    repository.rescan()
    assert "one.serve.yaml: max_batch" in str(repository.get("one").fault)
    with pytest.raises(errors.ConfigError, match="model repository"):
        Repository(tmp_path / "nowhere")
    with pytest.raises(errors.ModelNotFoundError, match="esrgan"):
        Repository(None, ("esrgun",))


def test_min_replicas_and_max_replicas_must_agree(tmp_path):
    add_sub(tmp_path / "one.onnx")
    options = tmp_path / "one.serve.yaml"
    options.write_text("min_replicas: 2\nmax_replicas: 2\n")
    assert Repository(tmp_path, ()).get("one").request().max_replicas == 2
    for text, words in (
        ("max_replicas: 0", "max_replicas: .*greater than or equal to 1"),
        ("min_replicas: 2\nmax_replicas: 1", "1 is less than min_replicas=2"),
    ):
        options.write_text(text)
        assert re.search(rf"one\.serve\.yaml: .*{words}", str(Repository(tmp_path, ()).get("one").fault))


def test_all_bodies_may_have_what_one_may_have():
    assert ServeProfile(name="a").override(max_body_bytes=10, max_bodies_bytes=20).max_bodies_bytes == 20
    with pytest.raises(errors.ConfigError, match="max_bodies_bytes=19 is less than twice max_body_bytes=10"):
        ServeProfile(name="a").override(max_body_bytes=10, max_bodies_bytes=19)


@pytest.mark.parametrize("path", sorted((configs_folder() / "serve").glob("*.yaml")), ids=lambda path: path.stem)
def test_profiles_load(path):
    assert ServeProfile.load(path.stem).name == path.stem
    assert ServeProfile.load(str(path)).override(port=9).port == 9


def test_bad_profiles(tmp_path):
    with pytest.raises(errors.ConfigError, match="cluster, default"):
        ServeProfile.load("fast")
    with pytest.raises(errors.ConfigError, match="port"):
        ServeProfile(name="a").override(port=0)
    (tmp_path / "a.yaml").write_text("name: a\nserving: {precision: auto}\n")
    with pytest.raises(errors.ConfigError, match="not auto"):
        ServeProfile.load(str(tmp_path / "a.yaml"))


def test_who_finds_no_room_waits_in_turn():
    async def story():
        room, order, gates = ByteBudget(10), [], {}

        async def hold(name, num_bytes):
            async with room.hold(num_bytes):
                order.append(name)
                await gates.setdefault(name, asyncio.Event()).wait()

        tasks = {
            name: asyncio.create_task(hold(name, size)) for name, size in (("a", 6), ("large", 99), ("b", 4), ("c", 4))
        }
        await settle()
        assert order == ["a"]  # what comes later and would fit does not pass the large one
        tasks["b"].cancel()
        gates["a"].set()
        await settle()
        assert order == ["a", "large"]
        tasks["large"].cancel()
        await settle()
        assert order == ["a", "large", "c"]
        gates["c"].set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        async with asyncio.timeout(1), room.hold(10):
            pass

    asyncio.run(story())


def test_merged_requests_get_no_more_bytes_than_one_may():
    profile = ServeProfile(name="a", max_output_bytes=1000)
    assert max_frames_together(np.zeros((1, 4, 5, 3), np.uint8), 2, profile) == 4
    assert max_frames_together(np.zeros((1, 4, 5, 3), np.uint16), 2, profile) == 2
    assert max_frames_together(np.zeros((2, 40, 50, 3), np.uint8), 2, profile) == 1
    assert max_frames_together(np.zeros((1, 0, 5, 3), np.uint8), 2, profile) == 1000


def test_haproxy_stays_on_its_ports_and_speaks_json():
    text = rewrite(
        HAPROXY_CONFIG_TEMPLATE.replace("{{ config.error_file_path }}", "/a/500.http").replace(
            "{{ config.balance_algorithm }}", "leastconn"
        ),
        "/b",
    )
    assert "frontend http_frontend" in text
    assert "stats socket" in text
    assert not any(
        words in text
        for words in (
            "bind :",
            "bind *:",
            "prometheus-exporter",
            "stats enable",
            "500.http",
            "status 404 content-type text/plain",
        )
    )
    assert text.count("/b/503.http") == 3
    assert "hdr Retry-After 1" in text
    assert text.count("    http-request wait-for-body time 60s") == 2
    assert "\n    http-request set-header X-Forwarded-For %[src]\n" in text
    assert re.search(r"^global\n    tune.memory.hot-size \d+$", text, re.MULTILINE)
    assert "leastconn" not in text
    assert re.search(r"^    balance uri\n    hash-type consistent\n    hash-balance-factor \d+$", text, re.MULTILINE)
    assert json.loads(ANSWER)["error"]


@pytest.mark.parametrize(
    ("host", "written"), [("::1", "[::1]"), ("::", "[::]"), ("192.0.2.7", "192.0.2.7"), ("localhost", "localhost")]
)
def test_haproxy_listens_on_the_host_and_replicas_on_loopback(host, written):
    frontends = (
        "frontend http_frontend\n    bind 127.0.0.1:8000\nfrontend grpc_frontend\n    bind 127.0.0.1:8001 proto h2\n"
    )
    text = rewrite(f"{frontends}backend b\n    server r 127.0.0.1:20400 check\n", "/b/503.http", host)
    assert re.findall(r"^    bind (.*)$", text, re.MULTILINE) == [f"{written}:8000", f"{written}:8001 proto h2"]
    assert "    server r 127.0.0.1:20400 check\n" in text


@pytest.mark.parametrize("host", ["203.0.113.9", "2001:db8::9"])
def test_a_host_that_is_not_of_this_machine_is_said_so(host):
    with pytest.raises(
        errors.ConfigError,
        match=f"cannot listen on host '{host}': .*; allowed: a name or an address of this machine",
    ):
        check_ports(host, [18_999])


def test_the_launcher_ends_with_its_parent(tmp_path):
    config = tmp_path / "haproxy.cfg"
    config.write_text("global\nlisten stats\n  bind *:1\n")
    binary = tmp_path / "haproxy"
    binary.write_text("#!/bin/sh\nexec sleep 600\n")
    binary.chmod(0o755)
    command = [str(write_launcher(tmp_path)), "-f", str(config)]
    code = f"import subprocess, time; print(subprocess.Popen({command!r}).pid, flush=True); time.sleep(600)"
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"GENAI_RAY_HAPROXY": str(binary)},
    )
    child = int(parent.stdout.readline())
    wait_until(lambda: "listen stats" not in config.read_text(), parent)
    assert is_alive(child)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_alive(child))


def test_a_port_that_is_taken_names_who_has_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(errors.ConfigError, match=rf"port {port} on 127.0.0.1 is taken by process {os.getpid()} "):
            check_ports("127.0.0.1", [port])
    assert check_ports("127.0.0.1", find_free_ports(2)) == []


def test_what_a_killed_endpoint_left_is_ended_and_nothing_else(tmp_path):
    left, other = (subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(2))
    folder = tmp_path / "genai-ray-left"
    folder.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    started = process_started(left.pid)
    processes = ((left.pid, started), (other.pid, process_started(other.pid) - 1))
    Record(dead.pid, 1, (1,), (str(folder), str(tmp_path)), processes).write()
    Record(os.getpid(), process_started(os.getpid()), (2,), (), ((other.pid, process_started(other.pid)),)).write()
    (note,) = check_ports("127.0.0.1", [])
    assert "had left 1 processes" in note
    assert left.wait(60) == -9
    assert other.poll() is None
    assert not folder.exists()
    assert tmp_path.exists()
    other.kill()
    other.wait()
    Record(os.getpid(), 0, (2,), ()).remove()


def test_an_endpoint_in_another_container_is_not_taken_for_dead(tmp_path):
    """Numbers of processes say nothing there; a folder of its own namespace stands for a container."""
    apart = ["unshare", "--user", "--map-root-user", "--pid", "--mount-proc", "--fork"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespaces may be made here")
    folder = tmp_path / "genai-ray-at-work"
    folder.mkdir()
    record = Record(os.getpid(), process_started(os.getpid()), (1,), (str(folder),))
    record.write()
    code = (
        "from genai_ray.serve.deployment.ports import Record, check_ports; "
        "print(check_ports('127.0.0.1', [])); Record(1, 1, (1,), ()).write()"
    )
    done = subprocess.run([*apart, sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
    assert folder.exists()
    assert json.loads(record.path.read_text())["pid"] == os.getpid()
    record.remove()


def test_figures_add_up():
    one, other, total = Statistics(), Statistics(), Statistics()
    one.counts_of("a", "1").note("success", 5)
    one.counts_of("a", "1").note_call(3, 7)
    other.counts_of("a", "1").note("fail", 2)
    other.counts_of("a", "1").note_call(3, 1)
    one.note_response("http", "200")
    for part in (one, other):
        total.merge(part.take())
        assert not part.counts
        assert not part.responses
    assert total.responses == {("http", "200"): 1}
    figures = total.counts["a", "1"].to_json()
    assert (figures["inference_count"], figures["execution_count"]) == (6, 2)
    assert figures["inference_stats"]["success"] == {"count": 1, "ns": 5}
    assert figures["inference_stats"]["fail"] == {"count": 1, "ns": 2}
    assert figures["batch_stats"][0]["compute_infer"] == {"count": 2, "ns": 8}
    assert ModelServing().max_batch_size is None


def test_the_cluster_configuration_is_one_that_ray_serve_takes():
    config = yaml.safe_load((configs_folder().parent / "deployments" / "serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(config)
    (application,) = schema.applications
    assert import_attr(application.import_path) is main
    assert import_attr(config["grpc_options"]["grpc_servicer_functions"][0]) is add_inference_service
    assert ServeProfile.load(application.args["profile"]).host == schema.http_options.host
