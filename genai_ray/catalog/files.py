"""Reads YAML files into checked objects, with errors that name the file and the field; writes specs as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from genai_ray.catalog.spec import ModelSpec
from genai_ray.errors import ConfigError, VideoError
from genai_ray.files import open_to_read

__all__ = [
    "SERVING_SUFFIX",
    "configs_folder",
    "describe_fields",
    "dump_spec",
    "load_spec",
    "read_content",
    "read_profile",
    "read_yaml",
]

SERVING_SUFFIX = ".serve.yaml"
"""Suffix of files that say how a model is served; they are not specs."""

MAX_BYTES = 1024**2
"""Most bytes of a YAML file."""

MAX_VALUES = 10_000
"""Most values in it; an alias counts as everything that it repeats: with aliases, a few KB can repeat a list a
million times, and each copy is checked."""

Model = TypeVar("Model", bound=BaseModel)

_ALWAYS = ("model_id", "task", "file", "inputs", "outputs", "scale", "size_multiple", "receptive_field_px")


class _Loader(yaml.SafeLoader):
    """Reads plain values, and counts them before it builds them."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_values = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Read one value and everything in it; an alias counts as what it repeats."""
        is_alias = self.check_event(yaml.AliasEvent)
        before = self._num_values
        node: Any = super().compose_node(parent, index)
        if is_alias and id(node) not in self._sizes:
            raise yaml.YAMLError("an alias repeats a value that contains it")
        self._num_values += self._sizes[id(node)] if is_alias else 1
        if self._num_values > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES} values, counting those that aliases repeat")
        self._sizes.setdefault(id(node), self._num_values - before)
        return node


def configs_folder() -> Path:
    """Return the folder of packaged YAML files: in the package of a wheel, beside the package in a checkout.

    Returns:
        The folder with ``models``, ``engine`` and ``serve``.
    """
    package = Path(__file__).resolve().parents[1]
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


def read_profile(kind: str, name: str, model: type[Model]) -> Model:
    """Read a profile by its name.

    Args:
        kind: Folder of the packaged profiles in ``configs``: ``engine`` or ``serve``.
        name: Name of a packaged profile, or the path of a YAML file.
        model: The profile's class.

    Returns:
        The profile.

    Raises:
        ConfigError: If there is no such profile, or one of its fields is wrong.
    """
    folder = configs_folder() / kind
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise ConfigError(f"no profile {name!r} in configs/{kind}", f"{names}, or the path of a YAML file")
    return read_yaml(path, model)


def read_yaml(path: Path | str, model: type[Model]) -> Model:
    """Read a YAML file into a checked object.

    Args:
        path: Path or URI of the file.
        model: The object's class.

    Returns:
        The object.

    Raises:
        ConfigError: If the file cannot be read or is not YAML, or a field is missing, unknown or of a wrong type.
    """
    try:
        return model.model_validate(read_content(path))
    except ValidationError as exc:
        raise ConfigError(f"{path}: {describe_fields(exc)}", f"the fields of {model.__name__}") from exc


def describe_fields(error: ValidationError) -> str:
    """Say which fields are wrong, and why.

    Args:
        error: What pydantic raised.

    Returns:
        ``FIELD: REASON`` for each field, joined by ``;``.
    """
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or 'the values together'}: {each['msg']}" for each in error.errors()
    )


def read_content(path: Path | str) -> Any:
    """Read any YAML file.

    Args:
        path: Path or URI of the file.

    Returns:
        Its content.

    Raises:
        ConfigError: If the file cannot be read, is not YAML, or has too many bytes or values.
    """
    try:
        with open_to_read(str(path)) as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ConfigError(f"{path} has more than {MAX_BYTES} bytes", f"{MAX_BYTES} bytes")
        loader = _Loader(text.decode())
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError as exc:
        raise ConfigError(f"{path} cannot be read as YAML: its values are nested too deep") from exc
    except (VideoError, yaml.YAMLError, ValueError, OverflowError) as exc:  # ValueError: a wrong date, or no UTF-8
        if isinstance(exc, ConfigError):
            raise
        raise ConfigError(f"{path} cannot be read as YAML: {exc}") from exc


def load_spec(path: Path) -> ModelSpec:
    """Read the spec of one model.

    Args:
        path: A YAML file with the fields of ``ModelSpec``.

    Returns:
        The spec.

    Raises:
        ConfigError: If the file or one of its fields is wrong.
    """
    return read_yaml(path, ModelSpec)


def dump_spec(spec: ModelSpec) -> str:
    """Write a spec as YAML; comments at its top say what inspection is not sure of.

    Args:
        spec: Any spec.

    Returns:
        Text that ``load_spec`` reads back; most fields with default values are left out.
    """
    full: dict[str, Any] = spec.model_dump(mode="json", exclude={"unsure"})
    lean = spec.model_dump(mode="json", exclude={"unsure"}, exclude_defaults=True)
    chosen = {key: lean.get(key, value) for key, value in full.items() if key in _ALWAYS or key in lean}
    comments = "".join(f"# not sure: {line}\n" for line in spec.unsure)
    return comments + str(yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True, width=120))
