"""Winograd's F(2x2, 3x3) on integers against the numpy reference, bit for bit, and where it is chosen."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.artifact.host import missing
from graphopt.targets.integer import reference
from graphopt.targets.llvm.cpu import resolve
from graphopt.targets.llvm.kernels import arithmetic, winograd_integer
from graphopt.targets.llvm.kernels.arithmetic import Dot
from graphopt.targets.llvm.kernels.contract import Contraction
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import Isa
from graphopt.targets.llvm.kernels.requantise import Finish, Range, Residual
from graphopt.targets.llvm.plan.integer import choose
from graphopt.targets.llvm.plan.integer.layers import Layer

EXAMPLES = settings(
    max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MADDWD = Dot("maddwd", 2)
AVX2 = Isa(8, 16, frozenset({"avx2", "ssse3", "sse2"}))


def last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


@st.composite
def layers(draw: st.DrawFn) -> tuple[Conv, int, str]:
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
    h, w = draw(st.integers(3, 12)), draw(st.integers(3, 12))
    channels = draw(st.sampled_from([(32, 16), (48, 40), (64, 33), (34, 48)]))
    conv = Conv(draw(st.integers(1, 2)), h, w, *channels, (3, 3), (1, 1), (1, 1), pads)
    return conv, draw(st.integers(0, 255)), draw(st.sampled_from(["bytes", "residual", "float"]))


@pytest.mark.parametrize("mcpu", ["x86-64-v3", "x86-64-v4"])
@given(case=layers(), seed=st.integers(0, 9))
@EXAMPLES
def test_any_image(mcpu, case, seed):
    """Odd sizes, uneven padding, any zero point, channels past whole vectors, the largest weights and inputs."""
    import tvm

    (conv, zero, kind), cpu = case, resolve(mcpu)
    if missing(cpu.features):
        pytest.skip(f"this machine is no {mcpu}")
    isa, p, rng = Isa(cpu.lanes, cpu.registers, cpu.features), Contraction(conv, zero), np.random.default_rng(seed)
    x = rng.integers(0, 256, (conv.n, conv.ci, conv.h, conv.w)).astype(np.uint8)
    x[0, :, :2] = 255
    weight = rng.integers(-128, 128, (conv.co, conv.ci, 3, 3)).astype(np.int8)
    weight[0], weight[1] = -128, 127
    bias = rng.integers(-(2**26), 2**26, conv.co).astype(np.int32)
    m = (rng.uniform(0.5, 1.5, conv.co) / (1500 * np.sqrt(weight[0].size))).astype(np.float32)
    m[: conv.co // 2] = 2**-14  # exact products: halves to even
    assert winograd_integer.applies(p, MADDWD, weight, bias, isa)
    acc = reference.convolution(x, zero, weight, bias, (1, 1), (1, 1), conv.pads, 1)
    r, along = rng.integers(0, 256, acc.shape).astype(np.uint8), m[:, None, None]
    arrays = [last(x), winograd_integer.pack(weight, isa.lanes)]
    arrays += [winograd_integer.pack_bias(bias, weight, p, isa.lanes), m * winograd_integer.QUARTER]
    finish, want = Finish(Range(77, 3, 240)), reference.requantise(acc, along, 77, 3, 240)
    if kind == "residual":
        arrays.append(last(r))
        finish = Finish(Range(77, 3, 240), Residual(9, 0.37))
        want = reference.requantise(acc, along, 77, 3, 240, reference.scaled(r, 9, np.float32(0.37)))
    elif kind == "float":
        finish, want = Finish(None), acc.astype(np.float32) * along
    kernel = winograd_integer.make(p, isa, finish, False, "kernel")
    module = tvm.compile(tvm.IRModule({"kernel": kernel}), target=cpu.tvm_target())
    result = tvm.runtime.tensor(np.zeros(last(want).shape, finish.dtype))
    module["kernel"](*map(tvm.runtime.tensor, arrays), result)
    np.testing.assert_array_equal(result.numpy(), last(want))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel": (5, 5)}, "another kernel"),
        ({"strides": (2, 2)}, "strides"),
        ({"dilations": (2, 2)}, "dilations"),
        ({"group": 2}, "groups"),
        ({"ci": 33}, "an odd number of channels"),
        ({"ci": 8}, "too few channels"),
        ({}, "sums of 32 bits"),
        ({}, "dot products of bytes"),
    ],
)
def test_where_it_does_not_apply(change, reason):
    sizes = {"n": 1, "h": 12, "w": 12, "ci": 32, "co": 32, "kernel": (3, 3)} | change
    conv = Conv(**sizes)
    weight = np.ones((conv.co, conv.ci // conv.group, *conv.kernel), np.int8)
    bias = np.full(conv.co, 2**29 if reason == "sums of 32 bits" else 0, np.int32)
    dot = Dot("vpdpbusd", 4) if reason == "dot products of bytes" else MADDWD
    assert not winograd_integer.applies(Contraction(conv, 3), dot, weight, bias, AVX2)
    plain = Contraction(Conv(1, 12, 12, 32, 32, (3, 3)), 3)
    assert winograd_integer.applies(plain, MADDWD, np.ones((32, 32, 3, 3), np.int8), np.zeros(32, np.int32), AVX2)


@pytest.mark.parametrize(("most", "dot"), [(63, "maddubs"), (127, "maddwd")])
def test_chosen_where_it_is_faster(most, dot):
    """For wide layers of any weights; a line of one pixel leaves half of each tile unused."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-most, most + 1, (128, 128, 3, 3)).astype(np.int8)
    assert arithmetic.choose(AVX2, weight.transpose(0, 2, 3, 1).reshape(128, 3, -1)).name == dot

    def layer(h: int) -> Layer:
        p = Contraction(Conv(1, h, 28, 128, 128, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)), 3)
        finish = Finish(Range(0))
        return Layer((), None, p, weight, np.zeros(128, np.int32), np.ones(128), finish, None)  # pyright: ignore

    assert choose.by_winograd(layer(28), AVX2)
    assert "winograd2 by maddwd" in str(choose.estimate(layer(28), AVX2))
    assert choose.by_winograd(layer(1), AVX2) == (dot == "maddwd")
