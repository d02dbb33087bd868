"""Convolutions onto kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from tvm import tirx

from graphopt.graph import constant_array
from graphopt.packed import Steps, reshape, run, transpose
from graphopt.targets.llvm.kernels import beside, conv, depthwise, gemm, line, winograd, winograd_line
from graphopt.targets.llvm.kernels import sparse as sparse_kernel
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import Isa
from graphopt.targets.llvm.kernels.epilogue import Epilogue
from graphopt.targets.llvm.plan import choice, sparse
from graphopt.targets.llvm.plan.choice import Candidate
from graphopt.targets.llvm.plan.epilogues import Tail
from graphopt.targets.llvm.plan.kernels import Kernels, call
from graphopt.targets.llvm.plan.layout import Dim, Twins, image, is_turned
from graphopt.targets.llvm.plan.sources import sources
from graphopt.targets.llvm.plan.weights import bytes_of


def window(node: ir.Node, kernel: Sequence[int]) -> Conv | None:
    """The convolution or pooling window of `node` on twins, first input to first output; None if it has none.

    `kernel` is the kernel's size along the axes of the ONNX value, one or two.
    """
    value, result = node.inputs[0], node.outputs[0]
    x, y = image(value), image(result)
    if value is None or x is None or y is None or value.shape is None or len(kernel) != len(value.shape) - 2:
        return None
    line, turned = len(kernel) == 1, is_turned(value)

    def pair(sizes: Sequence[int], default: int) -> tuple[int, int]:
        a, b = (default, sizes[0]) if line else sizes
        return (b, a) if turned else (a, b)

    ones = [1] * len(kernel)
    size = pair(kernel, 1)
    strides = pair(node.attributes.get_ints("strides", ones), 1)
    dilations = pair(node.attributes.get_ints("dilations", ones), 1)
    given = node.attributes.get_ints("pads", [0] * 2 * len(kernel))
    low, high = pair(given[: len(kernel)], 0), pair(given[len(kernel) :], 0)
    pads = _pads(node, (*low, *high), (x.h, x.w), size, strides, dilations)
    found = Conv(x.batch, x.h, x.w, x.c, y.c, size, strides, dilations, pads, node.attributes.get_int("group", 1))
    out = (found.oh, found.ow)
    as_ever = turned == is_turned(result) or y.h * y.w == 1
    return found if (out == (y.h, y.w) and as_ever) or (not turned and is_turned(result) and out == (y.w, 1)) else None


def _pads(
    node: ir.Node,
    given: tuple[int, int, int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
) -> tuple[int, int, int, int]:
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return given
    if auto == "VALID":
        return 0, 0, 0, 0
    low, high = [0, 0], [0, 0]
    for axis in (0, 1):
        out = -(-size[axis] // strides[axis])
        total = max(0, (out - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1 - size[axis])
        low[axis], high[axis] = total // 2, total - total // 2
        if auto == "SAME_LOWER":
            low[axis], high[axis] = high[axis], low[axis]
    return low[0], low[1], high[0], high[1]


def problem(node: ir.Node) -> Conv | None:
    """The convolution that `node` is, if kernels cover it: 1-d or 2-d, float32, constant weights and bias."""
    if node.op_type != "Conv" or node.domain != "" or len(node.inputs) < 2:
        return None
    weight = constant_array(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or weight.ndim not in (3, 4) or (bias is not None and constant_array(bias) is None):
        return None
    return window(node, weight.shape[2:])


def _oriented(node: ir.Node) -> np.ndarray:
    """The weight of `node` as [CO, CI/group, KH, KW] on twins."""
    w, x = constant_array(node.inputs[1]), node.inputs[0]
    assert w is not None
    assert x is not None
    return oriented(w, x)


def oriented(w: np.ndarray, x: ir.Value) -> np.ndarray:
    """The weight of a convolution of `x` as [CO, CI/group, KH, KW] on twins."""
    return run(w, _orientation(w, x))


def _orientation(w: np.ndarray, x: ir.Value) -> Steps:
    if w.ndim == 3:
        return (reshape(*w.shape[:2], 1, w.shape[2]),)
    return (transpose(0, 1, 3, 2),) if is_turned(x) else ()


BASES = {"gemm": "conv1x1", "direct": "conv", "winograd-line": "winograd_line"}


def emit(tail: Tail, c: Conv, kernels: Kernels, twins: Twins) -> None:
    """Put the kernel call in front of the tail's last node, and make its result the twin of the tail's value."""
    node = tail.nodes[0]
    x = node.inputs[0]
    assert x is not None
    parallel = kernels.threads((c.n, c.oh, c.ow), c.co * c.ci // c.group * math.prod(c.kernel))
    where, read = sources(x, twins) if choice.is_product(c) else ((), [twins.last(x)])
    dense, layer = choice.convolution(c, kernels.isa), sparse.Layer(c, _oriented(node))
    candidates = sparse.beside(dense, layer, kernels.isa, parallel)
    problem = choice.Problem(
        candidates,
        lambda how, symbol: _make(how, c, where, kernels.isa, tail.epilogue, parallel, symbol),
        lambda how: sparse.arguments(how, layer),
    )
    key = (c, tail.epilogue, parallel, *([where] if where else []), *sparse.patterns(candidates))
    how, symbol = kernels.choose(key, problem, BASES)
    sparse.note(node, how, dense, layer, kernels)
    shape = image(node.outputs[0])
    assert shape is not None
    dims: list[Dim] = [shape.n, c.oh, c.ow, c.co]
    inputs = [*(read if how.pattern is None else [twins.last(x)]), *_weights(node, how, c, kernels, twins)]
    if tail.residual is not None:
        inputs.append(twins.shaped(twins.last(tail.residual), dims, tail.residual))
    called = call(symbol, inputs, dims, tail.last)
    twins.insert(called)
    twins.set(tail.value, twins.shaped(called.outputs[0], shape.last, tail.value))


def _make(
    how: Candidate,
    c: Conv,
    where: tuple[gemm.Source, ...],
    isa: Isa,
    epilogue: Epilogue,
    parallel: bool,
    symbol: str,
) -> tirx.PrimFunc:
    match how.algorithm:
        case "depthwise":
            return depthwise.make(c, isa, epilogue, parallel, symbol)
        case "gemm":
            g = gemm.Gemm((c.n, c.h, c.w), c.ci, c.co, where)
            return gemm.make(g, isa, epilogue, parallel, symbol, how.tile)
        case "line":
            return line.make(c, isa, epilogue, parallel, symbol, how.tile)
        case "winograd-line":
            return winograd_line.make(c, isa, epilogue, parallel, symbol, how.tile)
        case "sparse":
            assert how.pattern is not None
            return sparse_kernel.make(how.pattern, isa, epilogue, parallel, symbol)
        case "direct":
            return conv.direct(c, isa, epilogue, parallel, symbol, how.tile)
        case _:
            return winograd.make(c, isa, epilogue, parallel, symbol, choice.SCHEMES[how.algorithm], how.tile)


def _weights(node: ir.Node, how: Candidate, c: Conv, kernels: Kernels, twins: Twins) -> list[ir.Value]:
    """Weights and bias as the kernel reads them."""
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    x = node.inputs[0]
    assert weight is not None
    w, b = _oriented(node), None if bias is None else constant_array(bias)
    lanes, group = kernels.isa.lanes, c.group
    if how.pattern is not None:
        return sparse.constants(how.pattern, weight, w, kernels, bias, np.zeros(c.co, np.float32) if b is None else b)
    p = beside.columns(c, lanes) if how.algorithm in ("direct", "line") else 1

    def packing() -> Steps:
        match how.algorithm:
            case "depthwise":
                return depthwise.packing(w.shape)
            case "gemm":
                return reshape(c.co, c.ci), transpose(1, 0), *gemm.packing(c.ci, c.co, lanes)
            case "line":
                return line.packing(w.shape, lanes)
            case "winograd-line":
                return winograd_line.packing(w.shape, lanes)
            case "direct":
                return conv.packing(w.shape, lanes, group)
            case _:
                return winograd.packing(w.shape, lanes, choice.SCHEMES[how.algorithm])

    def widened() -> np.ndarray:
        wide = beside.widen(w, p, c.strides[1])
        return line.pack(wide, lanes) if how.algorithm == "line" else conv.pack(wide, lanes, group)

    steps = () if p > 1 else packing()
    if how.algorithm == "depthwise":
        lanes, group = 1, 1
    moved = c.strides[1] if p > 1 else 0
    packed = _from_bytes(node, weight, c, kernels, twins) if how.algorithm == "depthwise" else None
    if packed is None:
        key, hint = (how.algorithm, weight, lanes, group, p, moved), f"{weight.name}_packed"
        if p > 1:
            packed = kernels.constant(key, hint, widened)
        else:
            array = constant_array(weight)
            assert array is not None
            assert x is not None
            packed = kernels.packed(key, hint, weight, (*_orientation(array, x), *steps))
    key, repeated = ("bias", bias, c.co, lanes, group, p), None if b is None else np.tile(b, p)
    shift = kernels.constant(key, f"{weight.name}_bias", lambda: conv.pack_bias(repeated, c.co * p, lanes, group))
    return [packed, shift]


def _from_bytes(node: ir.Node, weight: ir.Value, c: Conv, kernels: Kernels, twins: Twins) -> ir.Value | None:
    """Weights of a depthwise convolution that were 8 bits and stay so in memory: made float32 at each run.

    A kernel's row of images reads each of them many times, so that takes a percent of the layer's time or less.
    """
    kept, x = bytes_of(weight), node.inputs[0]
    if kept is None or x is None or kept.axis != 0:
        return None
    packed = kernels.constant(
        ("bytes", weight), f"{weight.name}_bytes", lambda: depthwise.pack(oriented(kept.values, x))
    )
    each = kernels.constant(
        ("scale", weight),
        f"{weight.name}_scale",
        lambda: np.ascontiguousarray(np.broadcast_to(kept.scale, (c.co,))),
    )
    return twins.new("DequantizeLinear", [packed, each], [*c.kernel, c.co], {"axis": 2}, weight)
