"""Sums of few terms: a thread for each element, with what follows the sum in the same kernel."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest

from graphopt.testing import from_text
from graphopt.testing.cuda_emulation import check_kernels

needs_gxx = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@needs_gxx
def test_depthwise_convolutions_pools_and_short_means_of_open_sizes():
    """Batch, height and width open; Relu6, whose bounds are read several times, is in the same kernel."""
    text = """<ir_version: 10, opset_import: ["": 18]>
    net (float[N, 6, H, W] x, float[6, 1, 3, 3] w, float[6] b, float lo, float hi, int64[1] axes)
        => (float[N, 6, P, Q] y, float[N, 6, R, S] z, float[N, H, W] m) {
        c = Conv<group = 6, pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b)
        y = Clip(c, lo, hi)
        z = AveragePool<kernel_shape = [3, 3]>(y)
        m = ReduceMean<keepdims = 0>(x, axes)
    }"""
    constants = {"w": _normal(6, 1, 3, 3), "b": _normal(6), "axes": np.array([1], np.int64)}
    model = from_text(text, lo=np.array(0, np.float32), hi=np.array(6, np.float32), **constants)
    found = check_kernels(model, {"x": _normal(2, 6, 7, 11)}, sample=None)
    assert [kernel.fault for kernel in found.kernels if kernel.fault] == []
    assert max(kernel.error for kernel in found.kernels) < 1e-6
    rules = {"".join(kernel.nodes): kernel.schedule for kernel in found.kernels}
    assert sum(rule == "ShortSums" for rule in rules.values()) == 3, rules
