"""``genai-ray models``, and models by preset."""

from pathlib import Path

import pytest

from genai_ray import ModelCatalog
from genai_ray.catalog import ModelSpec
from genai_ray.catalog.spec import ParamSpec
from genai_ray.enhance import EnhanceOptions
from genai_ray.enhance.plan.options import check_models, convert_params
from genai_ray.types import ModelPreset, ModelTask
from tests.cli.terminal import run_in_terminal
from tests.processes import run


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_cuts_no_id_in_a_terminal(columns):
    told = run_in_terminal("models", "list", columns=columns)
    assert told.returncode == 0
    head, *lines = told.text.splitlines()
    assert head.split() == ["id", "task", "scale", "licence", "size"]
    assert all(len(line) <= columns for line in (head, *lines))
    assert [line.split()[0] for line in lines if line[1:2].strip()] == ModelCatalog.default().ids()


def test_the_list_has_a_line_for_each_model_in_a_pipe():
    _, *lines = run("models", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ModelCatalog.default().ids()
    assert next(line for line in lines if "waifu2x-x2" in line).split() == [
        *("waifu2x-x2", "upscaling", "x2", "BSD-3-Clause", "AND", "MIT", "2.2", "MB"),
    ]
    assert next(line for line in lines if "websr-x2-s" in line).endswith(" kB ")


def test_a_packaged_model_needs_no_download():
    done = run("models", "pull", "rife")
    assert (done.returncode, "needs no download" in done.stderr) == (0, True)
    assert Path(done.stdout.strip()) == ModelCatalog.default().path("rife")


@pytest.mark.parametrize("task", [task for task in ModelTask if task is not ModelTask.OTHER])
@pytest.mark.parametrize("preset", ModelPreset)
def test_each_preset_of_each_task_is_one_packaged_model(task, preset):
    catalog = ModelCatalog.default()
    meant = [spec.model_id for spec in map(catalog.get, catalog.ids()) if spec.task is task and preset in spec.presets]
    assert meant == [catalog.preset(task, preset)]
    assert catalog.path(meant[0]).is_file()


def test_params_may_be_given_on_the_scale_that_users_know():
    sigma = ModelCatalog.default().get("ffdnet").params["sigma"]
    assert sigma.in_own_unit(15) == 15 / 255
    assert sigma.in_own_unit(0.06) == 0.06
    assert sigma.describe_limits() == "from 0 to 0.294, or 1 to 75 of 255"
    assert ParamSpec(default=0, minimum=0, maximum=1 / 3).describe_limits() == "from 0 to 0.333"
    assert ParamSpec(default=0, minimum=0, maximum=30).in_own_unit(15) == 15
    assert "presets" in ModelSpec.model_fields


def test_params_are_converted_once():
    specs = check_models("ffdnet", EnhanceOptions(params={"sigma": 15}))
    options = convert_params(specs, EnhanceOptions(params={"sigma": 15}))
    assert options.params == {"sigma": 15 / 255}
    assert convert_params(specs, options) == options
    assert specs[0].params["sigma"].read("sigma", 15 / 255) == 15 / 255


def test_a_scale_needs_a_maximum_below_1():
    with pytest.raises(ValueError, match="maximum below 1"):
        ParamSpec(default=0, minimum=0, maximum=2, full_scale=255)
