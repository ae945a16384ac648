"""YAML in and out: one place that reads a file of options and says which file and which field is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from genai_ray.catalog.spec import ModelSpec
from genai_ray.errors import ConfigError

__all__ = ["configs_folder", "dump_spec", "load_spec", "read_yaml"]

Model = TypeVar("Model", bound=BaseModel)

_ALWAYS = ("model_id", "task", "file", "inputs", "outputs", "scale", "size_multiple", "receptive_field_px")


def configs_folder() -> Path:
    """Return the folder of packaged YAML files: within the package in a wheel, beside it in a checkout.

    Returns:
        The folder that holds ``models`` and ``engine``.
    """
    package = Path(__file__).resolve().parents[1]
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


def read_yaml(path: Path, model: type[Model]) -> Model:
    """Read a YAML file into a checked object.

    Args:
        path: The file.
        model: What it must hold.

    Returns:
        The object.

    Raises:
        ConfigError: If the file cannot be read, is not YAML, or a field is missing, unknown or of a wrong type.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return model.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path} cannot be read as YAML: {exc}") from exc
    except ValidationError as exc:
        fields = "; ".join(f"{'.'.join(map(str, error['loc'])) or 'the file'}: {error['msg']}" for error in exc.errors())
        raise ConfigError(f"{path}: {fields}", f"the fields of {model.__name__}") from exc


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
