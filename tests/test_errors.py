"""Every error survives pickle, is also a builtin, and is drawn in the tree."""

import pickle

import pytest

from genai_ray import errors

LEAVES = [getattr(errors, name) for name in errors.__all__ if name != "GenAIRayError"]


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_survives_pickle_with_its_fields(kind):
    error = pickle.loads(pickle.dumps(kind("got this", "only that", "Do so.")))
    assert type(error) is kind
    assert (error.got, error.allowed, error.do) == ("got this", "only that", "Do so.")
    assert str(error) == "got this; allowed: only that. Do so."


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_is_ours_and_a_builtin_and_is_drawn(kind):
    ours, builtin = kind.__bases__
    assert ours is errors.GenAIRayError
    assert builtin.__module__ == "builtins"
    assert f"{kind.__name__}({builtin.__name__})" in errors.__doc__
