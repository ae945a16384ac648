"""The models on offer: names, versions and options; the only way from a name in a request to a file."""

from __future__ import annotations

import difflib
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

from genai_ray.catalog import SERVING_SUFFIX, ModelCatalog, ModelServing, load_model_serving
from genai_ray.cluster import SessionRequest, key_of
from genai_ray.errors import ConfigError, ModelLoadError, ModelNotFoundError, VideoError
from genai_ray.files import find_facts, is_remote, list_files, to_place
from genai_ray.inspection import canonical_id

__all__ = ["Repository", "ServedModel"]

_MODEL = ".onnx"
_NOTES = {
    "stats": "its metadata is at /v2/models/stats/versions/VERSION: /v2/models/stats has the statistics of all models"
}
_VERSION = re.compile(r"[0-9]{1,18}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model on offer."""

    name: str
    """Its name in requests."""
    versions: Mapping[str, str]
    """What the cache is asked for, by version: an id of the catalog, a path or a URI; versions are decimal numbers."""
    serving: ModelServing = field(default_factory=ModelServing)
    """How it is served."""
    stamps: Mapping[str, str] = field(default_factory=dict)
    """States of files by version, as they were listed; only for URIs."""
    fault: tuple[str, str, str] | None = None
    """Fields of the error if its file of options is wrong, so that it cannot be served; else None."""
    note: str = ""
    """What the owner of the file should know."""

    @property
    def latest(self) -> str:
        """The highest version: that of a request that names none."""
        return max(self.versions, key=int)

    def source(self, version: str = "") -> str:
        """Return what the cache is asked for.

        Args:
            version: A version; empty for the highest.

        Returns:
            Id, path or URI.

        Raises:
            ModelNotFoundError: If there is no such version.
        """
        found = self.versions.get(version or self.latest)
        if found is None:
            raise ModelNotFoundError(
                f"version {version[:40]!r} of model {self.name!r}", ", ".join(sorted(self.versions, key=int))
            )
        return found

    def stamp(self, version: str = "") -> str:
        """Return a text that changes whenever the file of a version does.

        Args:
            version: A version; empty for the highest.

        Returns:
            The text. For a local file and the spec beside it, this asks the disk, and may block.

        Raises:
            ModelNotFoundError: If there is no such version.
        """
        source = self.source(version)
        if not self.is_local(version):
            return self.stamps.get(version or self.latest, "")
        return f"{_state_of(source)} {_state_of(source[: -len(_MODEL)] + '.yaml')}"

    def is_local(self, version: str = "") -> bool:
        """Tell whether a version is a local file, neither a model of the catalog nor a URI.

        Args:
            version: A version; empty for the highest.

        Returns:
            Whether it is.

        Raises:
            ModelNotFoundError: If there is no such version.
        """
        source = self.source(version)
        return source.lower().endswith(_MODEL) and not is_remote(source)

    def request(self, version: str = "") -> SessionRequest:
        """Return which session computes a version.

        Args:
            version: A version; empty for the highest.

        Returns:
            The request to the cache.

        Raises:
            ModelNotFoundError: If there is no such version.
        """
        serving = self.serving
        return SessionRequest(
            self.source(version),
            serving.backend,
            serving.precision,
            device=serving.device,
            floor_bytes=serving.memory_bytes,
            max_frame=serving.max_frame,
            device_kinds=serving.device_kinds,
            warmup_shapes=tuple(tuple(sorted(shapes.items())) for shapes in serving.warmup_shapes),
            max_replicas=serving.max_replicas,
        )

    def key(self, version: str = "") -> tuple[str, ...]:
        """Return the key of the sessions that compute a version: model, backend, precision and device.

        Args:
            version: A version; empty for the highest.

        Returns:
            As ``SessionStatus.key``.

        Raises:
            ModelNotFoundError: If there is no such version.
        """
        return tuple(key_of(self.request(version)))[:4]


class Repository:
    """The models of the catalog and of a folder.

    A folder holds ``NAME.onnx``, perhaps with its saved spec ``NAME.yaml``, or ``NAME/1/model.onnx`` with one folder a
    version; ``NAME.serve.yaml`` has options of serving. A model of the folder replaces one of the catalog of its name.

    Args:
        folder: The folder, as path or URI; None for the catalog alone. Models of a URI are fetched when a request needs
            them, files of options at once.
        ids: Ids or aliases of the catalog to offer; None for all whose file is on this machine.
        serving: Options of models without a file of options.

    Raises:
        ConfigError: If the folder does not exist or cannot be listed.
        ModelNotFoundError: If an id is unknown.
    """

    def __init__(
        self, folder: str | Path | None, ids: tuple[str, ...] | None = None, serving: ModelServing | None = None
    ) -> None:
        self._folder = None if folder is None else to_place(folder)
        self._serving = serving or ModelServing()
        self._lock = threading.Lock()
        self._catalog = {model_id: ServedModel(model_id, {"1": model_id}, self._serving) for model_id in _offered(ids)}
        self._models: dict[str, ServedModel] = {}
        self.rescan()

    def rescan(self) -> None:
        """Look at the folder again.

        Raises:
            ConfigError: If it does not exist or cannot be listed; the models on offer stay the same.
        """
        models = dict(self._catalog)
        if self._folder is not None:
            models |= {model.name: model for model in _scan(self._folder, self._serving)}
        with self._lock:
            self._models = models

    def models(self) -> list[ServedModel]:
        """Return all models on offer, sorted by name.

        Returns:
            The models.
        """
        with self._lock:
            return sorted(self._models.values(), key=lambda model: model.name)

    def get(self, name: str) -> ServedModel:
        """Return a model by its name.

        Args:
            name: Name of the model, or an alias of the catalog.

        Returns:
            The model.

        Raises:
            ModelNotFoundError: If there is none; its text has similar names.
        """
        with self._lock:
            found = self._models.get(name) or self._models.get(_canonical(name))
            if found is None:
                near = difflib.get_close_matches(name[:100], self._models, n=3, cutoff=0.5)
                hint = f"Did you mean {' or '.join(near)}?" if near else "POST /v2/repository/index lists them."
                raise ModelNotFoundError(
                    f"no model {name[:100]!r}", f"{len(self._models)} models that this server has", hint
                )
            return found


def _offered(ids: tuple[str, ...] | None) -> list[str]:
    catalog = ModelCatalog.default()
    if ids is not None:
        return [catalog.resolve(name) for name in ids]
    there = []
    for model_id in catalog.ids():
        try:
            catalog.path(model_id)
        except (ModelNotFoundError, ModelLoadError) as exc:
            _log.info("%s is not offered: %s", model_id, exc)
        else:
            there.append(model_id)
    return there


def _canonical(name: str) -> str:
    try:
        return ModelCatalog.default().resolve(name)
    except ModelNotFoundError:
        return ""


def _state_of(path: str) -> str:
    try:
        return str(find_facts(path))
    except VideoError as exc:  # the error of whatever reads the file will say so
        return str(exc)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _scan(folder: str, serving: ModelServing) -> list[ServedModel]:
    """Return the models of a folder; from a URI only the files of options are fetched."""
    found: dict[str, dict[str, str]] = {}
    options: dict[str, str] = {}
    alone: dict[str, str] = {}
    try:
        for relative, place in list_files(folder, ("*", "*/*/*")):
            name, *version = (unquote(relative) if place.startswith(("http://", "https://")) else relative).split("/")
            if not _is_text(relative):
                _log.warning("%r is left out: its name is not UTF-8", place)
                continue
            if len(version) == 2 and version[1] == f"model{_MODEL}" and _VERSION.fullmatch(version[0]):
                found.setdefault(name, {})[str(int(version[0]))] = place
            elif not version and name.endswith(SERVING_SUFFIX):
                options[name.removesuffix(SERVING_SUFFIX)] = place
            elif not version and name.lower().endswith(_MODEL):
                alone[name[: -len(_MODEL)]] = place
        doubled = {name for name in alone if "1" in found.get(name, {})}
        for name in alone.keys() - doubled:
            found.setdefault(name, {})["1"] = alone[name]
        stamps = _stamps_of([place for versions in found.values() for place in versions.values() if is_remote(place)])
    except VideoError as exc:
        raise ConfigError(
            f"model repository {folder}: {exc.got}",
            "a folder that every node can read, or the URI of one that can be listed",
        ) from exc
    notes = _NOTES | {
        name: f"{name}{_MODEL} is left out, since {name}/1/model{_MODEL} is version 1 as well" for name in doubled
    }
    models = [_build(name, versions, options.get(name), serving, stamps) for name, versions in sorted(found.items())]
    return [replace(model, note=notes.get(model.name, "")) for model in models]


def _stamps_of(places: Sequence[str]) -> dict[str, str]:
    """Return the states of files of a store, or the error text of a file without one; raise if no file has one."""
    stamps: dict[str, str] = {}
    refusals: list[VideoError] = []
    for place in places:
        try:
            stamps[place] = str(find_facts(place))
        except VideoError as exc:
            stamps[place] = str(exc)
            refusals.append(exc)
    if places and len(refusals) == len(places):
        raise refusals[0]
    return stamps


def _build(
    name: str, versions: dict[str, str], options: str | None, serving: ModelServing, stamps: Mapping[str, str]
) -> ServedModel:
    """Return one model; a wrong file of options is a fault of this model alone."""
    sources = {version: canonical_id(place) for version, place in versions.items()}
    fault = None
    if options is not None:
        try:
            serving = load_model_serving(options)
        except ConfigError as exc:
            _log.warning("model %s is not served: %s", name, exc)
            fault = (exc.got, exc.allowed, exc.do)
    states = {version: stamps.get(place, "") for version, place in versions.items()}
    return ServedModel(name, sources, serving, states, fault)
