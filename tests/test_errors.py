"""Every error survives pickle, is also a builtin, and is drawn in the tree."""

import pickle
import re
from pathlib import Path

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


def test_every_error_has_an_entry_with_texts_of_the_code():
    root = Path(errors.__file__).parent
    page = (root.parent / "docs" / "troubleshooting.md").read_text()
    headings = re.findall(r"^## (\w+Error)$", page, re.M)
    assert sorted(headings) == sorted(kind.__name__ for kind in LEAVES)
    texts = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    assert len(texts) > 20
    code = "".join(path.read_text() for path in root.rglob("*.py"))
    assert [text for text in texts if text not in code] == []
    for kind in LEAVES:
        entry = page.partition(f"## {kind.__name__}\n")[2].partition("\n## ")[0]
        assert f"lso a `{kind.__bases__[1].__name__}`" in entry or f"lso an `{kind.__bases__[1].__name__}`" in entry
