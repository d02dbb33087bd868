"""C identifiers for every name: generators of C and CUDA source put the names of inputs into their text."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir


def to_identifiers(model: ir.Model) -> dict[str, str]:
    """Rename every value, node and symbolic input dimension to a C identifier that is unique in the model.

    Returns the identifier of each value -> its original name.
    """
    taken: set[str] = set()
    original: dict[str, str] = {}
    for value in _values(model):
        name = value.name or ""
        identifier = unique(name, taken)
        original[identifier] = name
        value.name = identifier
        if value.const_value is not None:
            value.const_value.name = identifier
    _rename_dimensions(model.graph.inputs)
    nodes: set[str] = set()
    for node in model.graph.all_nodes():
        node.name = unique(node.name or node.op_type, nodes)
    return original


def unique(name: str, taken: set[str]) -> str:
    """The identifier nearest to `name` that is not in `taken`; it is added to `taken`."""
    identifier = re.sub(r"\W", "_", name, flags=re.ASCII)
    if not identifier or identifier[0].isdigit():
        identifier = f"v_{identifier}"
    candidate, count = identifier, 0
    while candidate in taken:
        count += 1
        candidate = f"{identifier}_{count}"
    taken.add(candidate)
    return candidate


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Every named value once: inputs, initializers, then the outputs of all nodes, subgraphs included."""
    graphs = [model.graph, *model.graph.subgraphs()]
    seen: set[int] = set()
    for graph in graphs:
        for value in [*graph.inputs, *graph.initializers.values()]:
            if id(value) not in seen:
                seen.add(id(value))
                yield value
    for node in model.graph.all_nodes():
        yield from (output for output in node.outputs if output.name)


def _rename_dimensions(inputs: list[ir.Value] | ir.Graph | object) -> None:
    """`batch-size` would be read as a difference, and two unnamed dimensions as the same one."""
    renamed: dict[str, str] = {}
    taken: set[str] = set()
    for value in inputs:  # pyright: ignore[reportGeneralTypeIssues]
        if value.shape is None:
            continue
        dims: list[int | str] = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                dims.append(dim)
            elif dim.value is None:
                dims.append(unique(f"{value.name}_{axis}", taken))
            else:
                if dim.value not in renamed:
                    renamed[dim.value] = unique(dim.value, taken)
                dims.append(renamed[dim.value])
        value.shape = ir.Shape(dims)
