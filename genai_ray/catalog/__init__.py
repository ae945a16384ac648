"""The known models, and options from YAML files. Only this package imports yaml.

``spec``: what is known of one model. ``catalog``: from an id to its spec and its checked file. ``pull``: downloads.
``profiles``: options of jobs and of endpoints. ``files``: reads and writes the YAML.
"""

from genai_ray.catalog.catalog import ModelCatalog, hash_file, models_folder
from genai_ray.catalog.files import SERVING_SUFFIX, dump_spec, load_spec, read_content
from genai_ray.catalog.profiles import JobProfile, ModelServing, ServeProfile, WebOptions, load_model_serving
from genai_ray.catalog.pull import pull_model
from genai_ray.catalog.spec import ModelSpec, ParamSpec, ParamValue, TensorSpec, TileSpec

__all__ = [
    "SERVING_SUFFIX",
    "JobProfile",
    "ModelCatalog",
    "ModelServing",
    "ModelSpec",
    "ParamSpec",
    "ParamValue",
    "ServeProfile",
    "TensorSpec",
    "TileSpec",
    "WebOptions",
    "dump_spec",
    "hash_file",
    "load_model_serving",
    "load_spec",
    "models_folder",
    "pull_model",
    "read_content",
]
