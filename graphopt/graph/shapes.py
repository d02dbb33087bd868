"""Shape and type inference that raises, and binding of symbolic dimensions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.graph import onnx_library
from graphopt.graph.skeleton import skeleton_proto

if TYPE_CHECKING:
    import onnx


def infer_shapes(
    model: ir.Model, skeleton: onnx.ModelProto | None = None, call: Callable[[bytes, bytes], bytes] | None = None
) -> None:
    """Give every value of `model` its inferred type and shape, in place.

    Uses onnx's C++ inference in strict mode with data propagation, over every (sub)graph. Values that it
    can't tell (custom domains) keep what they had. `skeleton` and `call`: as for `graphopt.graph.check`.

    Raises:
        ModelError: an inferred type or shape contradicts the operators or what the model states.
    """
    import onnx

    proto = skeleton_proto(model) if skeleton is None else skeleton
    try:
        answer = (call or onnx_library.call)(onnx_library.INFER, proto.SerializeToString())
    except ValueError as error:
        raise ModelError(f"the graph's shapes or types contradict each other: {_first_lines(error)}") from error
    inferred = onnx.ModelProto.FromString(answer)
    _merge(model.graph, inferred.graph, functools.cache(_read))


def bind_dims(model: ir.Model, dims: Mapping[str, int]) -> None:
    """Give symbolic input dimensions a value (``{"N": 1}``) and infer all shapes anew, in place.

    Raises:
        ModelError: a name that no input has, a size below one, or shapes that contradict it.
    """
    check_known(model, dims)
    for name, size in dims.items():
        if size < 1:
            raise ModelError(f"dimension {name!r} can't be {size}: sizes start at 1.")
    if not dims:
        return
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(
                [dims.get(str(d.value), d) if isinstance(d, ir.SymbolicDim) else d for d in value.shape]
            )
    forget_shapes(model)
    infer_shapes(model)


def open_dims(model: ir.Model) -> set[str]:
    """The names of the symbolic dimensions of the inputs."""
    return {str(d.value) for v in model.graph.inputs for d in v.shape or () if isinstance(d, ir.SymbolicDim)}


def check_known(model: ir.Model, names: Iterable[str]) -> None:
    """See that each of `names` is a symbolic dimension of an input; ModelError names the first that is none."""
    known = open_dims(model)
    for name in names:
        if name not in known:
            have = ", ".join(sorted(known)) or "none"
            raise ModelError(f"no input has a dimension named {name!r}; the symbolic dimensions are: {have}.")


def forget_shapes(model: ir.Model) -> None:
    """Drop the shapes of all computed values (not of inputs and initializers); types stay."""
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                value.shape = None


def keep_dims(model: ir.Model, declared: Mapping[str, ir.Shape]) -> None:
    """Say of the outputs of `model` what was `declared` of them, where less is known now; in place.

    What a rewrite makes yield an output may not know that a dimension is one of an input's.
    """
    names = open_dims(model)
    for value in model.graph.outputs:
        old, new = declared.get(str(value.name)), value.shape
        if old is not None and new is None:
            value.shape = old
        elif old is not None and new is not None and len(old) == len(new):
            value.shape = ir.Shape(
                [o if _is_of(o, names) > _is_of(n, names) else n for o, n in zip(old, new, strict=True)]
            )


def _is_of(dim: int | ir.SymbolicDim, names: Container[str]) -> bool:
    """Is it a number, or one of `names`?"""
    return isinstance(dim, int) or str(dim.value) in names


_Read = Callable[[bytes], "tuple[ir.TypeProtocol | None, ir.Shape | None]"]


def _merge(graph: ir.Graph, inferred: onnx.GraphProto, read: _Read) -> None:
    """Types and shapes of `inferred`, the proto of the same graph, to the values of `graph` and its subgraphs."""
    known = {info.name: info.type for info in (*inferred.value_info, *inferred.output)}
    for node, twin in zip(graph, inferred.node, strict=True):
        for value in node.outputs:
            proto = known.get(value.name or "")
            if proto is not None:
                type_, shape = read(proto.SerializeToString(deterministic=True))
                value.shape = value.shape if shape is None else shape
                value.type = value.type if type_ is None else type_
        for own, other in _subgraphs(node, twin):
            _merge(own, other, read)


def _subgraphs(node: ir.Node, twin: onnx.NodeProto) -> Iterator[tuple[ir.Graph, onnx.GraphProto]]:
    for name, attribute in node.attributes.items():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            proto = next(a for a in twin.attribute if a.name == name)
            if attribute.type == ir.AttributeType.GRAPH:
                yield attribute.as_graph(), proto.g
            else:
                yield from zip(attribute.as_graphs(), proto.graphs, strict=True)


def _read(type_proto: bytes) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
    """What a serialised TypeProto says; many values say the same, and shapes read so can't be changed in place."""
    import onnx

    proto = onnx.TypeProto.FromString(type_proto)
    return ir.serde.deserialize_type_proto_for_type(proto), ir.serde.deserialize_type_proto_for_shape(proto)


def _first_lines(error: Exception, lines: int = 3) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:lines] if line.strip())
