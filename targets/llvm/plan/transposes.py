"""Every transpose that is left after planning onto its kernel: the model's own, and those at the layout's borders."""

from __future__ import annotations

import onnx_ir as ir
from tvm import tirx

from graphopt.graph import derive
from graphopt.targets.llvm.cpu import Cpu
from graphopt.targets.llvm.kernels import transpose
from graphopt.targets.llvm.kernels.emit import Isa
from graphopt.targets.llvm.kernels.transpose import Transpose
from graphopt.targets.llvm.plan.kernels import ELEMENT, Kernels, call
from graphopt.targets.llvm.plan.layout import replace


def turn(model: ir.Model, cpu: Cpu, parallel: bool) -> dict[str, tirx.PrimFunc]:
    """Replace the transposes of float32 values in the main graph of `model`; returns the kernels by symbol."""
    graph = model.graph
    kernels = Kernels(graph, Isa(cpu.lanes, cpu.registers), parallel)
    for node in list(graph):
        found = _problem(node)
        x = node.inputs[0] if node.inputs else None
        if found is None or x is None or x.shape is None:
            continue
        shared = kernels.threads(found.dims, ELEMENT)
        symbol = kernels.symbol(found, "transpose", lambda s, p=found, t=shared: transpose.make(p, kernels.isa, t, s))
        called = call(symbol, [x], [x.shape[axis] for axis in found.perm], node)
        derive(called, (node,))
        graph.insert_before(node, called)
        replace(node.outputs[0], called.outputs[0])
        graph.remove(node, safe=True)
    return kernels.functions


def _problem(node: ir.Node) -> Transpose | None:
    if node.op_type != "Transpose" or node.domain != "" or node.inputs[0] is None:
        return None
    x = node.inputs[0]
    if x.dtype != ir.DataType.FLOAT or x.shape is None or node.outputs[0].dtype != x.dtype:
        return None
    rank = len(x.shape)
    perm = tuple(node.attributes.get_ints("perm", list(reversed(range(rank)))))
    dims = tuple(d if isinstance(d, int) else f"d{i}" for i, d in enumerate(x.shape))
    found = Transpose(dims, perm)
    return found if len(perm) == rank and 0 not in dims and found.covered() else None
