"""Shape and type inference that raises, and binding of symbolic dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.graph.skeleton import skeleton_proto


def infer_shapes(model: ir.Model) -> None:
    """Give every value of `model` its inferred type and shape, in place.

    Uses onnx's C++ inference in strict mode with data propagation, over every (sub)graph. Values that it
    can't tell (custom domains) keep what they had.

    Raises:
        ModelError: an inferred type or shape contradicts the operators or what the model states.
    """
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(
            skeleton_proto(model), check_type=True, strict_mode=True, data_prop=True
        )
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError, TypeError) as error:
        raise ModelError(f"the graph's shapes or types contradict each other: {_first_lines(error)}") from error
    _merge(model, ir.from_proto(inferred))


def bind_dims(model: ir.Model, dims: Mapping[str, int]) -> None:
    """Give symbolic input dimensions a value (``{"N": 1}``) and infer all shapes anew, in place.

    Raises:
        ModelError: a name that no input has, a size below one, or shapes that contradict it.
    """
    known = {d.value for v in model.graph.inputs for d in v.shape or () if isinstance(d, ir.SymbolicDim)}
    for name, size in dims.items():
        if name not in known:
            have = ", ".join(sorted(str(k) for k in known)) or "none"
            raise ModelError(f"no input has a dimension named {name!r}; the symbolic dimensions are: {have}.")
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


def forget_shapes(model: ir.Model) -> None:
    """Drop the shapes of all computed values (not of inputs and initializers); types stay."""
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                value.shape = None


def _merge(model: ir.Model, inferred: ir.Model) -> None:
    for graph, twin in zip(model.graphs(), inferred.graphs(), strict=True):
        known = {value.name: value for value in _values(twin)}
        for value in _values(graph):
            other = known.get(value.name)
            if other is None:
                continue
            if other.shape is not None:
                value.shape = other.shape
            if other.type is not None:
                value.type = other.type


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        yield from node.outputs


def _first_lines(error: Exception, lines: int = 3) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:lines] if line.strip())
