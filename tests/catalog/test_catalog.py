"""The packaged catalog is true, and user folders extend it."""

import hashlib
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from genai_ray import ModelCatalog, errors
from genai_ray.catalog import JobProfile, dump_spec, load_model_serving, load_spec, models_folder
from genai_ray.catalog.files import configs_folder

CATALOG = ModelCatalog.default()


def test_every_id_that_people_type_resolves():
    wanted = (
        "esrgan-4x esrgan-2x rife u2net realesr-animevideov3-x2 realesr-animevideov3-x4 "
        "waifu2x-x2 websr-x2-s websr-x2-m websr-x2-l"
    )
    wanted += " ffdnet selfie-segmentation zero-dce realesrgan-x4plus realesrgan-x4plus-anime realcugan-x2"
    assert set(wanted.split()) <= set(CATALOG.ids())
    assert CATALOG.resolve("ESRGAN") == "esrgan-4x"
    assert CATALOG.resolve("Real-ESRGAN") == "realesrgan-x4plus"
    assert "not the 64 MB RRDB" in CATALOG.get("esrgan").description


@pytest.mark.parametrize("model_id", CATALOG.ids())
def test_every_file_has_its_hash_size_and_words(model_id):
    spec = CATALOG.get(model_id)
    assert spec.licence
    assert spec.source
    assert spec.description
    if spec.url is None:
        data = CATALOG.path(model_id).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (spec.size_bytes, spec.sha256)


def test_weights_fit_into_the_wheel_and_are_named_in_the_notice():
    """The wheel stays below 100 MB; weights cannot be compressed."""
    root = Path(__file__).resolve().parents[2]
    sizes = {path.name: path.stat().st_size for path in (root / "genai_ray" / "assets").glob("*.onnx")}
    assert set(sizes) == {spec.file for spec in map(CATALOG.get, CATALOG.ids()) if spec.url is None}
    assert max(sizes.values()) < 40_000_000
    assert sum(sizes.values()) < 90_000_000
    named = []
    for word in re.findall(r"^(\S+\.onnx) ", (root / "NOTICE").read_text(), re.M):
        start, brace, rest = word.partition("{")
        ends, _, end = rest.partition("}")
        named += [f"{start}{each}{end}" for each in ends.split(",")] if brace else [word]
    assert sorted(named) == sorted(sizes)


def test_starting_reads_no_weights():
    code = (
        "import sys\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "import genai_ray\n"
        "from genai_ray.cli.models import list_models\n"
        "list_models()\n"
        "assert any(name.endswith('realesrgan-x4plus.yaml') for name in opened)\n"
        "assert not [name for name in opened if name.endswith('.onnx')]\n"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "realesrgan-x4plus" in told.stdout


@pytest.mark.parametrize("model_id", CATALOG.ids())
def test_a_spec_written_reads_back(model_id, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(CATALOG.get(model_id)))
    assert load_spec(path) == CATALOG.get(model_id)


def test_near_names_are_suggested_and_missing_files_say_pull(monkeypatch, tmp_path):
    with pytest.raises(errors.ModelNotFoundError, match="Did you mean waifu2x-x2"):
        CATALOG.get("waifu2x-2x")
    monkeypatch.setenv("GENAI_RAY_MODELS", str(tmp_path))
    with pytest.raises(errors.ModelNotFoundError, match="genai-ray models pull u2net"):
        ModelCatalog.default().path("u2net")


def test_a_folder_of_the_user_extends_and_replaces(monkeypatch, tmp_path):
    monkeypatch.setenv("GENAI_RAY_MODELS", str(tmp_path))
    assert models_folder() == tmp_path
    mine = CATALOG.get("websr-x2-s").model_copy(update={"sha256": "0" * 64, "file": "mine.onnx"})
    (tmp_path / "websr-x2-s.yaml").write_text(dump_spec(mine))
    (tmp_path / "mine.onnx").write_bytes(b"x")
    catalog = ModelCatalog(configs_folder() / "models", tmp_path)
    assert catalog.get("websr-x2-s").file == "mine.onnx"
    with pytest.raises(errors.ModelLoadError, match="sha256"):
        catalog.path("websr-x2-s")


def test_two_models_of_one_name_and_bad_fields_are_refused(tmp_path):
    spec = CATALOG.get("websr-x2-s")
    (tmp_path / "a.yaml").write_text(dump_spec(spec.model_copy(update={"model_id": "a", "aliases": ("b",)})))
    (tmp_path / "b.yaml").write_text(dump_spec(spec.model_copy(update={"model_id": "b"})))
    with pytest.raises(errors.ConfigError, match="both claim 'b'"):
        ModelCatalog(tmp_path)
    for text, words in (
        ("model_id: [", "YAML"),
        ("model_id: a\nfile: a\nscal: 2\n", "scal"),
        ("model_id: a\nfile: a\nscale: 0\n", "scale"),
    ):
        (tmp_path / "b.yaml").write_text(text)
        with pytest.raises(errors.ConfigError, match=words):
            load_spec(tmp_path / "b.yaml")


def test_a_wrong_spec_is_the_trouble_of_its_model_alone(tmp_path):
    (tmp_path / "good.yaml").write_text(
        dump_spec(CATALOG.get("websr-x2-s").model_copy(update={"model_id": "good", "aliases": ()}))
    )
    (tmp_path / "bad.yaml").write_text("model_id: bad\nfile: bad.onnx\nscal: 2\n")
    (tmp_path / "deep.yaml").write_text("[" * 5000 + "]" * 5000)
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    catalog = ModelCatalog(configs_folder() / "models", tmp_path)
    assert {"good", "esrgan-4x"} <= set(catalog.ids())
    with pytest.raises(errors.ModelNotFoundError, match=r"its spec is wrong: .*scal"):
        catalog.get("bad")


def test_a_yaml_file_of_many_aliases_is_refused_early(tmp_path):
    path = tmp_path / "model.serve.yaml"
    shapes = ", ".join(f"x{number}: [1]" for number in range(2000))
    path.write_text(f"warmup_shapes:\n- &a {{{shapes}}}\n" + "- *a\n" * 20_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(errors.ConfigError, match=r"model.serve.yaml cannot be read as YAML: more than 10000 values"):
        load_model_serving(path)
    path.write_text("warmup_shapes:\n- &a [*a]\n")
    with pytest.raises(errors.ConfigError, match="an alias repeats a value that contains it"):
        load_model_serving(path)
    path.write_text("warmup_shapes:\n- &a {x: [1]}\n- *a\n")
    assert load_model_serving(path).warmup_shapes == ({"x": (1,)}, {"x": (1,)})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


@pytest.mark.parametrize("path", sorted((configs_folder() / "engine").glob("*.yaml")), ids=lambda path: path.stem)
def test_profiles_load(path):
    assert JobProfile.load(path.stem).name == path.stem
    assert JobProfile.load(str(path)).segment_frames >= 1


def test_bad_profiles(tmp_path):
    with pytest.raises(errors.ConfigError, match="laptop"):
        JobProfile.load("desktop")
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nbatch_size: 0\n")
    with pytest.raises(errors.ConfigError, match="batch_size"):
        JobProfile.load(str(path))
