"""``ClipTarget``: what is asked: one input with its output.

Inputs are files, folders, patterns, URIs or a manifest; each is paired with its output before anything is started.
"""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
import string
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from genai_ray.enhance.plan.background import parse_background
from genai_ray.enhance.plan.options import EnhanceOptions, Paths, read_param
from genai_ray.enhance.plan.picture_target import (
    check_own_place,
    check_picture_options,
    is_picture_target,
    name_preview,
    name_suffix,
    own_folder,
    place_of,
)
from genai_ray.enhance.plan.size import check_sides
from genai_ray.enhance.plan.timeline import parse_rate
from genai_ray.errors import ConfigError, VideoError
from genai_ray.files import check_writable, expand, find_facts, has_number, is_folder, is_remote, join_place, to_place
from genai_ray.types import CheckLevel
from genai_ray.video import (
    IMAGE_SOURCE_SUFFIXES,
    PICTURE_SUFFIXES,
    SOURCE_SUFFIXES,
    SUFFIXES,
    TABLE_SUFFIX,
    is_picture,
    is_sequence,
    validate_encoding,
)

__all__ = ["RECORD_SUFFIX", "WORK_SUFFIX", "ClipTarget", "Targets", "resolve_targets"]

WORK_SUFFIX = ".genai-ray"
"""Suffix of the folder of finished segments: it is named after the output."""

RECORD_SUFFIX = ".record.json"
"""Suffix of the record of a result: it is named after the output, too."""

MAX_NAME_BYTES = 255
"""Longest name of a file on common file systems."""

NAME_FIELDS = ("folder", "stem", "suffix", "index")
"""Fields of a name template."""

_ENCODING_COLUMNS = ("codec", "preset", "crf", "video_bitrate", "max_size", "image_quality", "bit_depth", "threads")
_WORD_COLUMNS = ("codec", "preset")
"""Of these, columns that stay strings even if they look like numbers, such as the presets of AV1."""
_OPTION_COLUMNS = (
    "allow_truncated",
    "overwrite",
    "segment_frames",
    "tile_size_px",
    "start",
    "end",
    "duration",
    "preview",
    "audio",
    "subtitles",
    "streams",
    "size",
    "width",
    "height",
    "scale",
    "fit",
    "input_height",
    "deinterlace",
    "field_order",
    "factor",
    "fps",
    "slow_motion",
    "scene_detector",
    "scene_threshold",
    "background",
    "check",
)
_WORDS: Mapping[str, Callable[[str], Any]] = {"fps": parse_rate, "background": parse_background}
"""Columns that are read as on the command line."""

_TEXTS = ("start", "end", "duration", "streams")
"""Columns that are texts in CSV: 01:30 would be a time of the day."""

_PARAM_PREFIX = "param."


@dataclass(frozen=True, slots=True)
class ClipTarget:
    """One video of a job."""

    source: str
    """Where it is: path or URI."""
    output: str
    """Where its result goes: a file, or the pattern of the files of a folder of frames."""
    work_dir: str
    """Where its finished segments go."""
    index: int = 0
    """Position in the job."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Options of this video alone, by column of the manifest."""
    folder: str = ""
    """The folder that its result must not leave; empty if the user named the result."""

    @property
    def place(self) -> str:
        """The result that is published: a file, or a folder of frames."""
        return place_of(self.source, self.output)

    @property
    def is_picture(self) -> bool:
        """Whether the result is written as pictures are: its segments are PNG files, whatever its suffix."""
        return is_picture_target(self.source, self.output)

    @property
    def coded_as(self) -> str:
        """The suffix whose encoder makes the segments."""
        return ".png" if self.is_picture else self.suffix

    @property
    def suffix(self) -> str:
        """Suffix of the output, in lower case."""
        return os.path.splitext(self.output)[1].lower()

    @property
    def record(self) -> str:
        """Where its record goes: beside the result."""
        return self.place + RECORD_SUFFIX

    def has_record(self, options: EnhanceOptions) -> bool:
        """Tell whether the result gets a record.

        Args:
            options: The options of this video.

        Returns:
            Whether it is a video file and the checks are strict.
        """
        return options.check == CheckLevel.STRICT and self.suffix in SUFFIXES

    @property
    def aside(self) -> str:
        """The folder beside the result in which it is made; without ``--work-dir`` this is the work folder."""
        return _beside(self.place)

    def check_below(self) -> None:
        """Refuse a result outside the output folder: names come from listings, keys and manifests of strangers.

        Raises:
            ConfigError: If the result would be outside.
        """
        folder = self.folder.rstrip("/")
        output = self.output
        if not folder or (output.startswith(f"{folder}/") and "\0" not in output and _is_below(folder, output)):
            return
        raise ConfigError(
            f"the result of {self.source!r} would be {output!r}, outside of {folder}",
            "names below the output folder",
            "Pass --name (name=...) with {stem} or {index} and without {folder}, or rename it.",
        )

    def check_name(self, suffix: str = "") -> None:
        """Refuse a name that is too long for a file.

        Args:
            suffix: That of a file beside the result, which is named after it.

        Raises:
            ConfigError: If it is too long.
        """
        num_bytes = len(os.fsencode(os.path.basename(self.place) + suffix))
        if num_bytes > MAX_NAME_BYTES and not is_remote(self.place):
            raise ConfigError(
                f"output {self.output}: a name of {num_bytes} bytes",
                f"{MAX_NAME_BYTES}",
                "Pass --name (name=...), such as '{index}{suffix}'.",
            )

    def options(self, common: EnhanceOptions) -> EnhanceOptions:
        """Return the options of this video.

        Args:
            common: The options of the job.

        Returns:
            The options of the job, changed by this video's row of the manifest.
        """
        if not self.changes:
            return common
        encoding: dict[str, Any] = {}
        own: dict[str, Any] = {}
        params = dict(common.params)
        for name, value in self.changes.items():
            if name in _ENCODING_COLUMNS:
                encoding[name] = str(value) if name in _WORD_COLUMNS else value
            elif name in _OPTION_COLUMNS:
                own[name] = _WORDS[name](str(value)) if name in _WORDS else value
            elif name.startswith(_PARAM_PREFIX):
                params[name.removeprefix(_PARAM_PREFIX)] = read_param(name, value)
        return replace(common, encoding=replace(common.encoding, **encoding), params=params, **own)


@dataclass(frozen=True, slots=True)
class Targets:
    """All videos of a job; a manifest is read again each time rather than kept, because it may be of any length."""

    count: int
    """Number of videos."""
    folder: str | None
    """Folder of the results, where ``results.parquet`` goes; None for a job of one file."""
    walk: Callable[[], Iterator[ClipTarget]]
    """Gives them in order."""
    has_sequence: bool = False
    """Whether one of them is a pattern of numbered pictures."""

    @property
    def parent(self) -> str:
        """The folder that must exist before a result can appear in it: ``folder``, or that of the one result."""
        return self.folder if self.folder is not None else os.path.dirname(next(self.walk()).place)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[ClipTarget]:
        return self.walk()


def resolve_targets(inputs: Paths, output: str | Path, options: EnhanceOptions) -> Targets:
    """Pair every input with its output, and check both as far as possible without opening a video.

    Args:
        inputs: Files of videos or pictures, folders, patterns or URIs; or one manifest, a .csv or .parquet file with
            the column ``uri``.
        output: A file for one input file, or numbered files for one sequence; else a folder, where results have the
            names that ``options.name`` makes. It need not exist; a name that ends in ``/`` is a folder.
        options: The job's options.

    Returns:
        The pairs, in the order of the inputs.

    Raises:
        VideoError: If nothing matches a folder or pattern.
        ConfigError: If outputs collide, equal an input, have an unsupported suffix, or their folder is a file or not
            writable; if several inputs have one file as output; if a manifest has an unknown column; or if the encoder
            is missing.
    """
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    if not inputs:
        raise ConfigError("no input", "at least one video file")
    _check_template(options.name)
    result = to_place(output)
    places = [to_place(place) for place in inputs]
    check_writable(result)
    if len(places) == 1 and places[0].lower().endswith((".csv", TABLE_SUFFIX)):
        _check_holds_many(result)
        _check_folder(result, options)
        manifest = places[0]
        walk = functools.partial(_read_manifest, manifest, result, options)
        count, has_sequence = _check_all(walk, options, result)
        return Targets(count, result.rstrip("/"), walk, has_sequence)
    listed = [(place, _expand(place, result)) for place in places]
    to_folder = len(places) > 1 or listed[0][1] is not None
    if not to_folder and not result.endswith("/") and not is_folder(result):
        target = _target(0, places[0], result, options)
        _, has_sequence = _check_all(lambda: iter([target]), options)
        _check_folder(os.path.dirname(target.place), options)
        return Targets(1, None, lambda: iter([target]), has_sequence)
    if to_folder:
        _check_holds_many(result)
    _check_folder(result, options)
    targets: list[ClipTarget] = []
    for place, below in listed:
        for source, folder in [(place, "")] if below is None else below:
            index = len(targets)
            own = own_folder(source) if to_folder else ""
            named = to_place(join_place(result, _name(source, own or folder, index, options)))
            targets.append(_target(index, source, named, options, folder=result))
    count, has_sequence = _check_all(lambda: iter(targets), options, result if to_folder else "")
    return Targets(count, result.rstrip("/") if to_folder else None, lambda: iter(targets), has_sequence)


def _expand(place: str, output: str) -> list[tuple[str, str]] | None:
    """List the videos of a folder, or its pictures if it has no video, or the files of a pattern.

    Results and segments of an earlier job that wrote below it are left out.
    """
    pairs = expand(place, (*SOURCE_SUFFIXES, *IMAGE_SOURCE_SUFFIXES))
    if pairs is None:
        return None
    folder = output.rstrip("/") + "/"
    if place.rstrip("/") + "/" == folder:
        raise ConfigError(
            f"output folder {output} is the input folder",
            "another one, or one below it",
            "Results would be inputs of the next run.",
        )
    kept = [
        pair
        for pair in pairs
        if not pair[0].startswith(folder) and not any(part.endswith(WORK_SUFFIX) for part in pair[0].split("/"))
    ]
    if not kept:
        raise VideoError(f"{place}: nothing but results of an earlier job")
    if not is_folder(place):
        return kept
    return [pair for pair in kept if not is_picture(pair[0])] or kept


def _target(index: int, source: str, output: str, options: EnhanceOptions, **others: Any) -> ClipTarget:
    """Name the work folder of a video; ``others`` are fields of ``ClipTarget``."""
    if others.get("changes", {}).get("preview", options.preview):
        output = name_preview(output)
    place = place_of(source, output)
    work_dir = _beside(place)
    if options.work_dir is not None:  # results of several folders may have the same name
        digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]
        work_dir = join_place(to_place(options.work_dir), f"{_cut(os.path.basename(place))}-{digest}{WORK_SUFFIX}")
    return ClipTarget(source, output, work_dir, index, **others)


def _is_below(folder: str, output: str) -> bool:
    """Tell whether a place is below a folder after following links; a store has no links."""
    if is_remote(folder):
        return not f"{posixpath.normpath(output.removeprefix(f'{folder}/'))}/".startswith(("../", "/"))
    return f"{os.path.realpath(os.path.dirname(output))}/".startswith(f"{os.path.realpath(folder).rstrip('/')}/")


def _beside(place: str) -> str:
    """Name a result's work folder after it; a name that would be too long is cut and gets a hash."""
    folder, _, name = place.rpartition("/")
    cut = _cut(name)
    if cut != name:
        cut += f"-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
    return join_place(folder, cut + WORK_SUFFIX)


def _cut(name: str) -> str:
    """Cut a name so that a work folder's suffix and a hash fit into the longest name of a file."""
    most = MAX_NAME_BYTES - len(f"-{'0' * 8}{WORK_SUFFIX}")
    return name if len(os.fsencode(name)) <= most else os.fsencode(name)[:most].decode(errors="ignore")


def _name(source: str, folder: str, index: int, options: EnhanceOptions) -> str:
    """Name a result after its input: with the same suffix if possible; a folder of frames for encoders of pictures."""
    stem, suffix = os.path.splitext(os.path.basename(source.partition("?")[0] if is_remote(source) else source))
    encoding = options.encoding
    if encoding.codec is not None and encoding.encoder in PICTURE_SUFFIXES:
        name = options.name.format(folder=folder, stem=stem, suffix="", index=index)
        return f"{name}/%06d{PICTURE_SUFFIXES[encoding.encoder]}"
    if has_number(stem + suffix) and not is_sequence(source):
        raise ConfigError(f"{source}: a name like that of numbered files", "a name without %", "Rename it.")
    suffix = name_suffix(source, suffix.lower(), options)
    return options.name.format(folder=folder, stem=stem, suffix=suffix, index=index)


def _check_template(template: str) -> None:
    try:
        used = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as exc:
        raise ConfigError(f"name {template!r} ({exc})", "a template such as {folder}{stem}-x2{suffix}") from exc
    unknown = sorted(set(used) - set(NAME_FIELDS))
    if unknown:
        raise ConfigError(f"name {template!r} with {unknown}", ", ".join(f"{{{name}}}" for name in NAME_FIELDS))


def _read_manifest(manifest: str, folder: str, options: EnhanceOptions) -> Iterator[ClipTarget]:
    from genai_ray.tables import iter_rows  # noqa: PLC0415 - Arrow takes 0.15 s, and one video needs none

    for index, row in enumerate(iter_rows(manifest, texts=_TEXTS)):
        changes = {name: value for name, value in row.items() if name not in ("uri", "output") and value is not None}
        if index == 0:
            _check_columns(manifest, row)
        if not row["uri"]:
            raise ConfigError(f"{manifest}: row {index} has no uri", "a path or URI in each row")
        uri = str(row["uri"])
        source = to_place(uri if is_remote(uri) or os.path.isabs(uri) else join_place(manifest.rpartition("/")[0], uri))
        given = row.get("output")
        is_own = bool(given) and (is_remote(str(given)) or os.path.isabs(str(given)))
        if is_own:
            output = to_place(str(given))
        else:
            own = ClipTarget(source, "", "", index, changes).options(options)
            output = to_place(
                join_place(folder, str(given) if given else _name(source, own_folder(source), index, own))
            )
        allowed = "" if is_own and not is_remote(manifest) else folder
        yield _target(index, source, output, options, changes=changes, folder=allowed)


def _check_columns(manifest: str, row: Mapping[str, Any]) -> None:
    if "uri" not in row:
        raise ConfigError(f"{manifest}: no column uri among {sorted(row)}", "a table with the column uri")
    known = ("uri", "output", *_ENCODING_COLUMNS, *_OPTION_COLUMNS)
    unknown = sorted(name for name in row if name not in known and not name.startswith(_PARAM_PREFIX))
    if unknown:
        raise ConfigError(
            f"{manifest}: unknown columns {unknown}", f"{', '.join(known)} and {_PARAM_PREFIX}NAME for a model's params"
        )


def _check_all(walk: Callable[[], Iterator[ClipTarget]], options: EnhanceOptions, folder: str = "") -> tuple[int, bool]:
    """Check every pair, and count them; two numbers are kept of each. Also tell whether one is a sequence.

    ``folder`` is that of several results, which one of them would replace if it were that very folder.
    """
    count = 0
    has_sequence = False
    encodings = set()
    sources: set[int] = set()
    outputs: set[int] = set()
    for target in walk():
        count += 1
        has_sequence = has_sequence or is_sequence(target.source)
        if not is_remote(target.output) and (_is_same(target) or _holds_source(target)):
            raise ConfigError(f"output {target.output} is an input", "another file", "The input is never replaced.")
        target.check_below()
        if hash(target.output) in outputs:
            raise ConfigError(
                f"two inputs for {target.output}",
                "outputs of different names: a folder each, a --name, or a column output",
            )
        sources.add(hash(target.source))
        outputs.add(hash(target.output))
        own = target.options(options)
        _ = own.piece  # raises
        check_picture_options(target.source, target.output, own)
        check_own_place(target.output, target.place, folder)
        has_alpha = own.background is not None and own.background.kind == "alpha"
        known = (repr(own.encoding), own.tracks, target.coded_as, has_alpha)
        if known not in encodings:
            validate_encoding(own.encoding, target.coded_as, has_alpha=has_alpha)
            own.tracks.check(target.suffix)
            encodings.add(known)
        check_sides(own.result_size, own.encoding.fit(target.coded_as))
    if sources & outputs:
        clash = next(target.output for target in walk() if hash(target.output) in sources)
        raise ConfigError(f"output {clash} is an input", "another file", "The input is never replaced.")
    if not count:
        raise ConfigError("a manifest without rows", "at least one video")
    return count, has_sequence


def _is_same(target: ClipTarget) -> bool:
    return (
        os.path.exists(target.output)
        and os.path.exists(target.source)
        and os.path.samefile(target.output, target.source)
    )


def _holds_source(target: ClipTarget) -> bool:
    """Tell whether the input is in a folder of frames that the result would replace."""
    if target.place == target.output or is_remote(target.source):
        return False
    return f"{os.path.realpath(os.path.dirname(target.source))}/".startswith(f"{os.path.realpath(target.place)}/")


def _check_holds_many(output: str) -> None:
    """Refuse the name of a file as the output of several inputs."""
    is_file_name = output.lower().endswith((*SUFFIXES, *IMAGE_SOURCE_SUFFIXES, TABLE_SUFFIX))
    if is_file_name and not is_folder(output):
        raise ConfigError(f"output {output} is one file", "several inputs need a folder", "Pass --output FOLDER/.")


def _check_folder(folder: str, options: EnhanceOptions) -> None:
    """Check that results can be written into a folder, or that it can be created."""
    if is_remote(folder):
        check_writable(folder)
    else:
        there = folder
        while find_facts(there) is None:
            there = os.path.dirname(there.rstrip("/"))
        if not os.path.isdir(there):
            raise ConfigError(f"output folder {folder}: {there} is a file", "a folder, or a name that is free")
        _check_writable(Path(there))
    if options.work_dir is not None and os.path.isdir(options.work_dir):
        _check_writable(Path(options.work_dir))


def _check_writable(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):  # permissions do not show a read-only file system
            pass
    except OSError as exc:
        raise ConfigError(
            f"folder {folder} is not writable ({exc.strerror})", do="Choose another one, or change its permissions."
        ) from exc
