"""Files that a command writes at its end: refused before hours of work if they cannot be written, and written whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from genai_ray.errors import ConfigError

__all__ = ["check_targets", "write_pair", "write_target"]


def check_targets(files: Mapping[str, Path], inputs: Sequence[str], *, may_replace: bool) -> None:
    """Refuse files that cannot be written.

    Args:
        files: The files by the option that names them.
        inputs: What the command reads, as paths or URIs.
        may_replace: Whether files that exist may be replaced.

    Raises:
        ConfigError: If a file is read by the command too, or named twice, is a folder, exists, or its folder cannot be
            written to.
    """
    read = {os.path.realpath(path) for path in inputs}
    places: dict[str, str] = {}
    for option, file in files.items():
        place = os.path.realpath(file)
        if place in read:
            raise ConfigError(f"{option}: {file} is one of the inputs", do="Choose another file.")
        if place in places:
            raise ConfigError(f"{file} for both {places[place]} and {option}", do="Choose two files.")
        places[place] = option
        if file.is_dir():
            raise ConfigError(f"{option}: {file} is a folder", "the name of a file")
        if file.exists() and not may_replace:
            raise ConfigError(f"{option}: {file} exists", do="Choose another place, or pass --overwrite.")
        _check_folder(option, file)


def _check_folder(option: str, file: Path) -> None:
    """Write a file without a name into the folder, or into the one in which it will be made."""
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as exc:
        raise ConfigError(
            f"{option}: {file} cannot be written: {folder}: {exc.strerror}", do="Choose another place."
        ) from exc


def write_target(file: Path, data: bytes) -> None:
    """Write a file, whole or not at all; its folder is made if it is missing.

    Args:
        file: An existing one is replaced.
        data: Its bytes.

    Raises:
        VideoError: If it cannot be written.
    """
    from genai_ray.files import discard, file_errors, open_folder, publish

    file = file.absolute()
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with open_folder(str(file.parent)), file_errors(str(file), "writing"):
        try:
            partial.write_bytes(data)
            publish(partial, str(file))
        finally:
            discard(partial)


def write_pair(file: Path, data: bytes, beside: Path, text: bytes) -> None:
    """Write a file and the one that describes it: both, or none, so that neither stands beside an older other one.

    The file that is replaced is moved away first, so that if the process dies there may be no file, but never one with
    the description of another.

    Args:
        file: An existing one is replaced.
        data: Its bytes.
        beside: The file that describes it, in the same folder; an existing one is replaced.
        text: Its bytes.

    Raises:
        VideoError: If one cannot be written; then both are as they were.
    """
    from genai_ray.files import discard, file_errors

    replaced = [one for one in (file, beside) if one.exists()]
    moved: dict[Path, Path] = {}
    try:
        for one in replaced:
            old = one.with_name(f".{one.name}.{os.getpid()}.old")
            with file_errors(str(one), "replacing"):
                one.replace(old)
            moved[one] = old
        write_target(beside, text)
        write_target(file, data)
    except BaseException:
        for one in (beside, file):
            if one in moved:
                moved[one].replace(one)
            elif one not in replaced:
                one.unlink(missing_ok=True)
        raise
    for old in moved.values():
        discard(old)
