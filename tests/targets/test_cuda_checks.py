"""Static checks of scheduled kernels: bounds for all sizes, races, launch limits; and what they miss."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm import tirx
from tvm.script import tirx as T  # noqa: N812

from graphopt.errors import LoweringError
from graphopt.targets.cuda import checks
from graphopt.targets.cuda.arch import tvm_target
from graphopt.targets.cuda.checks.limits import most_shared
from graphopt.targets.cuda.checks.numbers import Unknown, evaluate
from graphopt.testing import from_text
from graphopt.testing.cuda_mutants import Mutant, mutants, seen


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


NET = """<ir_version: 10, opset_import: ["": 18]>
net (float[N, 3, H, 9] x, float[8, 3, 3, 3] w, float[8, 1, 3, 3] d, float[72, 5] v, int64[3] s) => (float[N, H, 5] y) {
    c = Conv<pads = [1, 1, 1, 1]>(x, w)
    r = Relu(c)
    e = Conv<pads = [1, 1, 1, 1], group = 8>(r, d)
    t = Transpose<perm = [0, 2, 3, 1]>(e)
    f = Reshape(t, s)
    g = MatMul(f, v)
    y = Softmax(g)
}"""


def _net() -> ir.Model:
    weights = {"w": _normal(8, 3, 3, 3), "d": _normal(8, 1, 3, 3), "v": _normal(72, 5)}
    return from_text(NET, s=np.array([0, -1, 72], np.int64), **weights)


def _lowered(model: ir.Model):
    from graphopt.targets.cuda.kernels import schedule, to_loops
    from graphopt.targets.lowering import lower

    target, made = tvm_target("sm_80"), lower(model)
    with target:
        module, origins = to_loops(made.module, made.sources)
        scheduled, rules = schedule(module, target, origins)
    return checks.lowered({name: scheduled[name] for name in rules}, target)


@pytest.fixture(scope="module")
def lowered():
    return _lowered(_net())


def test_every_access_is_within_its_buffer_for_all_sizes_and_no_barrier_is_missing(lowered):
    loops, synchronised = lowered
    assert len(loops) >= 4
    for function in loops.values():
        found = checks.check_bounds(function)
        assert (found.open, found.faults, found.by_data) == ([], [], 0)
        assert found.proved >= 2
    found = [checks.check_races(function) for function in synchronised.values()]
    assert sum(one.intervals for one in found) > 10
    assert [one.faults for one in found if one.faults] == []
    assert [one.unknown for one in found if one.unknown] == []
    assert [fault for f in synchronised.values() for fault in checks.check_limits(f, "sm_80")] == []


def _found(lowered, *kinds: str) -> list[tuple[str, Mutant, str]]:
    loops, synchronised = lowered
    made = ((name, mutant) for name in loops for mutant in mutants(loops[name], synchronised[name], kinds))
    return [(name, mutant, seen(mutant)) for name, mutant in made]


def test_every_shifted_index_is_seen(lowered):
    """1 added to every index of every access, one at a time: most are shown to be outside by an example."""
    found = [said for _, _, said in _found(lowered, "index")]
    assert all(found)
    assert len(found) > 100
    assert sum("outside" not in said for said in found) < 24


def test_what_is_outside_at_some_sizes_only_is_no_error_but_told():
    """A table of 16 positions for an open number of words: larger ones are the model's own fault."""
    text = """<ir_version: 10, opset_import: ["": 18]>
    g (float[S] x, float[16] table, int64[1] zero, int64[1] one) => (float[S] y) {
        shape = Shape(x)
        part = Slice(table, zero, shape)
        y = Add(x, part)
    }"""
    constants = {"zero": np.array([0], np.int64), "one": np.array([1], np.int64)}
    loops, _ = _lowered(from_text(text, table=_normal(16), **constants))
    found = [checks.check_bounds(function) for function in loops.values()]
    assert [one.faults for one in found if one.faults] == []
    (told,) = [text for one in found for text in one.open]
    assert "outside of its 16 elements at S = " in told


def test_every_barrier_that_matters_is_missed_when_it_is_gone(lowered):
    """Two of softmax's order nothing but what one thread writes and reads itself; the emulation says so as well."""
    found = _found(lowered, "barrier")
    assert [name for name, _, said in found if not said] == ["softmax", "softmax"]
    assert len(found) >= 10


def test_a_wrong_schedule_is_an_error_that_names_kernel_nodes_and_example(monkeypatch):
    from graphopt.base import Context
    from graphopt.targets.cuda import Cuda

    def wrong(functions, target):
        loops, synchronised = lower(functions, target)
        return {name: next(mutants(loops[name], synchronised[name])).loops for name in loops}, synchronised

    lower = checks.lowered
    monkeypatch.setattr(checks, "lowered", wrong)
    model = from_text('<ir_version: 10, opset_import: ["": 18]> g (float[N, 5] x) => (float[N, 5] y) { y = Relu(x) }')
    with pytest.raises(
        LoweringError, match=r"relu \(of .*\) (reads|writes) .* outside of its .* at .*blockIdx.* = \d+"
    ):
        Cuda(compiler="source").build(model, Context())


def test_limits_of_a_launch_are_those_of_the_architecture():
    @T.prim_func(s_tir=True)
    def large(x: T.Buffer((4096,), "float32")):
        block = T.launch_thread("blockIdx.y", 70000)
        thread = T.launch_thread("threadIdx.x", 2048)
        shared = T.alloc_shared((16384,), "float32")
        shared[thread] = x[thread]
        x[thread] = shared[thread] + T.Cast("float32", block)

    found = checks.check_limits(large, "sm_80")
    assert any("70000 along blockIdx.y" in fault for fault in found)
    assert any("2048 threads a block" in fault for fault in found)
    assert any("65536 bytes of static shared memory" in fault for fault in found)
    assert (most_shared("sm_75"), most_shared("sm_80"), most_shared("sm_90")) == (64 << 10, 163 << 10, 227 << 10)


def test_races_and_barriers_in_branches():
    @T.prim_func(s_tir=True)
    def neighbours(x: T.Buffer((64,), "float32")):
        thread = T.launch_thread("threadIdx.x", 64)
        shared = T.alloc_shared((64,), "float32")
        for k in range(9):
            shared[thread] = x[thread]
            T.evaluate(T.tvm_storage_sync("shared"))
            x[thread] = shared[63 - thread] + T.Cast("float32", k)

    @T.prim_func(s_tir=True)
    def branch(x: T.Buffer((64,), "float32")):
        thread = T.launch_thread("threadIdx.x", 64)
        if thread < 7:
            T.evaluate(T.tvm_storage_sync("shared"))
        x[thread] = T.float32(0)

    (fault,) = checks.check_races(neighbours).faults
    assert "of shared shared with no barrier between" in fault, "the next round writes what this one still reads"
    (fault,) = checks.check_races(branch).faults
    assert "a barrier that only threads with" in fault


@given(st.integers(-50, 50), st.integers(1, 9), st.integers(-9, -1))
def test_expressions_are_evaluated_as_tvm_does(a, b, c):
    def terms(x, y, z):
        yield tirx.floordiv(x, y) + tirx.floormod(x, y) * z
        yield tirx.truncdiv(x, z) - tirx.truncmod(x, y)
        yield tirx.min(x, tirx.max(y, z)) * tirx.IntImm("int64", 3)
        yield tirx.Select(tirx.all(x > y, tirx.Not(y == z)), x, z)

    variables = [tirx.Var(name, "int64") for name in "xyz"]
    values = dict(zip(variables, ([a], [b], [c]), strict=True))
    arrays = {variable: np.array(value) for variable, value in values.items()}
    constants = terms(*(tirx.IntImm("int64", value) for value in (a, b, c)))
    for term, constant in zip(terms(*variables), constants, strict=True):
        assert int(np.ravel(evaluate(term, arrays))[0]) == int(tvm.sym.Analyzer().simplify(constant))
    with pytest.raises(Unknown):
        evaluate(tirx.Var("w", "int64") + 1, arrays)


def test_kernels_that_spill_get_room_and_others_stay(monkeypatch):
    from graphopt.targets.cuda.machine_code import spills
    from graphopt.targets.cuda.machine_code.compiler import Binary

    def compiled(source, arch, route=None):
        seen.append(source)
        stores = 0 if "(128, 1)" in source else 8
        log = "".join(
            f"ptxas info : Compiling entry function '{name}' for '{arch}'\n"
            f"    8 bytes stack frame, {count} bytes spill stores, {count} bytes spill loads\n"
            for name, count in (("a_kernel", stores), ("ba_kernel", 0))
        )
        return Binary("nvcc", "nvcc", b"", log)

    seen = []
    monkeypatch.setattr(spills, "compile_source", compiled)
    source = "__launch_bounds__(128) a_kernel(float* x) {} __launch_bounds__(128) ba_kernel(float* x) {}"
    assert spills.spills(spills.compile_without_spills(source, "sm_90")) == {}
    assert seen == [source, source.replace("(128) a_", "(128, 1) a_")]
    assert spills.compile_without_spills(source.replace("(128)", "(128, 1)"), "sm_90")
    assert len(seen) == 3


def test_sizes_that_are_computed_from_floats_are_left_out_not_refused():
    """A Resize by a factor that is no integer of an open size."""
    text = """<ir_version: 10, opset_import: ["": 18]>
    g (float[N, 2, H, W] x, float[4] scales) => (float[N, 2, P, Q] y) { y = Resize<mode = "nearest">(x, , scales) }"""
    from graphopt.base import Context
    from graphopt.targets.cuda import Cuda

    model = from_text(text, scales=np.array([1, 1, 1.5, 1.5], np.float32))
    account = Cuda(compiler="source").build(model, Context()).report["checks"]
    assert account["accesses"] > 0
