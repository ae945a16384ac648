"""YAML in and out: one place that reads a file of options and says which file and which field is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from genai_ray.catalog.spec import ModelSpec
from genai_ray.errors import ConfigError, VideoError
from genai_ray.files import open_to_read

__all__ = ["SERVING_SUFFIX", "configs_folder", "dump_spec", "load_spec", "read_content", "read_profile", "read_yaml"]

SERVING_SUFFIX = ".serve.yaml"
"""End of a file's name that says how a model is served; such files are no specs."""

MAX_BYTES = 1024**2
"""Most bytes of a file of options."""

MAX_VALUES = 10_000
"""Most values in it, each as often as it is repeated: by aliases some KB would name a list a million times, which is checked each time."""

Model = TypeVar("Model", bound=BaseModel)

_ALWAYS = ("model_id", "task", "file", "inputs", "outputs", "scale", "size_multiple", "receptive_field_px")


class _Loader(yaml.SafeLoader):
    """Reads plain values, and counts them before they are made."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_values = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Read one value with all that it holds; an alias counts as what it stands for."""
        is_alias, before = self.check_event(yaml.AliasEvent), self._num_values
        node: Any = super().compose_node(parent, index)
        if is_alias and id(node) not in self._sizes:
            raise yaml.YAMLError("an alias stands within what it stands for")
        self._num_values += self._sizes[id(node)] if is_alias else 1
        if self._num_values > MAX_VALUES:
            raise yaml.YAMLError(f"it has more than {MAX_VALUES} values, with those that aliases repeat")
        self._sizes.setdefault(id(node), self._num_values - before)
        return node


def configs_folder() -> Path:
    """Return the folder of packaged YAML files: within the package in a wheel, beside it in a checkout.

    Returns:
        The folder that holds ``models`` and ``engine``.
    """
    package = Path(__file__).resolve().parents[1]
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


def read_profile(kind: str, name: str, model: type[Model]) -> Model:
    """Read a set of options by its name.

    Args:
        kind: Folder of packaged ones in ``configs``: ``engine`` or ``serve``.
        name: Name of a packaged profile, or the path of a YAML file.
        model: What it must hold.

    Returns:
        The object.

    Raises:
        ConfigError: If there is no such profile, or a field of it is wrong.
    """
    folder = configs_folder() / kind
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise ConfigError(f"no profile {name!r} of configs/{kind}", f"{names}, or the path of a YAML file")
    return read_yaml(path, model)


def read_yaml(path: Path | str, model: type[Model]) -> Model:
    """Read a YAML file into a checked object.

    Args:
        path: The file; a URI does as well.
        model: What it must hold.

    Returns:
        The object.

    Raises:
        ConfigError: If the file cannot be read, is not YAML, or a field is missing, unknown or of a wrong type.
    """
    try:
        return model.model_validate(read_content(path))
    except ValidationError as exc:
        fields = "; ".join(
            f"{'.'.join(map(str, error['loc'])) or 'the file'}: {error['msg']}" for error in exc.errors()
        )
        raise ConfigError(f"{path}: {fields}", f"the fields of {model.__name__}") from exc


def read_content(path: Path | str) -> Any:
    """Read a YAML file, whatever it holds.

    Args:
        path: The file; a URI does as well.

    Returns:
        Its content.

    Raises:
        ConfigError: If the file cannot be read, is larger than any file of options, has more values, or is not YAML.
    """
    try:
        with open_to_read(str(path)) as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ConfigError(f"{path} has more than {MAX_BYTES} bytes", "a file of options")
        loader = _Loader(text.decode())
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError as exc:
        raise ConfigError(f"{path} cannot be read as YAML: it is nested too deep") from exc
    except (
        VideoError,
        yaml.YAMLError,
        ValueError,
        OverflowError,
    ) as exc:  # a value that is no date, or no text, is a ValueError
        if isinstance(exc, ConfigError):
            raise
        raise ConfigError(f"{path} cannot be read as YAML: {exc}") from exc


def load_spec(path: Path) -> ModelSpec:
    """Read the spec of one model.

    Args:
        path: A YAML file with the catalog's keys.

    Returns:
        The spec.

    Raises:
        ConfigError: If the file or a field of it is wrong.
    """
    return read_yaml(path, ModelSpec)


def dump_spec(spec: ModelSpec) -> str:
    """Write a spec as YAML, ready to save; what inspection is not sure of comes first, as comments.

    Args:
        spec: Any spec.

    Returns:
        YAML text that ``load_spec`` reads back, without fields that have their default.
    """
    full: dict[str, Any] = spec.model_dump(mode="json", exclude={"unsure"})
    lean = spec.model_dump(mode="json", exclude={"unsure"}, exclude_defaults=True)
    chosen = {key: lean.get(key, value) for key, value in full.items() if key in _ALWAYS or key in lean}
    comments = "".join(f"# not sure: {line}\n" for line in spec.unsure)
    return comments + str(yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True, width=120))
