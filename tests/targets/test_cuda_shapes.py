"""Kernels at generated shapes, odd ones, fixed and open: the CUDA C, emulated with its checks, beside onnxruntime.

Two nets have between them every operator of the reference models. Each branch's sizes are drawn; a net is one
compilation, so an example is a dozen kernels.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt import graph, oracle
from graphopt.testing import from_text
from graphopt.testing.cuda_emulation import emulate

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")

OPERATORS = """
Add AveragePool BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv ConvTranspose Div Dropout
Equal Erf Exp Expand Flatten Gather Gemm GlobalAveragePool GlobalMaxPool HardSigmoid Identity LRN LayerNormalization Log
MatMul Max MaxPool Mul Neg Pad Pow Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize Shape Sigmoid
Slice Softmax Sqrt Squeeze Sub Sum Tanh Transpose Unsqueeze Where"""
"""Of all reference models."""


@dataclasses.dataclass
class Net:
    """A graph's text with `{t}` for its numbers' type, shapes of inputs and weights, constants, ranks of outputs."""

    inputs: dict[str, tuple[str, tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    weights: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    integers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    lines: list[str] = dataclasses.field(default_factory=list)
    outputs: dict[str, int] = dataclasses.field(default_factory=dict)

    def model(self, dtype: type) -> ir.Model:
        kind, rng = {np.float16: "float16", np.float32: "float"}[dtype], np.random.default_rng(0)
        arrays = {name: rng.normal(size=s) / np.prod(s[1:]) ** 0.5 for name, s in self.weights.items()}
        arrays = {name: array.astype(np.float16).astype(dtype) for name, array in arrays.items()}
        given = [f"{kind}[{dims}] {name}" for name, (dims, _) in self.inputs.items()]
        for name, array in {**arrays, **self.integers}.items():
            of = {np.dtype(dtype): kind, np.dtype(np.int64): "int64", np.dtype(np.float32): "float"}[array.dtype]
            given.append(f"{of}[{', '.join(map(str, array.shape))}] {name}")
        ranks = {name: ", ".join(f"{name}{axis}" for axis in range(rank)) for name, rank in self.outputs.items()}
        outputs = ", ".join(f"{kind}[{dims}] {name}" for name, dims in ranks.items())
        body = "\n".join(self.lines).replace("{t}", "10" if kind == "float16" else "1")
        text = f'<ir_version: 10, opset_import: ["": 18]> net ({", ".join(given)}) => ({outputs}) {{ {body} }}'
        return from_text(text, **arrays, **self.integers)

    def feeds(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(1)
        return {name: rng.normal(size=shape).astype(np.float16) for name, (_, shape) in self.inputs.items()}


def _operators(net: Net) -> set[str]:
    return set(re.findall(r"= ([A-Z]\w+)[<(]", "\n".join(net.lines)))


def _integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _size(first: int, least: int, most: int) -> st.SearchStrategy[int]:
    """A size; the `first` one is what hypothesis takes for the simplest, and begins with."""
    return st.sampled_from([first, *(size for size in range(least, most + 1) if size != first)])


@st.composite
def images(draw) -> Net:
    """Convolutions of all kinds, pools, resizing, padding and normalisation of pictures."""
    net = Net()
    batch, height, width = draw(_size(2, 1, 3)), draw(_size(11, 7, 14)), draw(_size(9, 7, 14))
    opened = draw(st.sampled_from([True, False]))
    c, m = draw(_size(5, 1, 20)), draw(_size(17, 1, 20))
    k, p, s = draw(st.sampled_from([3, 1, 2, 5])), draw(_size(1, 0, 1)), draw(_size(2, 1, 2))
    net.inputs["x"] = (f"N, {c}, H, W" if opened else f"N, {c}, {height}, {width}", (batch, c, height, width))
    net.weights = {"w": (m, c, k, k), "b": (m,), "d": (c, 1, 3, 3), "u": (c, 6, 2, 2)}
    net.weights |= dict.fromkeys(("scale", "shift", "mean"), (m,))
    net.integers = {"var": np.abs(np.random.default_rng(2).normal(size=m)).astype(np.float32) + 0.5}
    net.integers |= {"pads": _integers(0, 0, 0, 1, 0, 0, 2, 0), "scales": np.array([1, 1, 2, 2], np.float32)}
    mode = draw(st.sampled_from(["nearest", "linear"]))
    net.lines = [
        f"c1 = Conv<pads = [{p}, 1, {p}, 0], strides = [{s}, 1]>(x, w, b)",
        "variance = Cast<to = {t}>(var)",
        "c2 = BatchNormalization(c1, scale, shift, mean, variance)",
        "conv = Relu(c2)",
        f"depthwise = Conv<group = {c}, pads = [1, 1, 1, 1], strides = [1, {s}]>(x, d)",
        "p1 = Pad(x, pads)",
        f"most = MaxPool<kernel_shape = [3, 2], strides = [{s}, 2], pads = [1, 0, 1, 0]>(p1)",
        f"average = AveragePool<kernel_shape = [2, 3], strides = [1, {s}], pads = [0, 1, 0, 1]>(x)",
        "g1 = GlobalAveragePool(conv)",
        "g2 = GlobalMaxPool(conv)",
        "whole = Concat<axis = 1>(g1, g2)",
        "n1 = LRN<size = 3, alpha = 0.5>(x)",
        "gate = HardSigmoid(n1)",
        "up = ConvTranspose<strides = [2, 2]>(x, u)",
        f'large = Resize<mode = "{mode}">(x, , scales)',
    ]
    net.outputs = dict.fromkeys(("conv", "depthwise", "most", "average", "whole", "gate", "up", "large"), 4)
    return net


@st.composite
def sequences(draw) -> Net:
    """Attention, dense layers, normalisation, reductions and element by element over words."""
    net = Net()
    batch, words = draw(_size(2, 1, 3)), draw(_size(19, 1, 40))
    heads, size = draw(_size(3, 1, 3)), draw(_size(7, 3, 20))
    wide, inner = heads * size, draw(_size(33, 1, 70))
    opened = draw(st.sampled_from([True, False]))
    net.inputs["x"] = (f"N, S, {wide}" if opened else f"{batch}, {words}, {wide}", (batch, words, wide))
    net.weights = dict.fromkeys(("wq", "wk", "wv"), (wide, wide))
    net.weights |= {
        "w1": (wide, inner),
        "b1": (inner,),
        "w2": (5, wide),
        "b2": (5,),
        "scale": (wide,),
        "shift": (wide,),
    }
    net.integers = {"axes": _integers(-1), "middle": _integers(1), "first": _integers(0), "second": _integers(1)}
    net.integers |= {
        "heads": _integers(0, 0, heads, size),
        "joined": _integers(0, 0, wide),
        "picked": _integers(0, wide - 1),
    }
    net.lines = [
        *(f"{o}1 = MatMul(x, w{o})\n{o}2 = Reshape({o}1, heads)" for o in "qkv"),
        "q = Transpose<perm = [0, 2, 1, 3]>(q2)",
        "k = Transpose<perm = [0, 2, 3, 1]>(k2)",
        "v = Transpose<perm = [0, 2, 1, 3]>(v2)",
        "a1 = MatMul(q, k)",
        f"root = Constant<value_float = {size**0.5}>()",
        "root1 = Cast<to = {t}>(root)",
        "a2 = Div(a1, root1)",
        "a3 = Softmax(a2)",
        "a4 = Dropout(a3)",
        "a5 = MatMul(a4, v)",
        "a6 = Transpose<perm = [0, 2, 1, 3]>(a5)",
        "attention = Reshape(a6, joined)",
        "n1 = Add(x, attention)",
        "normal = LayerNormalization<axis = -1>(n1, scale, shift)",
        "d1 = MatMul(normal, w1)",
        "d2 = Add(d1, b1)",
        "d3 = Erf(d2)",
        "d4 = Sigmoid(d2)",
        "dense = Mul(d3, d4)",
        "slice = Slice(x, first, second, axes)",
        "g1 = ReduceMean<keepdims = 1>(x, middle)",
        "g2 = Squeeze(g1, middle)",
        "g3 = Gemm<transB = 1>(g2, w2, b2)",
        "g4 = Flatten(g3)",
        "flat = Identity(g4)",
        "r1 = ReduceMean<keepdims = 1>(x, axes)",
        "r2 = Sub(x, r1)",
        "two = Constant<value_float = 2.0>()",
        "two1 = Cast<to = {t}>(two)",
        "r3 = Pow(r2, two1)",
        "r4 = ReduceSum<keepdims = 1>(r3, axes)",
        "one = Constant<value_float = 1.0>()",
        "one1 = Cast<to = {t}>(one)",
        "r5 = Sum(r4, one1)",
        "r6 = Sqrt(r5)",
        "r7 = Reciprocal(r6)",
        "deviation = Mul(r2, r7)",
        "m1 = ReduceMax<keepdims = 1>(x, axes)",
        "m2 = Sub(x, m1)",
        "m3 = Exp(m2)",
        "m4 = ReduceSum<keepdims = 0>(m3, axes)",
        "logarithm = Log(m4)",
        "e1 = ReduceMin<keepdims = 1>(x, axes)",
        "e2 = Neg(e1)",
        "e3 = Max(x, e2)",
        "low1 = Constant<value_float = -1.5>()",
        "low = Cast<to = {t}>(low1)",
        "high1 = Constant<value_float = 1.25>()",
        "high = Cast<to = {t}>(high1)",
        "e4 = Clip(e3, low, high)",
        "e5 = Tanh(e4)",
        "e6 = Equal(x, e1)",
        "shape = Shape(x)",
        "zeros = ConstantOfShape(shape)",
        "zeros1 = Cast<to = {t}>(zeros)",
        "e7 = Expand(one1, shape)",
        "e8 = Where(e6, e7, e5)",
        "element = Add(e8, zeros1)",
        "t1 = Gather<axis = 2>(x, picked)",
        "taken = Unsqueeze(t1, middle)",
    ]
    net.outputs = dict.fromkeys(("attention", "normal", "dense", "deviation", "element", "slice"), 3)
    net.outputs |= {"flat": 2, "logarithm": 2, "taken": 4}
    return net


def _check(net: Net, dtype: type) -> None:
    feeds = net.feeds()
    expected = oracle.run(net.model(np.float32), {name: value.astype(np.float32) for name, value in feeds.items()})
    found = emulate(net.model(dtype), {name: value.astype(dtype) for name, value in feeds.items()})
    for name, wanted in expected.items():
        got = found[name].astype(np.float32)
        assert got.shape == wanted.shape, name
        error = np.abs(got - wanted).max() / np.abs(wanted).max()
        assert error < (1e-3 if dtype is np.float32 else 1e-2), (name, error, net.inputs, net.weights)


few = settings(
    max_examples=1, derandomize=True, deadline=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
)
many = settings(few, max_examples=15, derandomize=False)


@given(images(), sequences())
@settings(max_examples=1, deadline=None)
def test_the_nets_have_every_operator_of_the_reference_models(pictures, words):
    assert _operators(pictures) | _operators(words) == set(OPERATORS.split())


@few
@given(images())
def test_kernels_for_images(net):
    _check(net, np.float16)


@few
@given(sequences())
def test_kernels_for_sequences(net):
    _check(net, np.float16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@many
@given(st.one_of(images(), sequences()))
def test_kernels_at_many_shapes(dtype, net):
    _check(net, dtype)


@pytest.mark.slow
def test_the_operators_are_those_of_the_reference_models():
    from graphopt import models

    loaded = [graph.load(models.get(name).path()) for name in models.names()]
    assert {node.op_type for model in loaded for node in model.graph} == set(OPERATORS.split())
