"""What is said to clients: texts of errors without the folders of this machine, which are nobody's business."""

from __future__ import annotations

import re

__all__ = ["without_folders"]

_FOLDERS = re.compile(r"(?<![\w:/.])/(?!v[12]/)(?:[^/\n'\":;,()]+/)+(?=[^/\s])")
"""An absolute path up to its last part; routes of the endpoint are none."""


def without_folders(text: object) -> str:
    """Return a text for clients.

    Args:
        text: An error, or a text that may name files by their absolute paths.

    Returns:
        The same with the name of each file alone.
    """
    return _FOLDERS.sub("", str(text))
