"""Which tracks of sound and subtitles a result has, and how they get there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
from av.container import InputContainer

from genai_ray.errors import ConfigError
from genai_ray.video.codecs import SOUND_CODECS, SUFFIXES

__all__ = ["AUDIO_WORDS", "STRETCH", "SUBTITLE_WORDS", "TrackOptions", "parse_track_options"]

STRETCH = "stretch"
"""Value of ``audio`` for slow motion."""

AUDIO_WORDS = ("auto", "copy", "none", STRETCH, *SOUND_CODECS)
"""Values of ``audio``."""

SUBTITLE_WORDS = ("auto", "copy", "none")
"""Values of ``subtitles``."""

_KINDS = {"audio": "audio", "subtitle": "subtitles"}
"""What ``streams`` calls a kind, by FFmpeg's name of it."""

_WORD = re.compile(r"[0-9]{1,5}|(?:audio|subtitles)(?::(?:[0-9]{1,5}|[A-Za-z][A-Za-z0-9-]*))?|[A-Za-z][A-Za-z0-9-]*")
_WRITTEN = "words and commas: number of a stream, audio, subtitles, audio:0, subtitles:eng, or a language such as eng"


@dataclass(frozen=True, slots=True)
class TrackOptions:
    """What is asked of the tracks beside the pictures."""

    audio: str = "auto"
    """One of ``AUDIO_WORDS``."""
    subtitles: str = "auto"
    """One of ``SUBTITLE_WORDS``."""
    streams: tuple[str, ...] = ()
    """Words that choose tracks; empty for all."""

    def check(self, suffix: str) -> None:
        """Check the options for an output.

        Args:
            suffix: Suffix of the output, lower case, with its dot.

        Raises:
            ConfigError: If the output cannot hold the codec, holds no sound at all, or this build of FFmpeg lacks the
                encoder.
        """
        codec = SOUND_CODECS.get(self.audio)
        if suffix not in SUFFIXES:
            if codec is not None or self.audio == STRETCH or "copy" in (self.audio, self.subtitles):
                name, word = ("subtitles", "copy") if self.audio in ("auto", "none") else ("audio", self.audio)
                raise ConfigError(f"{name} {word!r} in frames without a container", "auto or none")
            return
        if codec is not None and codec.encoder not in av.codecs_available:
            raise ConfigError(f"audio {self.audio!r}, which this build of FFmpeg lacks", _list_codecs())
        if codec is not None and suffix not in codec.suffixes:
            takers = [name for name, other in SOUND_CODECS.items() if suffix in other.suffixes]
            raise ConfigError(
                f"audio {self.audio!r} in {suffix}", f"{', '.join(takers)}; or an output in {_join(codec.suffixes)}"
            )

    def check_speed(self, slow_motion: int) -> None:
        """Check what is asked of sound against the speed of the result.

        Args:
            slow_motion: How many times as long as its source the result is.

        Raises:
            ConfigError: If sound is to be as long as it is beside slower pictures, or to be stretched beside others.
        """
        if slow_motion > 1 and self.audio not in ("auto", "none", STRETCH):
            raise ConfigError(f"audio {self.audio!r} in slow motion", f"none or {STRETCH}")
        if slow_motion == 1 and self.audio == STRETCH:
            raise ConfigError(f"audio {STRETCH!r} without slow motion", do="Pass --slow-motion 4 (slow_motion=4).")

    def choose(self, source: InputContainer, path: str) -> frozenset[int]:
        """Choose tracks of sound and subtitles.

        Args:
            source: The source, open.
            path: Its name, for the error.

        Returns:
            Their indices.

        Raises:
            ConfigError: If one of ``streams`` finds no track.
        """
        tracks = [stream for stream in source.streams if stream.type in _KINDS]
        chosen = {stream.index for stream in tracks}
        if self.streams:
            found = {word: _find(tracks, word) for word in self.streams}
            for word, indices in found.items():
                if not indices:
                    there = ", ".join(_describe(tracks)) or "none: it has neither sound nor subtitles"
                    raise ConfigError(f"{path}: streams {word!r}", f"its tracks: {there}")
            chosen = set().union(*found.values())
        modes = {"audio": self.audio, "subtitle": self.subtitles}
        return frozenset(stream.index for stream in tracks if stream.index in chosen and modes[stream.type] != "none")


def parse_track_options(audio: str, subtitles: str, streams: str | None) -> TrackOptions:
    """Read what is asked of tracks, as far as that is possible without a video.

    Args:
        audio: One of ``AUDIO_WORDS``.
        subtitles: One of ``SUBTITLE_WORDS``.
        streams: Words and commas: numbers of streams, ``audio``, ``subtitles``, ``audio:0`` for the first track of
            sound, ``audio:eng``, ``eng``; None for all tracks.

    Returns:
        The options.

    Raises:
        ConfigError: If a word is none of these, or asks for tracks of a kind of which none are wanted.
    """
    if audio not in AUDIO_WORDS:
        raise ConfigError(f"audio {audio!r}", ", ".join(AUDIO_WORDS))
    if subtitles not in SUBTITLE_WORDS:
        raise ConfigError(f"subtitles {subtitles!r}", ", ".join(SUBTITLE_WORDS))
    words = tuple(word.strip() for word in streams.split(",")) if streams is not None else ()
    for word in words:
        if not _WORD.fullmatch(word):
            raise ConfigError(f"streams {streams!r}", _WRITTEN)
        for kind, mode in (("audio", audio), ("subtitles", subtitles)):
            if mode == "none" and word.partition(":")[0] == kind:
                raise ConfigError(f"{kind} 'none' and streams {streams!r}", "one of them")
    return TrackOptions(audio, subtitles, words)


def _find(tracks: list[Any], word: str) -> set[int]:
    """Return the indices of the tracks that a word means."""
    kind, _, which = word.partition(":")
    if kind.isdecimal():
        return {stream.index for stream in tracks if stream.index == int(kind)}
    if kind not in _KINDS.values():
        return {stream.index for stream in tracks if _language(stream) == kind.lower()}
    of_kind = [stream for stream in tracks if _KINDS[stream.type] == kind]
    if which.isdecimal():
        return {stream.index for stream in of_kind[int(which) : int(which) + 1]}
    return {stream.index for stream in of_kind if not which or _language(stream) == which.lower()}


def _language(stream: Any) -> str:
    return str(stream.metadata.get("language", "")).lower()


def _describe(tracks: list[Any]) -> Iterator[str]:
    for stream in tracks:
        language = _language(stream)
        yield f"{stream.index} ({_KINDS[stream.type]}{f', {language}' if language else ''})"


def _list_codecs() -> str:
    return ", ".join(name for name, codec in SOUND_CODECS.items() if codec.encoder in av.codecs_available)


def _join(suffixes: tuple[str, ...]) -> str:
    return " or ".join(suffixes)
