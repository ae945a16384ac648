"""Classes of options: what they say of a name that they lack, and of a number out of its range."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import sys
from typing import Any, TypeVar

from genai_ray.errors import ConfigError

__all__ = ["check_ranges", "refuse_unknown"]

Class = TypeVar("Class", bound=type)


def refuse_unknown(owner: Class) -> Class:
    """Make a dataclass refuse unknown names in the words of this package.

    Args:
        owner: The dataclass.

    Returns:
        The same class.

    Raises:
        ConfigError: From the class, if a name is not known: where it belongs, or which ones are like it.
    """
    make: Any = vars(owner)["__init__"]
    known = {field.name for field in dataclasses.fields(owner)}

    @functools.wraps(make)
    def init(self: Any, *args: Any, **given: Any) -> None:
        for name in given.keys() - known:
            public = sorted(one for one in known if not one.startswith("_"))
            raise ConfigError(f"{name}= of {owner.__name__}", *_find_place(owner, name, public))
        make(self, *args, **given)

    made: Any = owner
    made.__init__ = init
    return owner


def check_ranges(options: Any, **ranges: tuple[float, float]) -> None:
    """Check numbers of a dataclass; None passes.

    Args:
        options: The dataclass, whose fields have their types.
        ranges: Least and largest value of a field by its name; ``math.inf`` for no largest.

    Raises:
        ConfigError: If one is out of its range, or no number.
    """
    for name, (least, largest) in ranges.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= largest:
            allowed = f"{least:g} or more" if largest == math.inf else f"from {least:g} to {largest:g}"
            raise ConfigError(f"{name}={value}", allowed)


def _find_place(owner: type, name: str, known: list[str]) -> tuple[str, str]:
    """Return what is allowed, and what to do."""
    names = vars(sys.modules[owner.__module__])
    for field in dataclasses.fields(owner):
        for word in str(field.type).split(" | "):
            kind = names.get(word)
            if dataclasses.is_dataclass(kind) and name in {one.name for one in dataclasses.fields(kind)}:
                return f"{field.name}={word}({name}=...)", ""
    if like := difflib.get_close_matches(name, known):
        return "", f"Did you mean {' or '.join(like)}?"
    return ", ".join(known), ""
