"""Which models may follow each other, where a chain is cut, and how far one is."""

from fractions import Fraction

import pytest

from genai_ray import EnhanceOptions, ModelCatalog
from genai_ray.enhance.job.clip_plan import examine_clip
from genai_ray.enhance.job.steps import _notes
from genai_ray.enhance.plan.clip_target import resolve_targets
from genai_ray.enhance.plan.timeline import check_chain, check_rate, count_results, split_chain
from genai_ray.errors import ConfigError
from tests.video.clips import write


def specs(*models):
    return [ModelCatalog.default().get(model) for model in models]


@pytest.mark.parametrize(
    ("models", "parts"),
    [
        (["websr-x2-s"], (["websr-x2-s"], None, [], None)),
        (["rife"], ([], "rife", [], None)),
        (["u2net"], ([], None, [], "u2net")),
        (["zero-dce", "ffdnet", "websr-x2-s"], (["zero-dce", "ffdnet", "websr-x2-s"], None, [], None)),
        (["ffdnet", "rife", "websr-x2-s", "ffdnet"], (["ffdnet"], "rife", ["websr-x2-s", "ffdnet"], None)),
        (["websr-x2-s", "rife", "selfie-segmentation"], (["websr-x2-s"], "rife", [], "selfie-segmentation")),
        (["ffdnet", "selfie-segmentation"], (["ffdnet"], None, [], "selfie-segmentation")),
    ],
)
def test_chains_that_make_sense(models, parts):
    chain = specs(*models)
    check_chain(chain)
    cut = split_chain(chain, models)
    before, after = list(cut.before_interpolation), list(cut.after_interpolation)
    assert (before, cut.interpolation, after, cut.mask) == parts


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (["rife", "rife"], "one model that adds frames"),
        (["rife", "ffdnet", "rife"], "one model that adds frames"),
        (["selfie-segmentation", "websr-x2-s"], "last of the chain"),
        (["selfie-segmentation", "rife"], "last of the chain"),
        (["selfie-segmentation", "u2net"], "last of the chain"),
    ],
)
def test_chains_that_make_none(models, words):
    with pytest.raises(ConfigError, match=words):
        check_chain(specs(*models))


def test_a_model_that_takes_no_frames_is_refused():
    other = ModelCatalog.default().get("websr-x2-s").model_copy(update={"inputs": ()})
    with pytest.raises(ConfigError, match="input and output are images"):
        check_chain([other])


@pytest.mark.parametrize(
    ("models", "factor", "fps", "words"),
    [
        (["ffdnet"], 2, None, "Add --model rife"),
        (["ffdnet"], None, Fraction(60), "Add --model rife"),
        (["rife"], 2, Fraction(60), "one of them"),
    ],
)
def test_rates_that_make_no_sense(models, factor, fps, words):
    with pytest.raises(ConfigError, match=words):
        check_rate(specs(*models), factor, fps)


def test_how_far_a_chain_is():
    chain = specs("ffdnet", "rife", "websr-x2-s")
    assert count_results(chain, {"ffdnet": 10, "rife": 20, "websr-x2-s": 30}, factor=3) == 30
    assert count_results(chain, {"ffdnet": 10, "rife": 16, "websr-x2-s": 30}, factor=3) == 24
    assert count_results(chain, {"ffdnet": 10, "rife": 20, "websr-x2-s": 12}, factor=3) == 12
    assert count_results(specs("rife"), {"rife": 7}, factor=2) == 14
    assert count_results(specs("ffdnet", "websr-x2-s"), {"ffdnet": 7}, factor=2) == 0


def test_the_report_tells_of_seams_of_a_fixed_size_model(tmp_path):
    (spec,) = specs("websr-x2-s")
    fixed = spec.model_copy(
        update={"inputs": (spec.inputs[0].model_copy(update={"height": 64, "width": 96}),), "receptive_field_px": None}
    )
    options = EnhanceOptions()
    (target,) = resolve_targets([write(tmp_path / "a.mkv", pts=range(4), tracks=0)], tmp_path / "b.mkv", options)
    assert examine_clip(target, [fixed], options).notes == ()
    planned = examine_clip(target, [spec, fixed], options)
    (note,) = planned.notes
    assert note == (
        "websr-x2-s takes only 96x64: frames are tiled with a halo of 16 px, "
        "its receptive field is not known; seams may show"
    )
    assert note in list(_notes(planned, 4))
