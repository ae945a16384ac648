"""Reads and rewrites ONNX graphs without running them. Only this package imports ``onnx``.

``header`` reads a model without its weights; ``model`` reads a whole model, sorts its nodes and predicts its memory;
``field`` computes receptive fields; ``fuse`` builds a model that takes and returns frames; ``apart`` puts weights into
a file of their own.
"""

from genai_ray.graph.apart import WeightsPlan, copy_weights, plan_weights, refer_to_weights
from genai_ray.graph.field import ReceptiveField, receptive_field
from genai_ray.graph.fuse import frame_ends, fuse_frames
from genai_ray.graph.header import WHOLE_FILE_BYTES, external_files, read_header
from genai_ray.graph.model import (
    Graph,
    GraphTensor,
    activation_bytes,
    broken_rule,
    element_name,
    free_batch,
    graph_inputs,
    graph_tensors,
    has_outside_weights,
    is_quantized,
    read_model,
    read_weights,
    sort_nodes,
    weight_bytes,
)

__all__ = [
    "WHOLE_FILE_BYTES",
    "Graph",
    "GraphTensor",
    "ReceptiveField",
    "WeightsPlan",
    "activation_bytes",
    "broken_rule",
    "copy_weights",
    "element_name",
    "external_files",
    "frame_ends",
    "free_batch",
    "fuse_frames",
    "graph_inputs",
    "graph_tensors",
    "has_outside_weights",
    "is_quantized",
    "plan_weights",
    "read_header",
    "read_model",
    "read_weights",
    "receptive_field",
    "refer_to_weights",
    "sort_nodes",
    "weight_bytes",
]
