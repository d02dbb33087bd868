"""1-D convolutions of 16-bit floats, channels last, on tensor cores: emulated on the CPU, against onnxruntime."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest

from graphopt import oracle
from graphopt.base import Context
from graphopt.passes.convert_bfloat16 import ConvertBfloat16
from graphopt.passes.convert_float16 import ConvertFloat16
from graphopt.targets.cuda import Cuda
from graphopt.testing import from_text
from graphopt.testing.cuda_emulation import emulate

needs_linux = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")

NET = """<ir_version: 10, opset_import: ["": 18]>
net (float[N,8,50] x, float[24,8,5] w0, float[24] b0, float[40,24,3] w1, float[24,1,3] w2, float[24,3,2] w3)
    => (float[N,40,13] s, float[N,24,50] d, float[N,3,100] u, float[N,24,1] p) {
    [first] c = Conv <pads = [2,2]> (x, w0, b0)
    [relu] e = Relu (c)
    [residual] r = Add (e, c)
    [pool] m = MaxPool <kernel_shape = [2], strides = [2]> (r)
    [strided] s = Conv <pads = [1,1], strides = [2]> (m, w1)
    [depthwise] d = Conv <pads = [1,1], group = 24> (r, w2)
    [transposed] u = ConvTranspose <strides = [2]> (r, w3)
    [mean] p = GlobalAveragePool (r)
}"""
SHAPES = {"w0": (24, 8, 5), "b0": (24,), "w1": (40, 24, 3), "w2": (24, 1, 3), "w3": (24, 3, 2)}


@needs_linux
@pytest.mark.parametrize(("convert", "error"), [(ConvertFloat16, 1e-2), (ConvertBfloat16, 1e-3)])
def test_a_line_is_read_in_place_by_asynchronous_copies(convert, error):
    """bfloat16 against onnxruntime's products of the same rounded numbers, float16 against float32's."""
    rng = np.random.default_rng(2)
    single = from_text(NET, **{name: (rng.normal(size=s) / 4).astype(np.float32) for name, s in SHAPES.items()})
    model = single.clone()
    convert().apply(model, Context())
    program = Cuda(arch="sm_80", compiler="source").build(model, Context())
    found = {kernel["nodes"][0]: kernel for kernel in program.report["kernels"] if kernel["nodes"]}
    for name in ("first", "strided"):
        assert found[name]["schedule"] == "TensorCores"
        assert found[name]["asynchronous_copies"] > 0
    assert found["depthwise"]["schedule"] == "ShortSums"
    x = {"x": rng.normal(size=(2, 8, 50)).astype(np.float32)}
    expected = oracle.run(single if convert is ConvertFloat16 else model, x)
    for name, value in emulate(model, x).items():
        assert np.abs(value - expected[name]).max() <= error * np.abs(expected[name]).max(), name
