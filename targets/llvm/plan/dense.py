"""Dense layers onto kernels: Gemm, and MatMul with a constant right side."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tvm import tirx

from graphopt.graph import constant_array
from graphopt.packed import transpose
from graphopt.targets.llvm.kernels import conv, gemm
from graphopt.targets.llvm.kernels import sparse as sparse_kernel
from graphopt.targets.llvm.kernels.gemm import Gemm
from graphopt.targets.llvm.plan import choice, sparse
from graphopt.targets.llvm.plan.epilogues import Tail
from graphopt.targets.llvm.plan.kernels import Kernels, call
from graphopt.targets.llvm.plan.layout import Twins


def problem(node: ir.Node) -> Gemm | None:
    """The product that `node` is, if the kernel covers it."""
    x, y = (node.inputs[0] if node.inputs else None), node.outputs[0]
    if node.domain != "" or node.op_type not in ("Gemm", "MatMul") or x is None or x.shape is None or y.shape is None:
        return None
    w = constant_array(node.inputs[1])
    if x.dtype != ir.DataType.FLOAT or w is None or w.ndim != 2 or len(x.shape) < 2:
        return None
    if node.op_type == "Gemm":
        a, b = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
        c = node.inputs[2] if len(node.inputs) > 2 else None
        bias = None if c is None else constant_array(c)
        if node.attributes.get_int("transA", 0) or a != 1.0 or b != 1.0:
            return None
        if c is not None and (bias is None or bias.size not in (1, y.shape[-1]) or bias.ndim > 2):
            return None
    k = x.shape[-1]
    rows = tuple(d if isinstance(d, int) else f"d{i}" for i, d in enumerate(list(x.shape)[:-1]))
    return Gemm(rows, k, int(np.prod(w.shape)) // k) if isinstance(k, int) and k > 0 else None


def emit(tail: Tail, g: Gemm, kernels: Kernels, twins: Twins) -> ir.Node:
    """Put the kernel call in front of the tail's last node; returns it."""
    node = tail.nodes[0]
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None
    assert weight is not None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    lanes = kernels.isa.lanes

    transposed = node.attributes.get_int("transB", 0)
    array = constant_array(weight)
    assert array is not None
    array, turned = (array.T, (transpose(1, 0),)) if transposed else (array, ())

    def shift() -> np.ndarray:
        b = np.zeros(g.co, np.float32) if tail.bias is None else tail.bias
        own = None if bias is None else constant_array(bias)
        return np.broadcast_to(b if own is None else b + own.reshape(-1), (g.co,)).astype(np.float32)

    added = None if tail.bias is None else node
    parallel = kernels.threads(g.rows, g.k * g.co)
    dense, layer = choice.product(g, kernels.isa), sparse.of_product(g, array)
    candidates = dense if layer is None else sparse.beside(dense, layer, kernels.isa, parallel)

    def make(how: choice.Candidate, symbol: str) -> tirx.PrimFunc:
        if how.pattern is not None:
            return sparse_kernel.make(how.pattern, kernels.isa, tail.epilogue, parallel, symbol, g.rows)
        return gemm.make(g, kernels.isa, tail.epilogue, parallel, symbol, how.tile)

    problem = choice.Problem(candidates, make, lambda how: {} if layer is None else sparse.arguments(how, layer))
    key = (g, tail.epilogue, parallel, *sparse.patterns(candidates))
    how, symbol = kernels.choose(key, problem, {"gemm": "dense"})
    if layer is not None:
        sparse.note(node, how, dense, layer, kernels)
    if how.pattern is not None and layer is not None:
        weights = sparse.constants(how.pattern, weight, layer.weight, kernels, (bias, added, transposed), shift())
    else:
        weights = [
            kernels.packed(
                ("dense", weight, lanes, transposed),
                f"{weight.name}_packed",
                weight,
                (*turned, *gemm.packing(array.shape[0], array.shape[1], lanes)),
            ),
            kernels.constant(
                ("dense bias", bias, added, g.co, lanes),
                f"{weight.name}_bias",
                lambda: conv.pack_bias(shift(), g.co, lanes),
            ),
        ]
    inputs = [twins.first(x), *weights]
    if tail.residual is not None:
        inputs.append(twins.first(tail.residual))
    shape = tail.value.shape
    assert shape is not None
    called = call(symbol, inputs, list(shape), tail.last)
    twins.insert(called)
    return called
