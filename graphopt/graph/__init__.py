"""The graph: loading at the door, saving, shapes, small edits, provenance. The IR is `onnx_ir`, used openly.

The names below are what passes and targets use; `views` (networkx) and `cost` are imported by module name.
"""

from graphopt.graph.bind import bind_values
from graphopt.graph.check import check
from graphopt.graph.dims import declare_dims, declared_dims
from graphopt.graph.edit import add_constant, constant_array, fresh_name, remove_unused, subgraphs, used_once
from graphopt.graph.load import from_proto, load, normalise, sketch
from graphopt.graph.opset import raise_opset
from graphopt.graph.provenance import derive, sources
from graphopt.graph.save import save, to_bytes
from graphopt.graph.shapes import bind_dims, infer_shapes

__all__ = [
    "add_constant",
    "bind_dims",
    "bind_values",
    "check",
    "constant_array",
    "declare_dims",
    "declared_dims",
    "derive",
    "fresh_name",
    "from_proto",
    "infer_shapes",
    "load",
    "normalise",
    "raise_opset",
    "remove_unused",
    "save",
    "sketch",
    "sources",
    "subgraphs",
    "to_bytes",
    "used_once",
]
