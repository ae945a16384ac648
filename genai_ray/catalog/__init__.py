"""What models there are: their specs, their files, and the engine's profiles. The only importer of yaml and pydantic."""

from genai_ray.catalog.catalog import ModelCatalog, models_folder
from genai_ray.catalog.files import dump_spec, load_spec
from genai_ray.catalog.profile import EngineProfile, load_profile
from genai_ray.catalog.pull import pull_model
from genai_ray.catalog.spec import ModelSpec, ParamSpec, TensorSpec

__all__ = [
    "EngineProfile",
    "ModelCatalog",
    "ModelSpec",
    "ParamSpec",
    "TensorSpec",
    "dump_spec",
    "load_profile",
    "load_spec",
    "models_folder",
    "pull_model",
]
