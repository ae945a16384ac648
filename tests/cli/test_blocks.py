"""Every code block of the documents is what it says: commands are run, or their options and files are checked, and
what is YAML or JSON is read by what takes it. Python blocks run in ``tests/test_readme.py`` and
``tests/serve/test_http.py``.
"""

import ast
import csv
import functools
import json
import re
import shutil
import subprocess
import tomllib
from fractions import Fraction
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
import ray.scripts.scripts
import ray.serve.scripts
import typer
import yaml

from genai_ray import ModelCatalog, VideoReader
from genai_ray.catalog import ModelSpec, ServeProfile
from genai_ray.cli import app
from genai_ray.serve.deployment.app import SCHEMAS, list_operations
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.repository import Repository
from genai_ray.serve.http.routes import describe_api
from genai_ray.types import PictureFormat
from genai_ray.video import encode_pixels
from tests.blocks import BLOCKS, KINDS, ROOT, blocks_of, name_of, split
from tests.enhance.moving import write_frames

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHELL = [block for block in BLOCKS if block.kind == "sh"]
OF_THE_SYSTEM = ("ffmpeg", "openssl", "printf", "python3", "vspipe")
"""Programs whose words are no words of this project."""


def test_blocks_are_of_known_kinds_and_code_parses():
    assert len(BLOCKS) >= 60
    for block in BLOCKS:
        assert block.kind in KINDS, f"{name_of(block)}: a fence without a kind, or of {block.kind!r}"
        if block.kind in ("python", "py"):
            ast.parse(block.text)
        elif block.kind == "json":
            json.loads(block.text)
        elif block.kind == "yaml":
            assert (block.page.name, block.line) in {(name, line) for name, line in yaml_blocks()}


def yaml_blocks():
    return [(block.page.name, block.line) for block in BLOCKS if block.kind == "yaml" and block.page.name in READERS]


def read_spec(content, path):
    """Part of a spec, added to that of a model of single frames."""
    known = ModelCatalog.default().get("websr-x2-s").model_dump(mode="json")
    assert ModelSpec.model_validate(known | content).tiles.halo_px == content["tiles"]["halo_px"]
    with pytest.raises(ValueError, match="least_px"):
        ModelSpec.model_validate(known | content | {"tiles": content["tiles"] | {"least_px": 1}})


def read_profile(content, path):
    """A whole profile."""
    path.write_text(yaml.safe_dump(content))
    assert ServeProfile.load(str(path)).people.max_videos == content["people"]["max_videos"]


READERS = {"models.md": read_spec, "operate.md": read_profile}
"""What takes the YAML blocks of a page."""


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "yaml"], ids=name_of)
def test_yaml_blocks_are_read_by_what_takes_them(block, tmp_path):
    READERS[block.page.name](yaml.safe_load(block.text), tmp_path / "block.yaml")


def parse(root, words):
    """Parse a command as its program does, which raises if a word is wrong; return what was meant."""
    while hasattr(root, "commands"):
        name, *words = words
        root = root.commands[name]
    return root.make_context(root.name, list(words)).params


@functools.cache
def routes():
    """Return the operations of the endpoint, by path and method."""

    async def none():
        raise NotImplementedError

    profile = ServeProfile.load("default")
    return describe_api(list_operations(Engine(profile, None, Repository(None, ())), none), SCHEMAS, "1", profile)


def check_genai_ray(words):
    params = parse(typer.main.get_command(app), words)
    for value in (params.get("model"), params.get("models")):
        for name in [value] if isinstance(value, str) else value or ():
            for one in name.split(","):
                assert one.endswith(".onnx") or ModelCatalog.default().get(one)


def check_curl(words):
    method = words[words.index("-X") + 1] if "-X" in words else "GET"
    method = "POST" if {"-F", "--data-binary"} & set(words) else method
    (url,) = [word for word in words if word.startswith("http://127.0.0.1:8000/")]
    parts = urlsplit(url)
    path = re.sub(r"/ID\b", "/{job_id}", parts.path)
    known = {one["name"] for one in routes()["paths"][path][method.lower()].get("parameters", ())}
    assert {name for name, _ in parse_qsl(parts.query)} <= known


def check_docker(words):
    if words[0] == "build":
        assert (ROOT / words[words.index("-f") + 1]).exists()
        target = words[words.index("--target") + 1]
        assert re.search(rf"^FROM .* AS {target}$", (ROOT / "deployments" / "Dockerfile").read_text(), re.MULTILINE)


def check_pip(words):
    (package,) = [word for word in words if "[" in word or word == "."]
    extras = package.partition("[")[2].rstrip("]").split(",") if "[" in package else []
    assert set(extras) <= PROJECT["project"]["optional-dependencies"].keys()


def check_pytest(words):
    known = {marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    for place, word in enumerate(words):
        if word == "-m":
            assert set(re.findall(r"\w+", words[place + 1])) - {"and", "or", "not"} <= known


def check_files(words):
    """Every word that looks like a file of the repository is one."""
    for word in words:
        place = word.rpartition("=")[2]
        if re.match(r"(deployments|tests|configs|docs|samples)/", place):
            assert (ROOT / place).exists() or place.endswith(".token")


def check_serve(words):
    parse(ray.serve.scripts.cli, words)


CHECKS = {
    "genai-ray": check_genai_ray,
    "curl": check_curl,
    "docker": check_docker,
    "pip": check_pip,
    "pytest": check_pytest,
    "ray": lambda words: parse(ray.scripts.scripts.cli, words),
    "serve": check_serve,
    **dict.fromkeys(("prometheus", "promtool", ".", "python", "ruff", "mypy"), check_files),
}
"""What is known of a program's words."""


@pytest.mark.parametrize("block", SHELL, ids=name_of)
def test_commands_are_those_that_their_programs_take(block):
    assert subprocess.run(["bash", "-n"], input=block.text, text=True, check=False).returncode == 0
    for program, *words in block.commands():
        name = program.removeprefix(".venv/bin/")
        if name not in OF_THE_SYSTEM:
            CHECKS[name](words)
        check_files(words)


def test_a_wrong_word_is_found():
    for line in (
        "genai-ray enhance a.mp4 -o b.mp4 --modell x",
        "genai-ray enhance a.mp4 -o b.mp4 -m no-such",
        "genai-ray enhance a.mp4 -o b.mp4 --fit squeeze",
        "genai-ray cache statuss",
        "curl http://127.0.0.1:8000/v1/videoss",
        'curl --data-binary @in.png "http://127.0.0.1:8000/v1/enhance?modell=x"',
        "docker build -f deployments/Dockerfile --target tpu .",
        'pip install -e ".[tests]"',
        "pytest -m slowly",
        "ray start --hed",
        "promtool test rules deployments/none.yml",
    ):
        ((program, *words),) = split(line)
        with pytest.raises(Exception, match=r".*") as found:
            CHECKS[program](words)
        assert type(found.value).__name__ in (
            "NoSuchOption", "ModelNotFoundError", "BadParameter", "KeyError", "AssertionError",
        ), line  # fmt: skip


def test_what_is_not_run_is_there_and_has_a_reason():
    for block in SHELL:
        said = [" ".join(words[1:] if words[0] == "genai-ray" else words) for words in block.commands()]
        for start, reason in block.unrun:
            assert reason
            assert start == "all" or any(one.startswith(start) for one in said), f"{name_of(block)}: no {start!r}"
        if any(block.is_run(words) for words in block.commands()):
            assert all(words[0] == "genai-ray" for words in block.commands() if block.is_run(words)) or is_ci(block)


def is_ci(block):
    """Tell whether .ci/run pastes a block."""
    before = block.page.read_text().splitlines()[block.line - 2]
    marker = re.fullmatch(r"<!-- ([\w-]+-command) -->", before)
    return marker is not None and f"{marker[1]}" in (ROOT / ".ci" / "run").read_text()


RUN = sorted(
    {block.page for block in SHELL if not is_ci(block) and any(block.is_run(words) for words in block.commands())}
)


def put_clips(folder, samples):
    """Put small clips of every name that the documents use into a folder, and a model without a spec."""
    with VideoReader(samples / "bigbuckbunny-360p.mp4") as video:
        small, larger = video[:10].frames[:, ::4, ::4], video[:4].frames[:, ::2, ::2]
    for name in ("samples", "clips/more"):
        (folder / name).mkdir(parents=True)
    plain = "in.mp4 in.mkv in.mov tape.avi hdr.mkv noisy.mkv more.mp4 original.mp4 clips/one.mp4 clips/more/two.mkv"
    for name in (*plain.split(), "samples/bigbuckbunny-360p.mp4", "samples/bigbuckbunny-720p.mp4"):
        write_frames(folder / name, small, codec="libx264")
    for name in ("a.mp4", "b.mp4", "reference.mp4"):
        write_frames(folder / name, larger, codec="libx264", options={"crf": "30" if name == "a.mp4" else "20"})
    (folder / "numbered").mkdir()
    for number, frame in enumerate(small[:6]):
        (folder / "numbered" / f"{number:05}.png").write_bytes(encode_pixels(frame, PictureFormat.PNG))
    (folder / "photo.jpg").write_bytes(encode_pixels(small[0], PictureFormat.JPEG))
    (folder / "my-model.onnx").write_bytes(
        (ROOT / "genai_ray" / "assets" / "websr-anime4k-cnn-x2-s-rl.onnx").read_bytes()
    )
    with (folder / "clips.csv").open("w") as file:
        csv.writer(file).writerows([["uri"], ["clips/one.mp4"]])
    return small


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_as_they_stand(ray_session, command, tmp_path, samples, page, monkeypatch):
    """On small clips of the same names; a result of an earlier command makes room for one of the same name."""
    monkeypatch.chdir(tmp_path)
    small = put_clips(tmp_path, samples)
    if page.name == "pictures.md":
        Path("numbered").rename("frames")  # elsewhere this is the name of a result
    for block in blocks_of(page):
        if block.kind != "sh" or is_ci(block):
            continue
        is_long = re.search("--(start|at) ", block.text)  # two minutes, of few and tiny frames
        frames = small[[0] * 480, :88:2, ::2] if is_long else small
        write_frames(Path("in.mp4"), frames, codec="libx264", rate=Fraction(4 if is_long else 25))
        for words in block.commands():
            if block.is_run(words):
                run_one(command, words)


def run_one(command, words):
    places = [Path(words[words.index(option) + 1]) for option in ("-o", "--html") if option in words]
    for place in places:
        if place.is_file():
            place.unlink()
    for folder in Path().glob("*-compare"):
        shutil.rmtree(folder)
    done = command(*words[1:])
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
    for place in places:
        made = place.parent if "%" in place.name else place
        made = made.with_suffix(f".preview{made.suffix}") if "--preview" in words else made
        assert made.exists() != ("--dry-run" in words), words
