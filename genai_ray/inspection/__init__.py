"""From a name to a model: its file, and its spec, which is read from a file beside it or found out by trial runs.

``find`` knows names and paths; ``trial`` runs a model without a spec; ``records`` runs trials in a process of its own
and remembers their results.
"""

from genai_ray.inspection.find import canonical_id, find_model, hash_model, read_tensors
from genai_ray.inspection.records import Hold, code_versions, forget_failures, weight_files
from genai_ray.inspection.trial import inspect_model

__all__ = [
    "Hold",
    "canonical_id",
    "code_versions",
    "find_model",
    "forget_failures",
    "hash_model",
    "inspect_model",
    "read_tensors",
    "weight_files",
]
