"""Integer kernels against the numpy reference, bit for bit: every arithmetic this machine can run, odd shapes, ties."""

import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt.artifact.host import missing
from graphopt.targets.integer import reference
from graphopt.targets.llvm.cpu import Cpu, resolve
from graphopt.targets.llvm.kernels import arithmetic, contract
from graphopt.targets.llvm.kernels.contract import Contraction
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import Isa
from graphopt.targets.llvm.kernels.epilogue import Activation, Epilogue
from graphopt.targets.llvm.kernels.requantise import Finish, Range, Residual

EXAMPLES = settings(
    phases=[Phase.explicit, Phase.generate],
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
VARIANTS = {
    "native": "native", "avx-vnni": "alderlake", "avx512": "x86-64-v4", "avx2": "x86-64-v3", "sse2": "x86-64",
    "widen": "native",
}  # fmt: skip


def isa_of(variant: str) -> tuple[Cpu, Isa]:
    try:
        cpu = resolve(VARIANTS[variant])
    except Exception:
        pytest.skip("another architecture")
    if missing(cpu.features):
        pytest.skip(f"this machine is no {VARIANTS[variant]}")
    return cpu, Isa(cpu.lanes, cpu.registers, frozenset() if variant == "widen" else cpu.features)


def last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def run(cpu: Cpu, isa: Isa, p: Contraction, finish: Finish, arrays, out: np.ndarray):
    """The kernel's result; `arrays`: x, weight, bias, m and maybe a residual, channels-last."""
    import tvm

    x, weight, bias, m, *rest = arrays
    dot = arithmetic.choose(isa, contract.as_runs(weight, p))
    kernel = contract.make(p, dot, isa, finish, False, "kernel")
    module = tvm.compile(tvm.IRModule({"kernel": kernel}), target=cpu.tvm_target())
    packed = contract.pack(weight, p, dot, isa.lanes), contract.pack_bias(bias, weight, p, dot, isa.lanes)
    result = tvm.runtime.tensor(out)
    module["kernel"](*(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (x, *packed, m, *rest)), result)
    return result.numpy(), dot


@st.composite
def convolutions(draw: st.DrawFn):
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    strides, dilations = (draw(st.tuples(st.integers(1, 2), st.integers(1, 2))) for _ in range(2))
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
    h, w = (d * (k - 1) + 1 + draw(st.integers(0, 14)) for k, d in zip(kernel, dilations, strict=True))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    ci, co = group * draw(st.integers(1, 17)), group * draw(st.integers(1, 37))
    conv = Conv(draw(st.integers(1, 2)), h, w, ci, co, kernel, strides, dilations, pads, group)
    return conv, draw(st.integers(0, 255)), draw(st.sampled_from([128, 63])), draw(st.sampled_from(KINDS))


KINDS = ["plain", "relu", "residual", "inner", "float"]


@pytest.mark.parametrize("variant", VARIANTS)
@given(case=convolutions(), seed=st.integers(0, 9))
@EXAMPLES
def test_convolution(variant, case, seed):
    conv, zero, most, kind = case
    cpu, isa = isa_of(variant)
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (conv.n, conv.ci, conv.h, conv.w)).astype(np.uint8)
    weight = rng.integers(-most, most, (conv.co, conv.ci // conv.group, *conv.kernel)).astype(np.int8)
    weight[0] = -most  # accumulators and pairs of products as large as they get
    bias = rng.integers(-(2**31), 2**31, conv.co).astype(np.int32) // 100000
    m = (rng.uniform(0.5, 1.5, conv.co) / (40 * np.sqrt(weight[0].size))).astype(np.float32)
    m[: conv.co // 2] = 1 / 64  # exact products: halves to even
    acc = reference.convolution(x, zero, weight, bias, conv.strides, conv.dilations, conv.pads, conv.group)
    r = rng.integers(0, 256, acc.shape).astype(np.uint8)
    along = m[:, None, None]
    limits = Range(77, 77 if kind == "relu" else 0, 240)
    arrays = [last(x), weight, bias, m]
    finish, want = Finish(limits), reference.requantise(acc, along, 77, limits.low, 240)
    if kind in ("residual", "inner"):
        arrays.append(last(r))
        inner = (Range(13, 1, 250), 0.7) if kind == "inner" else None
        finish = Finish(limits, Residual(9, 0.37, inner))
        other = reference.scaled(r, 9, np.float32(0.37))
        if kind == "inner":
            kept = reference.requantise(acc, along, 13, 1, 250)
            want = reference.total([reference.scaled(kept, 13, np.float32(0.7)), other], 77, 0, 240)
        else:
            want = reference.requantise(acc, along, 77, 0, 240, other)
    if kind == "float":
        finish, want = Finish(None), acc.astype(np.float32) * along
    got, _ = run(cpu, isa, Contraction(conv, zero), finish, arrays, last(want).astype(finish.dtype) * 0)
    np.testing.assert_array_equal(got, last(want))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("variant", ["avx2", "avx512"])
@given(zero=st.integers(0, 255), ends=st.tuples(st.integers(0, 255), st.integers(0, 255)))
@EXAMPLES
def test_vectors_rounded_together(variant, count, zero, ends):
    """As one by one: halves to even, what is far beyond int32, infinities."""
    import tvm

    from graphopt.targets.llvm.kernels.emit import function, load, store

    cpu, isa = isa_of(variant)
    assert Finish(Range(0)).packs(isa)
    limits, width = Range(zero, min(ends), max(ends)), count * isa.lanes
    rng = np.random.default_rng(zero)
    extremes = [0.5, 1.5, -0.5, 2.5, 3e9, -3e9, 1e30, -1e30, np.inf, -np.inf, 254.5, 255.5, 40000, -40000, 70000, -7e4]
    x = np.concatenate([extremes, rng.integers(-600, 600, 4 * width - 16) / 2]).astype(np.float32)
    with function("kernel") as (f, made):
        source, target = f.argument("x", [len(x)]), f.argument("y", [len(x)], "uint8")
        for at in range(0, len(x), width):
            steps = [load(source, [at + i * isa.lanes], isa.lanes) for i in range(count)]
            store(target, limits.round_together(steps, isa.lanes), [at], width)
    result = tvm.runtime.tensor(np.zeros(len(x), np.uint8))
    tvm.compile(tvm.IRModule({"kernel": made[0]}), target=cpu.tvm_target())["kernel"](tvm.runtime.tensor(x), result)
    want = np.clip(np.rint(x.astype(np.float64)) + zero, limits.low, limits.high)
    np.testing.assert_array_equal(result.numpy(), want.astype(np.uint8))


@pytest.mark.parametrize(
    ("rows", "k", "co"), [((3, 5), 13, 20), ((1,), 64, 10), ((37,), 8, 70), ((2, 1), 1, 1), ((4,), 4, 133)]
)
@pytest.mark.parametrize("variant", ["native", "avx2"])
def test_dense_of_open_rows(variant, rows, k, co):
    """Rows that don't fill the last tile are computed by smaller ones."""
    cpu, isa = isa_of(variant)
    rng = np.random.default_rng(k)
    x = rng.integers(0, 256, (*rows, k)).astype(np.uint8)
    weight = rng.integers(-128, 128, (co, k, 1, 1)).astype(np.int8)
    bias, m = rng.integers(-999, 999, co).astype(np.int32), np.full(co, 0.01, np.float32)
    acc = (x.astype(np.int32) - 5) @ weight[:, :, 0, 0].astype(np.int32).T + bias
    want = reference.requantise(acc, m, 100, 0, 255)
    for dims in (rows, tuple(f"d{i}" for i in range(len(rows)))):
        p = Contraction(Conv(1, 1, 1, k, co, (1, 1)), 5, dims)
        got, _ = run(cpu, isa, p, Finish(Range(100)), [x, weight, bias, m], np.zeros(want.shape, np.uint8))
        np.testing.assert_array_equal(got, want)


def test_formula_between_accumulators_and_result():
    cpu, isa = isa_of("native")
    rng = np.random.default_rng(0)
    conv = Conv(1, 5, 9, 8, 21, (3, 3), pads=(1, 1, 1, 1))
    x = rng.integers(0, 256, (1, 8, 5, 9)).astype(np.uint8)
    weight = rng.integers(-128, 128, (21, 8, 3, 3)).astype(np.int8)
    m = np.full(21, 1e-4, np.float32)
    finish = Finish(Range(3), formula=Epilogue((Activation("sigmoid"),)), step=1 / 250)
    arrays, out = [last(x), weight, np.zeros(21, np.int32), m], np.zeros((1, 5, 9, 21), np.uint8)
    got, _ = run(cpu, isa, Contraction(conv, 7), finish, arrays, out)
    acc = reference.convolution(x, 7, weight, None, pads=conv.pads)
    value = 1 / (1 + np.exp(-(acc * np.float64(1e-4))))
    want = reference.quantize(value.astype(np.float32), np.float32(1 / 250), 3, 0, 255)
    assert np.abs(got.astype(int) - last(want)).max() <= 1
    assert np.mean(got != last(want)) < 0.01


def test_pairs_that_would_saturate_are_not_left_to_maddubs():
    isa = Isa(8, 16, frozenset({"avx2"}))
    p = Contraction(Conv(1, 1, 1, 3, 1, (1, 1)), 0)
    safe, unsafe = (np.array(w, np.int8).reshape(1, 3, 1, 1) for w in ([64, -64, 127], [64, 65, 0]))
    assert arithmetic.choose(isa, contract.as_runs(safe, p)).name == "maddubs"
    assert arithmetic.choose(isa, contract.as_runs(unsafe, p)).name == "maddwd"


@pytest.mark.parametrize(
    ("features", "lanes", "name"),
    [
        ({"avx512vnni", "avx512bw", "avx2"}, 16, "vpdpbusd"), ({"avxvnni", "avx2"}, 8, "vpdpbusd"),
        ({"avx512bw", "avx2"}, 16, "maddwd"), ({"sse2"}, 4, "maddwd"), ({"neon"}, 4, "widen"),
        ({"neon", "dotprod"}, 4, "sdot"), ({"neon", "dotprod", "i8mm"}, 4, "usdot"),
    ],
)  # fmt: skip
def test_choice_of_arithmetic(features, lanes, name):
    weight = np.full((1, 1, 4), -128, np.int8)
    assert arithmetic.choose(Isa(lanes, 16, frozenset(features)), weight).name == name


@functools.cache
def assembly(mcpu: str, triple: str, features: frozenset[str] | None = None) -> str:
    import tvm

    cpu = Cpu(mcpu, triple)
    isa = Isa(cpu.lanes, cpu.registers, cpu.features if features is None else features)
    conv = Conv(1, 8, 8, 16, 32, (3, 3), pads=(1, 1, 1, 1))
    weight = np.full((32, 16, 3, 3), 127, np.int8)
    p = Contraction(conv, 3)
    dot = arithmetic.choose(isa, contract.as_runs(weight, p))
    kernel = contract.make(p, dot, isa, Finish(Range(3), Residual(4, 0.5)), False, "kernel")
    module = tvm.compile(tvm.IRModule({"kernel": kernel}), target=cpu.tvm_target())
    return module.mod.inspect_source("asm")


@pytest.mark.parametrize(
    ("mcpu", "triple", "instruction"),
    [
        ("cascadelake", "x86_64-linux-gnu", "vpdpbusd"), ("alderlake", "x86_64-linux-gnu", "vpdpbusd"),
        ("x86-64-v3", "x86_64-linux-gnu", "vpmaddwd"), ("neoverse-n1", "aarch64-linux-gnu", "sdot"),
        ("neoverse-v1", "aarch64-linux-gnu", "usdot"),
    ],
)  # fmt: skip
def test_instruction_is_there(mcpu, triple, instruction):
    """Machine code for a CPU, also one of another architecture, has the instruction its arithmetic is named after."""
    assert instruction in assembly(mcpu, triple)
