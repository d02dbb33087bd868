"""What the functions of a compiled module compute in terms of the ONNX model: its nodes, and their arithmetic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir
import tvm
from tvm import relax

from graphopt.graph import cost, provenance

MACS = "graphopt.macs"
"""Metadata of an `EXTERNAL` node: the multiply-accumulates of the nodes it stands for."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Nodes of the source model that something computes, and its multiply-accumulates for each element of its output.

    Per element, so that it holds for every size of a symbolic batch.
    """

    nodes: tuple[str, ...]
    macs_per_element: float
    calls: tuple[tuple[str, ...], ...] = ()
    """The nodes of each call, for a function that is called more than once, in the order of the calls."""


def origin(node: ir.Node) -> Origin:
    """The origin of one node of a canonical model."""
    macs = int(node.metadata_props.get(MACS, 0)) or cost.macs(node)
    shape = node.outputs[0].shape
    elements = 0 if shape is None else math.prod(dim if isinstance(dim, int) else 1 for dim in shape)
    return Origin(tuple(provenance.sources(node) or [str(node.name)]), macs / elements if elements else 0.0)


def does_arithmetic_of(node: ir.Node, replaced: Iterable[ir.Node]) -> None:
    """Say that `node`, put in by a target, does the multiply-accumulates of the nodes `replaced`."""
    node.metadata_props[MACS] = str(sum(map(cost.macs, replaced)))


PRODUCTS = frozenset({"relax.matmul", *(f"relax.nn.conv{k}d" for k in (1, 2, 3)), "relax.nn.conv2d_transpose"})


def at_products(module: tvm.IRModule, sources: Mapping[str, Origin]) -> dict[str, Origin]:
    """`sources` with arithmetic where it is done: of a node that became a product and an addition, at the product.

    The importer names what a node became last; a product with no name gets the origin of the first reader that has one.
    """
    found = dict(sources)
    for _, function in module.functions_items():
        if not isinstance(function, relax.Function) or function.attrs.get("Primitive"):
            continue
        bindings = {binding.var: binding for binding in _bindings(function)}
        readers: dict[Any, Any] = {}
        for variable, binding in reversed(bindings.items()):
            readers |= {argument: variable for argument in getattr(binding.value, "args", ()) if argument in bindings}
        for variable, binding in bindings.items():
            name, reader = str(variable.name), readers.get(variable)
            if name in found or getattr(getattr(binding.value, "op", None), "name", "") not in PRODUCTS:
                continue
            while reader is not None and str(reader.name) not in sources:
                reader = readers.get(reader)
            if reader is not None and found[str(reader.name)].macs_per_element:
                found[name] = found[str(reader.name)]
                found[str(reader.name)] = dataclasses.replace(found[name], macs_per_element=0.0)
    return found


def origins_of_functions(module: tvm.IRModule, sources: Mapping[str, Origin]) -> dict[str, Origin]:
    """What each function that `module` calls computes, by the `sources` of the lowering.

    `FuseOps` must be the last step taken: a group's bindings still carry the names of the operators it computes, and so
    does the call of a lone one. Calls of one function do the same for different nodes: all nodes are listed, the
    arithmetic is that of one call; `calls` tells them apart. What a group ends in has lost its name, unless it is an
    output of the model.
    """
    functions = {v.name_hint: f for v, f in module.functions_items() if isinstance(f, relax.Function)}
    groups = {name: f for name, f in functions.items() if f.attrs.get("Primitive")}
    found: dict[str, list[Origin]] = {}
    for name, function in functions.items():
        if name in groups:
            continue
        for binding in _bindings(function):
            callee = _callee(binding.value)
            if callee is not None:
                inner = [*(_bindings(groups[callee])[:-1] if callee in groups else []), binding]
                found.setdefault(callee, []).append(
                    _together(sources[b.var.name] for b in inner if b.var.name in sources)
                )
    return {
        name: Origin(
            _together(calls).nodes,
            max(call.macs_per_element for call in calls),
            tuple(call.nodes for call in calls) if len(calls) > 1 else (),
        )
        for name, calls in found.items()
    }


def _together(origins: Iterable[Origin]) -> Origin:
    parts = list(origins)
    nodes = dict.fromkeys(node for part in parts for node in part.nodes)
    return Origin(tuple(nodes), sum(part.macs_per_element for part in parts))


def _callee(value: Any) -> str | None:
    """The name of what a Relax expression calls: a function of the module, directly or by call_tir, or a packed one."""
    if not isinstance(value, relax.Call):
        return None
    for called in (value.op, *value.args[:1]):
        if isinstance(called, tvm.ir.GlobalVar):
            return called.name_hint
        if isinstance(called, relax.ExternFunc):
            return str(called.global_symbol)
    return None


def _bindings(function: Any) -> list[Any]:
    return [binding for block in function.body.blocks for binding in block.bindings]
