"""``ModelCatalog``: from ids and aliases to specs, and from specs to checked files."""

from __future__ import annotations

import difflib
import functools
import hashlib
import logging
import os
import sys
from pathlib import Path

from genai_ray.catalog.files import SERVING_SUFFIX, configs_folder, load_spec
from genai_ray.catalog.spec import ModelSpec
from genai_ray.display import to_html
from genai_ray.errors import ConfigError, ModelLoadError, ModelNotFoundError
from genai_ray.files import home_folder
from genai_ray.types import ModelPreset, ModelTask

__all__ = ["ModelCatalog", "models_folder"]

_log = logging.getLogger(__name__)


def models_folder() -> Path:
    """Return the user's model folder, where ``models pull`` puts files.

    Returns:
        ``GENAI_RAY_MODELS``, else a folder in the platform's data folder; it may not exist yet.
    """
    if chosen := os.environ.get("GENAI_RAY_MODELS"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home_folder() / "AppData" / "Local"), "genai_ray", "models")
    if sys.platform == "darwin":
        return home_folder() / "Library" / "Application Support" / "genai_ray" / "models"
    return Path(os.environ.get("XDG_DATA_HOME", home_folder() / ".local" / "share"), "genai_ray", "models")


class ModelCatalog:
    """The models that have an id.

    A YAML file with an error is left out and logged; a request for its model gets the error.

    Args:
        folders: Folders of YAML files; a later folder may replace a model of an earlier one by the same id.

    Raises:
        ConfigError: If two models have the same id or alias.
    """

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        self._left_out: dict[str, ConfigError] = {}
        self._specs: dict[str, ModelSpec] = {}
        for folder in folders:
            for path in sorted(folder.glob("*.yaml")):
                if path.name.endswith(SERVING_SUFFIX):
                    continue
                try:
                    spec = load_spec(path)
                except ConfigError as exc:
                    _log.warning("skipped the model spec %s: %s", path.name, exc)
                    self._left_out[path.stem.lower()] = exc
                    continue
                if spec.model_id in self._specs:
                    _log.info("model %s: %s replaces the packaged spec", spec.model_id, path)
                self._specs[spec.model_id] = spec
        self._words: dict[str, str] = {}
        for spec in self._specs.values():
            for word in (spec.model_id, *spec.aliases):
                if self._words.setdefault(word.lower(), spec.model_id) != spec.model_id:
                    raise ConfigError(f"models {self._words[word.lower()]} and {spec.model_id} both claim {word!r}")

    @staticmethod
    def default() -> ModelCatalog:
        """Return the packaged models and those of the user's model folder; the folders are read once.

        Returns:
            The catalog.

        Raises:
            ConfigError: If two models have the same id or alias.
        """
        return _read(models_folder())

    @staticmethod
    def forget() -> None:
        """Make the next ``default`` read the folders again: specs may have been changed."""
        _read.cache_clear()

    def __repr__(self) -> str:
        return f"ModelCatalog({len(self._specs)} models)"

    def _repr_html_(self) -> str:
        rows = [(spec.model_id, spec.task.value, f"x{spec.scale}", spec.licence) for spec in self._specs.values()]
        return to_html(repr(self), sorted(rows), ("model", "task", "scale", "licence"))

    def ids(self) -> list[str]:
        """List the models.

        Returns:
            Canonical ids, sorted.
        """
        return sorted(self._specs)

    def left_out(self) -> dict[str, ConfigError]:
        """Return why YAML files were left out.

        Returns:
            The errors by the files' names without their suffix.
        """
        return dict(self._left_out)

    def resolve(self, name: str) -> str:
        """Turn an id or alias into the canonical id.

        Args:
            name: Id or alias, in any case.

        Returns:
            The canonical id.

        Raises:
            ModelNotFoundError: If no model has this name; the error names similar ones.
        """
        found = self._words.get(name.lower())
        if found is None:
            if name.lower() in self._left_out:
                raise ModelNotFoundError(f"no model {name!r}: its spec is wrong: {self._left_out[name.lower()]}")
            near = difflib.get_close_matches(name.lower(), self._words, n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(near)}? " if near else ""
            places = " and ".join(str(folder) for folder in self.folders)
            raise ModelNotFoundError(
                f"no model {name!r}",
                f"{', '.join(self.ids())}, or the path of an .onnx file",
                f"{hint}Specs are read from {places}.",
            )
        return found

    def get(self, name: str) -> ModelSpec:
        """Return the spec of a model.

        Args:
            name: Id or alias.

        Returns:
            Its spec.

        Raises:
            ModelNotFoundError: If no model has this name.
        """
        return self._specs[self.resolve(name)]

    def preset(self, task: ModelTask, preset: ModelPreset) -> str:
        """Return the model that a preset means.

        Args:
            task: What it is for.
            preset: ``fast``, ``balanced`` or ``best``.

        Returns:
            Its id. If a model of the user's folder has the same preset, the first id in the alphabet is taken.

        Raises:
            ModelNotFoundError: If no model of this task has the preset.
        """
        for model_id in self.ids():
            spec = self._specs[model_id]
            if spec.task is task and preset in spec.presets:
                return model_id
        raise ModelNotFoundError(f"no model is the preset {preset!r} for {task}", do="Pass --model.")

    def path(self, name: str) -> Path:
        """Return the file of a model, after a check of its hash.

        Args:
            name: Id or alias.

        Returns:
            Path of its .onnx file.

        Raises:
            ModelNotFoundError: If no model has this name, or its file is not on this machine.
            ModelLoadError: If the file does not have the sha256 of the spec.
        """
        spec = self.get(name)
        packaged = Path(__file__).resolve().parents[1] / "assets"
        for folder in (packaged, models_folder()):
            path = folder / spec.file
            if path.is_file():
                found = hash_file(path)
                if spec.sha256 is not None and found != spec.sha256:
                    raise ModelLoadError(
                        f"{path} has sha256 {found}",
                        spec.sha256,
                        f"Remove it and run `genai-ray models pull {spec.model_id}`.",
                    )
                return path
        do = f"Run `genai-ray models pull {spec.model_id}`." if spec.url else f"Put {spec.file} into {models_folder()}."
        raise ModelNotFoundError(
            f"{spec.file} of model {spec.model_id} is not in {packaged} or {models_folder()}", do=do
        )


@functools.cache
def _read(user_folder: Path) -> ModelCatalog:
    return ModelCatalog(configs_folder() / "models", user_folder)


def hash_file(path: Path) -> str:
    """Hash a file; the result is cached until the file is replaced or written to.

    Args:
        path: The file.

    Returns:
        sha256, hexadecimal.

    Raises:
        OSError: If it cannot be read.
    """
    facts = path.stat()
    # The kernel sets the time of the last change; a file that is copied with its time of modification has another one.
    return _hash(path, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


@functools.lru_cache(maxsize=256)
def _hash(path: Path, *_identity: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
