"""What models there are: their specs, their files, and the profiles of engine and endpoint. The only importer of yaml and pydantic."""

from genai_ray.catalog.catalog import ModelCatalog, hash_file, models_folder
from genai_ray.catalog.files import SERVING_SUFFIX, dump_spec, load_spec, read_content
from genai_ray.catalog.profile import EngineProfile, load_profile
from genai_ray.catalog.pull import pull_model
from genai_ray.catalog.serving import ModelServing, ServeProfile, load_model_serving, load_serve_profile
from genai_ray.catalog.spec import ModelSpec, ParamSpec, TensorSpec
from genai_ray.catalog.web_options import WebOptions

__all__ = [
    "SERVING_SUFFIX",
    "EngineProfile",
    "ModelCatalog",
    "ModelServing",
    "ModelSpec",
    "ParamSpec",
    "ServeProfile",
    "TensorSpec",
    "WebOptions",
    "dump_spec",
    "hash_file",
    "load_model_serving",
    "load_profile",
    "load_serve_profile",
    "load_spec",
    "models_folder",
    "pull_model",
    "read_content",
]
