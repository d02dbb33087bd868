"""Depthwise convolutions of 8-bit values against the numpy reference, bit for bit, in both of their arithmetics."""

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt.artifact.host import missing
from graphopt.targets.integer import reference
from graphopt.targets.llvm.cpu import resolve
from graphopt.targets.llvm.kernels import depthwise_integer
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import Isa
from graphopt.targets.llvm.kernels.requantise import Finish, Range, Residual

EXAMPLES = settings(
    phases=[Phase.explicit, Phase.generate],
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
VARIANTS = {"native": "native", "avx-vnni": "alderlake", "avx512": "x86-64-v4", "avx2": "x86-64-v3", "sse2": "x86-64"}


def last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def check(variant: str, conv: Conv, zero: int, x, weight, bias, m, finish: Finish, want, residual=()) -> None:
    try:
        cpu = resolve(VARIANTS[variant])
    except Exception:
        pytest.skip("another architecture")
    if missing(cpu.features):
        pytest.skip(f"this machine is no {VARIANTS[variant]}")
    isa = Isa(cpu.lanes, cpu.registers, cpu.features)
    p = depthwise_integer.problem(conv, zero, isa)
    packed = depthwise_integer.pack(weight, p), depthwise_integer.pack_bias(bias, weight, p)
    kernel = depthwise_integer.make(p, isa, finish, False, "kernel")
    module = tvm.compile(tvm.IRModule({"kernel": kernel}), target=cpu.tvm_target())
    result = tvm.runtime.tensor(np.zeros(last(want).shape, finish.dtype))
    module["kernel"](*map(tvm.runtime.tensor, (last(x), *packed, m, *map(last, residual))), result)
    np.testing.assert_array_equal(result.numpy(), last(want))


@st.composite
def convolutions(draw: st.DrawFn) -> Conv:
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 6)))
    strides, dilations = draw(st.tuples(*[st.integers(1, 3)] * 2)), draw(st.tuples(*[st.integers(1, 2)] * 2))
    pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    h = max(1, reach[0] - pads[0] - pads[2]) + draw(st.integers(0, 16))
    w = max(1, reach[1] - pads[1] - pads[3]) + draw(st.integers(0, 30))
    channels = draw(st.integers(2, 41))
    return Conv(draw(st.integers(1, 2)), h, w, channels, channels, kernel, strides, dilations, pads, channels)


@pytest.mark.parametrize("variant", VARIANTS)
@given(conv=convolutions(), zero=st.integers(0, 255), kind=st.sampled_from(["plain", "residual", "float"]))
@EXAMPLES
def test_any_window(variant, conv, zero, kind):
    rng = np.random.default_rng(conv.h)
    x = rng.integers(0, 256, (conv.n, conv.ci, conv.h, conv.w)).astype(np.uint8)
    weight = rng.integers(-128, 128, (conv.ci, 1, *conv.kernel)).astype(np.int8)
    weight[0] = -128
    bias = rng.integers(-5000, 5000, conv.co).astype(np.int32)
    m = (rng.uniform(0.5, 1.5, conv.co) / (40 * np.sqrt(weight[0].size))).astype(np.float32)
    m[: conv.co // 2] = 1 / 64  # exact products: halves to even
    acc = reference.convolution(x, zero, weight, bias, conv.strides, conv.dilations, conv.pads, conv.ci)
    r, along = rng.integers(0, 256, acc.shape).astype(np.uint8), m[:, None, None]
    if kind == "plain":
        check(
            variant, conv, zero, x, weight, bias, m, Finish(Range(77, 70, 240)),
            reference.requantise(acc, along, 77, 70, 240),
        )  # fmt: skip
    elif kind == "residual":
        want = reference.requantise(acc, along, 77, 0, 255, reference.scaled(r, 9, np.float32(0.37)))
        check(variant, conv, zero, x, weight, bias, m, Finish(Range(77), Residual(9, 0.37)), want, [r])
    else:
        check(variant, conv, zero, x, weight, bias, m, Finish(None), acc.astype(np.float32) * along)


@pytest.mark.parametrize("variant", ["native", "avx2"])
def test_sums_are_exact(variant):
    """The largest sums there are, with residual and a bias beyond 24 bits."""
    rng = np.random.default_rng(0)
    conv = Conv(1, 40, 9, 21, 21, (19, 5), pads=(9, 2, 9, 2), group=21)
    x = rng.integers(0, 256, (1, 21, 40, 9)).astype(np.uint8)
    weight = rng.integers(-128, 128, (21, 1, 19, 5)).astype(np.int8)
    x[:, 0], weight[0] = 255, -128
    bias = rng.integers(2**24, 2**25, 21).astype(np.int32) + 1
    acc = reference.convolution(x, 3, weight, bias, pads=conv.pads, group=21)
    r, m = rng.integers(0, 256, acc.shape).astype(np.uint8), np.full(21, 1e-6, np.float32)
    m[0] = 1e-5
    want = reference.requantise(acc, m[:, None, None], 90, 0, 255, reference.scaled(r, 9, np.float32(0.37)))
    check(variant, conv, 3, x, weight, bias, m, Finish(Range(90), Residual(9, 0.37)), want, [r])


def test_bands_of_a_large_image():
    """More lines than one copy holds, and a last band that is shorter."""
    conv = Conv(2, 83, 150, 5, 5, (3, 3), (2, 1), pads=(1, 1, 1, 1), group=5)
    for variant in ("native", "avx2"):
        rng = np.random.default_rng(1)
        x = rng.integers(0, 256, (2, 5, 83, 150)).astype(np.uint8)
        weight = rng.integers(-128, 128, (5, 1, 3, 3)).astype(np.int8)
        bias, m = rng.integers(-500, 500, 5).astype(np.int32), np.full(5, 0.003, np.float32)
        acc = reference.convolution(x, 200, weight, bias, conv.strides, pads=conv.pads, group=5)
        want = reference.requantise(acc, m[:, None, None], 128, 0, 255)
        check(variant, conv, 200, x, weight, bias, m, Finish(Range(128)), want)


def test_the_band_fits_the_cache():
    isa = Isa(16, 32, frozenset({"avx512vnni"}))
    p = depthwise_integer.problem(Conv(1, 83, 150, 5, 5, (3, 3), (2, 1), pads=(1, 1, 1, 1), group=5), 0, isa)
    assert p.band() < 42
    assert 4 * p.columns * p.lines(p.band()) <= depthwise_integer.BAND
