"""Which results are pictures, and which options make no sense for pictures."""

from __future__ import annotations

import os
from pathlib import Path

from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.errors import ConfigError
from genai_ray.files import has_number, is_remote
from genai_ray.types import Deinterlace
from genai_ray.video import (
    ANIMATION_SUFFIXES,
    IMAGE_SOURCE_SUFFIXES,
    IMAGE_SUFFIXES,
    SUFFIXES,
    folder_of_pictures,
    is_picture,
    is_sequence,
)

__all__ = [
    "check_own_place",
    "check_picture_options",
    "is_picture_target",
    "name_preview",
    "name_suffix",
    "own_folder",
    "place_of",
]

NUMBERED_SUFFIXES = (*IMAGE_SUFFIXES, ".webp")
"""Files of numbered pictures."""

LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
"""Pictures that have a quality."""

MAX_QUALITY = 100
"""The best quality of a picture."""


def is_picture_target(source: str, output: str) -> bool:
    """Tell whether a result is written as pictures are: one picture, an animation, or pictures of pictures.

    Frames of a video as ``frames/%06d.png`` are not: the packets of their encoder are the files.

    Args:
        source: Path or URI of the input.
        output: Path or URI of the result.

    Returns:
        Whether it is.
    """
    suffix = os.path.splitext(output)[1].lower()
    return suffix in ANIMATION_SUFFIXES or (suffix in IMAGE_SUFFIXES and is_picture(source))


def place_of(source: str, output: str) -> str:
    """Return what is published for an output.

    Args:
        source: Path or URI of the input.
        output: A file, or the pattern of the files of a folder of frames.

    Returns:
        The file, or the folder.

    Raises:
        ConfigError: If a pattern has another number of numbers than one, or is in a store.
    """
    is_picture_file = is_picture_target(source, output) and not has_number(output)
    if is_picture_file or os.path.splitext(output)[1].lower() not in IMAGE_SOURCE_SUFFIXES:
        return output
    if is_remote(output):
        raise ConfigError(
            f"{output}: frames as files in a store", "a folder of this machine, or one video or .parquet file"
        )
    return str(folder_of_pictures(Path(output)))


def own_folder(source: str) -> str:
    """Return the folder that a sequence gets among the results of several inputs.

    Args:
        source: Path or URI of an input.

    Returns:
        The name of the sequence's folder, ending in ``/``; empty for another input.
    """
    return f"{os.path.basename(os.path.dirname(source))}/" if is_sequence(source) else ""


def check_own_place(output: str, place: str, folder: str) -> None:
    """Refuse numbered files that would take the place of the folder of all results.

    Args:
        output: Path or URI of the result.
        place: What is published.
        folder: The folder of several results; empty if there is only one.

    Raises:
        ConfigError: If both are the same.
    """
    if folder and place.rstrip("/") == folder.rstrip("/"):
        raise ConfigError(
            f"{output}: numbered files in the folder of other results",
            "a folder of their own, such as frames/%05d.png",
            "Choose another name or column output.",
        )


def name_preview(output: str) -> str:
    """Name a preview after its result.

    Args:
        output: A file, or the pattern of the files of a folder of frames.

    Returns:
        ``NAME.preview.mp4`` for ``NAME.mp4``; of a folder of frames the folder is named so.
    """
    stem, suffix = os.path.splitext(output)
    if suffix.lower() not in IMAGE_SOURCE_SUFFIXES or not has_number(output):
        return f"{stem}.preview{suffix}"
    folder, _, pattern = output.rpartition("/")
    return f"{folder}.preview/{pattern}"


def name_suffix(source: str, suffix: str, options: EnhanceOptions) -> str:
    """Return the suffix of a result in an output folder.

    Args:
        source: Path or URI of the input.
        suffix: Its suffix, lower case, with its dot.
        options: The options of this input.

    Returns:
        The same if results have it, else .mp4; .png for a JPEG file whose background becomes alpha.
    """
    if not is_picture(source):
        return suffix if suffix in SUFFIXES else SUFFIXES[0]
    is_cut = options.background is not None and options.background.kind == "alpha"
    return ".png" if is_cut and suffix in (".jpg", ".jpeg") else suffix


def check_picture_options(source: str, output: str, options: EnhanceOptions) -> None:
    """Refuse options that have no use for pictures in or out; any are allowed from a video to a video.

    Args:
        source: Path or URI of the input.
        output: Path or URI of the result.
        options: The options of this input.

    Raises:
        ConfigError: If sound, subtitles or fields are asked of pictures, an encoder's option for a picture, a quality
            for other files than JPEG and WebP pictures or out of its range, or alpha for a JPEG file; if a sequence
            gets no rate; or if files of the output's suffix cannot be numbered.
    """
    suffix = os.path.splitext(output)[1].lower()
    if is_picture(source):
        tracks = {"audio": options.audio, "subtitles": options.subtitles, "streams": options.streams}
        asked = [f"{name} {word!r}" for name, word in tracks.items() if word not in ("auto", "none", None)]
        if asked:
            raise ConfigError(
                f"{' and '.join(asked)} of {source}", "none: pictures have neither sound nor subtitles", "Leave it out."
            )
    if is_picture(source) and (options.deinterlace not in (Deinterlace.AUTO, Deinterlace.OFF) or options.field_order):
        raise ConfigError(f"deinterlace of {source}", "none: pictures have no fields", "Leave it out.")
    if is_sequence(source) and options.fps is None and not has_number(output):
        raise ConfigError(
            f"{source} as {output}: pictures have no times",
            "a number of pictures per second",
            "Pass --fps 24 (fps=24), or number the results: out/%05d.png.",
        )
    encoding = options.encoding
    quality = encoding.image_quality
    if quality is not None and not (is_picture_target(source, output) and suffix in LOSSY_SUFFIXES):
        raise ConfigError(
            f"image quality {quality} for {output}",
            f"pictures and animations ending in {', '.join(LOSSY_SUFFIXES)}",
            "Leave it out: frames of a video as JPEG have FFmpeg's quality 2 of 31, and videos have --crf.",
        )
    if not is_picture_target(source, output):
        return
    names = {"codec": encoding.codec, "preset": encoding.preset, "crf": encoding.crf, "bit depth": encoding.bit_depth}
    names |= {"video bitrate": encoding.video_bitrate, "max size": encoding.max_size}
    given = [f"{name} {value}" for name, value in {**names, **encoding.options}.items() if value is not None]
    if given:
        raise ConfigError(
            f"{' and '.join(given)} for {output}",
            "none: the suffix says how a picture is written",
            "Leave it out, or write a video.",
        )
    if has_number(output) and suffix not in NUMBERED_SUFFIXES:
        raise ConfigError(f"{output}: numbered files ending in {suffix}", " or ".join(NUMBERED_SUFFIXES))
    if options.background is not None and options.background.kind == "alpha" and suffix in (".jpg", ".jpeg"):
        raise ConfigError(f"background 'alpha' in {output}: JPEG has no alpha", ".png or .webp")
