"""An ONNX file given by path: its saved spec, or none yet; and the catalog for everything else."""

from __future__ import annotations

from pathlib import Path

from genai_ray.catalog import ModelCatalog, ModelSpec, load_spec
from genai_ray.errors import ModelNotFoundError

__all__ = ["find_model"]


def find_model(model: str | Path) -> tuple[ModelSpec, Path]:
    """Find a model by id, alias or path.

    Args:
        model: Catalog id or alias; or the path of an .onnx file.

    Returns:
        Its spec, and the path of its checked weights.

    Raises:
        ModelNotFoundError: If neither id nor file is there.
        ModelLoadError: If the file does not have the hash of its spec.
        ConfigError: If a spec saved beside a file is wrong.
    """
    path = Path(model)
    if path.suffix.lower() != ".onnx":
        catalog = ModelCatalog.default()
        return catalog.get(str(model)), catalog.path(str(model))
    if not path.is_file():
        raise ModelNotFoundError(f"no file {path}", "the path of an .onnx file, or a model id")
    path = path.resolve()
    saved = path.with_suffix(".yaml")
    spec = load_spec(saved) if saved.is_file() else ModelSpec(model_id=str(path), file=str(path))
    return spec.model_copy(update={"model_id": str(path), "file": str(path)}), path
