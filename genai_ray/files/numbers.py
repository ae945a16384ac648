"""Numbered files: a pattern such as ``frames/%05d.png`` stands for all files of a folder that it names."""

from __future__ import annotations

import hashlib
import os
import re
from itertools import pairwise

from genai_ray.errors import VideoError
from genai_ray.files.places import FileFacts, find_facts, list_names
from genai_ray.files.store import is_remote

__all__ = ["find_source_facts", "has_number", "is_numbered", "list_numbered"]

_NUMBER = re.compile(r"%(0\d+)?d")

MOST_NAMED = 3
"""Gaps that an error names one by one."""


def has_number(place: str) -> bool:
    """Tell whether a place is named like numbered files.

    Args:
        place: Path or URI.

    Returns:
        Whether its file name has exactly one number, such as %05d.
    """
    name = os.path.basename(place)
    return len(_NUMBER.findall(name)) == 1 == name.count("%")


def is_numbered(place: str) -> bool:
    """Tell whether an input is the pattern of numbered files.

    Args:
        place: Path or URI.

    Returns:
        Whether it has a number, is on this machine, and no file has that very name.
    """
    return has_number(place) and not is_remote(place) and not os.path.exists(place)


def list_numbered(pattern: str) -> dict[int, str]:
    """List numbered files in the order of their numbers.

    Args:
        pattern: Such as ``/frames/%05d.png``.

    Returns:
        Their paths by number; none if there is no such file.

    Raises:
        VideoError: If a number between the first and the last one is missing, or the folder cannot be read.
    """
    folder, _, name = pattern.rpartition("/")
    before, after = _NUMBER.split(name)[::2]
    written = re.compile(f"{re.escape(before)}([0-9]+){re.escape(after)}")
    found: dict[int, str] = {}
    for there in list_names(folder or "/"):
        number = written.fullmatch(there)
        if number is not None and name % int(number[1]) == there:
            found[int(number[1])] = f"{folder}/{there}"
    numbers = sorted(found)
    gaps = [(low, high) for low, high in pairwise(numbers) if high > low + 1]
    if gaps:
        texts = [str(low + 1) if high == low + 2 else f"{low + 1} to {high - 1}" for low, high in gaps[:MOST_NAMED]]
        more = f" and {len(gaps) - MOST_NAMED} more gaps" if len(gaps) > MOST_NAMED else ""
        raise VideoError(
            f"{pattern}: missing between {numbers[0]} and {numbers[-1]}: {', '.join(texts)}{more}",
            "numbers without a gap",
            "Add the missing files, or rename the others.",
        )
    return {number: found[number] for number in numbers}


def find_source_facts(place: str) -> FileFacts | None:
    """Ask for size and version of an input: a file, or numbered files together.

    Args:
        place: Path, URI, or the pattern of numbered files.

    Returns:
        The facts; None if there is no such file.

    Raises:
        VideoError: If the store fails, or a number is missing.
    """
    if not is_numbered(place):
        return find_facts(place)
    digest = hashlib.sha256()
    size = 0
    files = list_numbered(place)
    for path in files.values():
        facts = find_facts(path)
        if facts is not None:
            size += facts.size
            digest.update(f"{os.path.basename(path)}:{facts.size}:{facts.stamp};".encode())
    return FileFacts(size, digest.hexdigest()[:32]) if files else None
