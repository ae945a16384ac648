"""Each file of ``deployments/``, by its own tool or schema; nothing is started.

``tests/serve/test_deployments.py`` runs the endpoint of ``serve.yaml``.
"""

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from genai_ray.catalog import ServeProfile
from genai_ray.cli import app
from genai_ray.errors import ConfigError
from genai_ray.serve.deployment.endpoint import _environment, read_token
from genai_ray.serve.deployment.nodes import opens_ports

ROOT = Path(__file__).resolve().parents[1]
DEPLOYMENTS = ROOT / "deployments"
MONITORING = DEPLOYMENTS / "monitoring"
KINDS = {"raycluster": "rayclusters", "rayservice": "rayservices", "rayjob": "rayjobs"}
TARGETS = ("cpu", "gpu")
EXPRESSIONS = [rule["expr"] for rule in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]]
PANELS = json.loads((MONITORING / "dashboard.json").read_text())["panels"]


def tool(name):
    """Return a program of this environment or of the system; skips if it is not there."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not here")
    return found


def read_all(path):
    return list(yaml.safe_load_all(path.read_text()))


def closed(schema):
    """Return a schema of Kubernetes that refuses fields it does not know, as the API server does."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {key: closed(value) for key, value in schema.items()}
    if isinstance(shut.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        shut.setdefault("additionalProperties", False)
    return shut


def cluster_of(resource):
    spec = resource["spec"]
    return spec.get("rayClusterConfig") or spec.get("rayClusterSpec") or spec


def pods_of(cluster):
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.fixture(scope="module")
def resources():
    return {kind: read_all(DEPLOYMENTS / "kuberay" / f"{kind}.yaml")[-1] for kind in KINDS}


@pytest.fixture(scope="module")
def definitions():
    folder = ROOT.parent / "shared" / "schemas"
    if not folder.is_dir():
        pytest.skip("../shared/schemas, with KubeRay's schemas, is not here")
    found = {}
    for kind, plural in KINDS.items():
        definition = yaml.load((folder / f"ray.io_{plural}.yaml").read_text(), yaml.CSafeLoader)
        (version,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[kind] = definition["spec"]["names"]["kind"], schema
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_resource_of_kuberay_fits_its_schema(kind, definitions, resources):
    name, schema = definitions[kind]
    assert (resources[kind]["apiVersion"], resources[kind]["kind"]) == ("ray.io/v1", name)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(resources[kind])
    wrong = copy.deepcopy(resources[kind])
    cluster_of(wrong)["headGroupSpec"]["template"]["spec"]["containers"][0]["imag"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="'imag' was unexpected"):
        validator.validate(wrong)


def test_the_service_for_prometheus_fits_its_schema(definitions):
    (service,) = read_all(DEPLOYMENTS / "kuberay" / "metrics.yaml")
    head = definitions["raycluster"][1]["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]
    jsonschema.Draft202012Validator(head["headService"]["properties"]["spec"]).validate(service["spec"])
    (job,) = [job for job in scrapes("prometheus-kubernetes.yml") if job["job_name"] == "ray"]
    (found,) = job["dns_sd_configs"]
    assert found["names"] == [service["metadata"]["name"]]
    assert found["port"] == service["spec"]["ports"][0]["port"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_cluster_wants_a_token_and_has_its_images(kind, resources):
    cluster = cluster_of(resources[kind])
    assert cluster["authOptions"] == {"mode": "token"}
    assert ("gcsFaultToleranceOptions" in cluster) is (kind != "rayjob")  # a job's process would die with the head
    versions = re.search(r"^ARG RAY_VERSION=(\S+)$", dockerfile(), re.MULTILINE)
    assert cluster["rayVersion"] == versions[1]
    for group in pods_of(cluster):
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] in [f"genai-ray:{target}" for target in TARGETS]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) is (container["image"] == "genai-ray:gpu")
        claimed = {volume["name"] for volume in group["template"]["spec"].get("volumes", ())}
        assert {mount["name"] for mount in container.get("volumeMounts", ())} == claimed


def test_ray_is_one_that_the_package_takes():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (ray,) = [words.partition("]")[2] for words in wanted if words.startswith("ray[")]
    (version,) = set(re.findall(r"RAY_VERSION=(\S+)", dockerfile()))
    assert version in SpecifierSet(ray)
    assert f"ray[data,serve]=={version}" in (DEPLOYMENTS / "cluster-launcher.yaml").read_text()


def test_the_endpoint_is_the_same_on_every_cluster(resources, tmp_path):
    plain = yaml.safe_load((DEPLOYMENTS / "serve.yaml").read_text())
    there = yaml.safe_load(resources["rayservice"]["spec"]["serveConfigV2"])
    for config in (plain, there):
        ServeDeploySchema.model_validate(config)
    profile = there["applications"][0].pop("args")["profile"]
    assert plain["applications"][0].pop("args") == {"profile": "cluster"}
    assert there == plain
    settings, _ = read_all(DEPLOYMENTS / "kuberay" / "rayservice.yaml")
    path = tmp_path / Path(profile).name
    path.write_text(settings["data"][path.name])
    chosen = ServeProfile.load(str(path))
    assert chosen.token_sha256 is not None
    assert chosen.override(name="cluster", description="", token_sha256=None) == ServeProfile.load("cluster").override(
        description=""
    )
    for group in pods_of(cluster_of(resources["rayservice"])):
        pod = group["template"]["spec"]
        assert pod["volumes"][0]["configMap"]["name"] == settings["metadata"]["name"]
        assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == str(Path(profile).parent)


def words_of_systemd():
    text = (DEPLOYMENTS / "genai-ray.service").read_text()
    return shlex.split(re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1])


def words_of_image():
    (line,) = re.findall(r"^CMD (.*)$", dockerfile(), re.MULTILINE)
    return json.loads(line)


def test_what_listens_on_every_address_needs_a_token(tmp_path):
    for words in (words_of_image(), words_of_systemd()):
        assert words[words.index("--host") + 1] == "0.0.0.0"
        assert "--token-file" in words
    with pytest.raises(ConfigError, match=r"token file .*none: No such file or directory; allowed"):
        read_token(tmp_path / "none")
    page = (ROOT / "docs" / "deployment.md").read_text()
    runs = re.findall(r"^docker run (?:.*\\\n)*.*$", page, re.MULTILINE)
    assert len(runs) == 2
    target = words_of_image()[-1]
    assert all(f"target={target}" in line and "--shm-size" in line for line in runs)


def test_commands_are_those_of_the_command_line(resources, tmp_path):
    token = tmp_path / "token"
    token.touch()
    commands = [
        shlex.split(resources["rayjob"]["spec"]["entrypoint"]),
        [str(token) if "token" in word and "/" in word else word for word in words_of_image()],
        [str(token) if "token" in word and "/" in word else word for word in words_of_systemd()],
    ]
    main = typer.main.get_command(app)
    for program, name, *options in commands:
        assert Path(program).name == "genai-ray"
        main.commands[name].make_context(name, options)  # raises if an option is wrong


def test_the_cluster_launcher_takes_its_file():
    config = yaml.safe_load((DEPLOYMENTS / "cluster-launcher.yaml").read_text())
    validate_config(prepare_config(config))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(config | {"min_worker": 2}))
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [config[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker")]
    assert all(". ~/deployments/ray-env.sh" in command for command in starts)
    assert "RAY_REDIS_ADDRESS=" in starts[0]
    for place in (*config["setup_commands"], *starts):
        assert subprocess.run(["bash", "-n", "-c", place], check=False).returncode == 0
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"~/dist/genai_ray-{version}-py3-none-any.whl" in config["setup_commands"][-1]


def dockerfile():
    return (DEPLOYMENTS / "Dockerfile").read_text()


def instructions():
    """Return (word, rest) of each instruction of the Dockerfile."""
    lines = [line for line in dockerfile().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1].strip()) for line in joined.splitlines() if line]


def set_by(words):
    """Return the variables of an instruction ENV."""
    return dict(word.split("=", 1) for word in shlex.split(words))


def environment_of_nodes():
    """Return what ``ray-env.sh`` sets."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-c", f". {DEPLOYMENTS}/ray-env.sh && env"],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": path},
    )
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    return {name: value for name, value in found.items() if name.startswith(("RAY_", "ORT_"))}


def test_the_environment_needs_the_program_that_closes_ports():
    command = [shutil.which("sh"), "-c", f". {DEPLOYMENTS}/ray-env.sh && echo goes on"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={"PATH": "/nowhere"})
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert "genai-ray-haproxy is not on PATH" in done.stderr


def test_all_ways_set_the_same_environment(tmp_path):
    nodes = environment_of_nodes()
    program = Path(nodes.pop("RAY_SERVE_HAPROXY_BINARY_PATH"))
    assert (program.name, os.access(program, os.X_OK)) == ("genai-ray-haproxy", True)
    assert nodes["RAY_AUTH_MODE"] == "token"
    (images,) = [set_by(words) for word, words in instructions() if word == "ENV" and "RAY_AUTH_MODE" in words]
    assert images.pop("RAY_SERVE_HAPROXY_BINARY_PATH") == f"/usr/local/bin/{program.name}"
    assert images == nodes
    machine = _environment(tmp_path, 60.0)
    shared = machine.keys() & nodes.keys() - {
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"
    }  # one HAProxy knows at once
    assert len(shared) >= 10
    assert {name: machine[name] for name in shared} == {name: nodes[name] for name in shared}


def test_the_environment_closes_the_ports_of_haproxy():
    nodes = environment_of_nodes()
    assert not opens_ports(nodes)
    assert not opens_ports({})
    assert opens_ports(nodes | {"RAY_SERVE_HAPROXY_BINARY_PATH": "/usr/sbin/haproxy"})
    assert opens_ports({"RAY_SERVE_ENABLE_HA_PROXY": "1"})


def test_the_installed_program_runs_haproxy_without_its_ports(tmp_path):
    config = tmp_path / "haproxy.cfg"
    times = "".join(f"    timeout {name} 1s\n" for name in ("connect", "client", "server"))
    config.write_text(
        f"defaults\n    mode http\n{times}frontend a\n    bind 127.0.0.1:1\nlisten stats\n  bind *:8404\n"
    )
    program = tool("genai-ray-haproxy")
    done = subprocess.run([program, "-c", "-f", str(config)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8404" not in config.read_text()
    done = subprocess.run([program, "-v"], check=False, capture_output=True, text=True)  # as `genai-ray doctor` asks it
    assert (done.returncode, "HAProxy version" in done.stdout) == (0, True), done.stderr


def test_hadolint_finds_nothing(tmp_path):
    hadolint = tool("hadolint")
    done = subprocess.run([hadolint, DEPLOYMENTS / "Dockerfile"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(dockerfile().replace("FROM python:3.11-slim-bookworm", "FROM python"))
    assert "DL3006" in subprocess.run([hadolint, wrong], check=False, capture_output=True, text=True).stdout


def test_the_build_context_has_what_is_copied():
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [words.split()[:-1] for word, words in instructions() if word == "COPY" and "--from" not in words]
    assert sorted(place for places in copied for place in places) == sorted(allowed)


def make_environment(folder, is_fresh):
    """Make a virtual environment: an empty one, or one that lacks only this package."""
    venv.create(folder, with_pip=True)
    if not is_fresh:
        lent = folder / "lent"
        lent.mkdir()
        for place in Path(sysconfig.get_path("purelib")).iterdir():
            if "genai_ray" not in place.name and not place.name.startswith(("pip", "setuptools")):
                (lent / place.name).symlink_to(place)
        (packages,) = (folder / "lib").glob("python*/site-packages")
        (packages / "lent.pth").write_text(str(lent))
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "is_fresh"),
    [("cpu", False), *(pytest.param(target, True, marks=pytest.mark.longest) for target in TARGETS)],
)
def test_the_steps_of_an_image_run(target, is_fresh, tmp_path):
    """A virtual environment takes the place of each image. What the system's packages need is left out, and pip keeps
    its cache."""
    stages, variables, folder, python = {}, {}, None, None

    def inside(text):
        return re.sub(r"(?<![\w.])/(src|dist)\b", rf"{python.parents[1]}/\1", text)

    for word, words in instructions():
        if word == "FROM":
            if target in stages:
                break
            image, _, name = words.split()
            if image not in stages:
                variables = {}
                folder = tmp_path / name
                python = make_environment(folder, is_fresh)
            stages[name] = python
        elif word == "WORKDIR" and words == "/src":
            folder = Path(inside(words))
            folder.mkdir()
        elif word == "COPY" and words.startswith("--from="):
            source, _, place = words.removeprefix("--from=").split()
            shutil.copytree(stages[source].parents[1] / place.strip("/"), inside(place))
        elif word == "COPY":
            *places, to = words.split()
            for place in places:
                take = shutil.copytree if (ROOT / place).is_dir() else shutil.copy
                take(ROOT / place, folder / to)
        elif word in ("ENV", "ARG"):
            variables |= set_by(words)
        elif word == "RUN" and not words.startswith("apt-get"):
            paths = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "HOME": os.environ.get("HOME", "/")}
            said = {name: value for name, value in variables.items() if name != "PIP_NO_CACHE_DIR"}
            done = subprocess.run(
                ["sh", "-c", inside(words)], check=False, capture_output=True, text=True, cwd=folder, env=paths | said
            )
            assert done.returncode == 0, done.stdout + done.stderr
    assert os.access(python.with_name("genai-ray-haproxy"), os.X_OK)
    if target == "gpu":
        assert list(python.parents[1].glob("lib/python*/site-packages/nvidia/**/libcudnn.so*"))


def test_systemd_takes_the_unit(tmp_path):
    verify = [tool("systemd-analyze"), "verify"]
    text = (DEPLOYMENTS / "genai-ray.service").read_text()
    program = words_of_systemd()[0]
    here = tmp_path / "genai-ray"
    here.write_text("#!/bin/sh\n")
    here.chmod(0o755)
    for name, unit in (("genai-ray", text), ("wrong", text.replace("KillMode=mixed", "KillMode=mix"))):
        path = tmp_path / f"{name}.service"
        path.write_text(unit.replace(program, str(here)))
        done = subprocess.run([*verify, path], check=False, capture_output=True, text=True)
        assert (done.returncode == 0 and done.stderr == "") is (name == "genai-ray"), done.stderr


def scrapes(name):
    return yaml.safe_load((MONITORING / name).read_text())["scrape_configs"]


@pytest.fixture
def monitoring(tmp_path):
    """A copy of the folder with a token."""
    shutil.copytree(MONITORING, tmp_path / "monitoring")
    (tmp_path / "monitoring" / "genai-ray.token").write_text("word")
    return tmp_path / "monitoring"


def promtool(folder, *words):
    return subprocess.run([tool("promtool"), *words], check=False, capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-kubernetes.yml"])
def test_prometheus_takes_its_configuration(name, monitoring):
    done = promtool(monitoring, "check", "config", name)
    assert done.returncode == 0, done.stderr
    (monitoring / name).write_text((monitoring / name).read_text().replace("job_name", "job", 1))
    assert promtool(monitoring, "check", "config", name).returncode != 0
    jobs = set(re.findall(r'job="([\w-]+)"', " ".join(EXPRESSIONS)))
    assert {job["job_name"] for job in scrapes(name)} == jobs


def test_each_alert_fires_when_it_is_meant_to(monitoring):
    done = promtool(monitoring, "test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    rules = {rule["alert"] for rule in yaml.safe_load((monitoring / "alerts.yml").read_text())["groups"][0]["rules"]}
    well, wrong = yaml.safe_load((monitoring / "alerts_test.yml").read_text())["tests"]
    assert {case["alertname"] for case in well["alert_rule_test"] if "exp_alerts" not in case} == rules
    assert {case["alertname"] for case in wrong["alert_rule_test"] if case["exp_alerts"]} == rules


def queries():
    """Return the queries of the dashboard, with Grafana's variables filled in."""
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return [query.replace("$__rate_interval", "1m").replace("$model", ".*") for query in found]


def test_prometheus_understands_the_queries_of_the_dashboard(monitoring):
    rules = [{"record": f"query_{index}", "expr": query} for index, query in enumerate(queries())]
    (monitoring / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool(monitoring, "check", "rules", "queries.yml")
    assert done.returncode == 0, done.stderr


def test_panels_of_the_dashboard_lie_side_by_side():
    cells = []
    for place in (panel["gridPos"] for panel in PANELS):
        assert place["x"] + place["w"] <= 24
        cells += [(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in PANELS}) == len(PANELS) > 5
    assert not [query for query in queries() if "$" in query]
