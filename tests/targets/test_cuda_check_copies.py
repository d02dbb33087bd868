"""Static race check of tensor-core kernels: fragments that warps move, and asynchronous copies."""

from __future__ import annotations

import collections

import numpy as np
import onnx_ir as ir
import pytest
from tvm import relax
from tvm.script import tirx as T  # noqa: N812

from graphopt import graph
from graphopt.targets.cuda import checks
from graphopt.targets.cuda.arch import tvm_target
from graphopt.testing.cuda_mutants import KINDS, mutants, seen

MATMUL = """<ir_version: 10, opset_import: ["": 18]>
net (float16[N, 70] x) => (float16[N, 90] y) { c = MatMul(x, w)
 d = Add(c, b)
 y = Relu(d) }"""
CONV = """<ir_version: 10, opset_import: ["": 18]>
net (float16[N, 16, 11, 13] x) => (float16[N, 24, 11, 13] y) { c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
 y = Relu(c) }"""
SHAPES = {MATMUL: {"w": (70, 90), "b": (90,)}, CONV: {"w": (24, 16, 3, 3), "b": (24,)}}


def _lowered(text: str, arch: str):
    from graphopt.targets.cuda.kernels import schedule, to_loops
    from graphopt.targets.lowering import lower

    rng = np.random.default_rng(0)
    tensors = [ir.tensor(rng.normal(size=s).astype(np.float16), name=name) for name, s in SHAPES[text].items()]
    model = graph.normalise(ir.from_onnx_text(text, initializers=tensors))
    target, made = tvm_target(arch), lower(model)
    with target:
        module, origins = to_loops(made.module, made.sources)
        scheduled, rules = schedule(module, target, origins)
    assert set(rules.values()) == {"TensorCores"}
    (name,) = rules
    loops, synchronised = checks.lowered({name: scheduled[name]}, target)
    return loops[name], synchronised[name]


# Indices that no static check sees: the shifted one is a place that exists and is written, with a neighbour's value.
# Operands of the first two steps along k, and the column of a result where there are fewer channels than the tile has.
CASES = {
    "matmul, sm_80": (MATMUL, "sm_80", {"unseen": 2, "barrier": 3, "wait": 2}),
    "matmul, sm_75": (MATMUL, "sm_75", {"unseen": 0, "barrier": 3, "wait": 0}),
    "conv, sm_80": (CONV, "sm_80", {"unseen": 3, "barrier": 4, "wait": 2}),
    "conv, sm_75": (CONV, "sm_75", {"unseen": 1, "barrier": 3, "wait": 0}),
}


@pytest.mark.parametrize("case", CASES)
def test_mutants_of_tensor_core_kernels(case):
    """Odd sizes, a border; every barrier, wait, wait one group too short and fragment off by one is seen."""
    text, arch, expected = CASES[case]
    loops, synchronised = _lowered(text, arch)
    found = checks.check_races(synchronised)
    assert (found.faults, found.unknown) == ([], 0)
    assert found.intervals > 20
    bounds = checks.check_bounds(loops)
    assert (bounds.faults, bounds.open, bounds.by_data) == ([], [], 0)
    kinds = ("barrier", "wait", "short wait", "fragment")
    made = [(mutant, seen(mutant)) for mutant in mutants(loops, synchronised, kinds)]
    assert [mutant.text for mutant, said in made if not said] == []
    count = collections.Counter(mutant.kind for mutant, _ in made)
    assert count["barrier"] >= expected["barrier"]
    assert count["wait"] == count["short wait"] >= expected["wait"]
    assert count["fragment"] >= (5 if arch == "sm_80" else 3)
    if case.startswith("matmul"):
        said = [seen(mutant) for mutant in mutants(loops, synchronised, ("index",))]
        assert len(said) >= 16
        assert said.count("") <= expected["unseen"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_index_of_tensor_core_kernels(case):
    text, arch, expected = CASES[case]
    said = [seen(mutant) for mutant in mutants(*_lowered(text, arch), ("index",))]
    print(f"{case}: {sum(map(bool, said))} of {len(said)}")  # figures of docs/cuda-verification.md
    assert len(said) >= 16
    assert said.count("") <= expected["unseen"]


@pytest.mark.parametrize(
    ("dtype", "sum_in", "arch"),
    [
        ("int8", "int32", "sm_75"),
        ("int8", "int32", "sm_80"),
        ("uint8", "int32", "sm_80"),
        ("bfloat16", "float32", "sm_80"),
    ],
)
def test_mutants_of_products_of_other_types(dtype, sum_in, arch):
    """Fragments and copies of any type; 150 along k are several rounds of the pipeline."""
    from graphopt.targets.cuda.kernels import schedule, to_loops

    builder, target = relax.BlockBuilder(), tvm_target(arch)
    a, b = (relax.Var(name, relax.TensorType(shape, dtype)) for name, shape in (("a", (33, 150)), ("b", (90, 150))))
    with builder.function("main", [a, b]):
        with builder.dataflow():
            product = relax.op.matmul(a, relax.op.permute_dims(b), out_dtype=sum_in)
            result = builder.emit_output(builder.emit(product))
        builder.emit_func_output(result)
    with target:
        module, origins = to_loops(builder.get(), {})
        scheduled, rules = schedule(module, target, origins)
    (name,) = (name for name, rule in rules.items() if rule == "TensorCores")
    loops, synchronised = (part[name] for part in checks.lowered({name: scheduled[name]}, target))
    found = checks.check_races(synchronised)
    assert (found.faults, found.unknown) == ([], 0)
    made = [(mutant, seen(mutant)) for mutant in mutants(loops, synchronised, KINDS[1:])]
    assert [mutant.text for mutant, said in made if not said] == []
    count = collections.Counter(mutant.kind for mutant, _ in made)
    assert count["barrier"] >= 2
    assert count["fragment"] >= 3
    assert count["wait"] >= (1 if arch == "sm_80" else 0)


def _ring(stages: int, pending: int, *, ahead: int = 2, waits: bool = True, first: bool = True, second: bool = True):
    """Rows copied `ahead` steps ahead into a ring of `stages`, and read by other threads than copied them."""

    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((2560,), "float32"), y: T.Buffer((2560,), "float32")):
        thread = T.launch_thread("threadIdx.x", 64)
        ring = T.alloc_shared((64 * stages,), "float32")
        for k in range(ahead):
            with T.attr(0, "async_commit_queue_scope", 0), T.attr(0, "async_scope", 1):
                ring[k * 64 + thread] = x[k * 64 + thread]
        for k in range(30):
            if first:
                T.evaluate(T.tvm_storage_sync("shared"))
            with T.attr(0, "async_commit_queue_scope", 0), T.attr(0, "async_scope", 1):
                ring[(k + ahead) % stages * 64 + thread] = x[(k + ahead) * 64 + thread]
            if waits:
                with T.attr(0, "async_wait_inflight_count", pending):
                    T.evaluate(0)
            if second:
                T.evaluate(T.tvm_storage_sync("shared"))
            y[k * 64 + thread] = ring[k % stages * 64 + 63 - thread]

    return kernel


@pytest.mark.parametrize(
    ("what", "kernel", "fault"),
    [
        ("right", {"stages": 3, "pending": 2}, ""),
        ("a longer ring needs one barrier", {"stages": 4, "pending": 2, "first": False}, ""),
        ("a shorter one has no room", {"stages": 2, "pending": 2}, "while an asynchronous copy to it is under way"),
        ("a wait too short", {"stages": 3, "pending": 3}, "reads element 63 of shared ring while an asynchronous copy"),
        ("six steps", {"stages": 6, "pending": 5, "ahead": 5}, ""),
        ("six steps, a wait too short", {"stages": 6, "pending": 6, "ahead": 5}, "while an asynchronous copy"),
        ("six steps, others still read", {"stages": 6, "pending": 5, "ahead": 5, "first": False}, "with no barrier"),
        ("six steps in five", {"stages": 5, "pending": 5, "ahead": 5}, "while an asynchronous copy"),
        ("no wait", {"stages": 3, "pending": 2, "waits": False}, "while an asynchronous copy"),
        ("waited for, and no barrier", {"stages": 4, "pending": 2, "second": False}, "with no barrier between"),
        ("others still read", {"stages": 3, "pending": 2, "first": False}, "with no barrier between"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_a_ring_of_copies(what, kernel, fault):
    """The steady state, not the ends alone: a copy may run until its group is waited for, and is seen by others after
    the next barrier."""
    faults = checks.check_races(_ring(**kernel)).faults
    assert (fault in faults[0]) if fault else faults == [], what


def _by_warps(dtype: str, *, barrier: bool = True, threads: int = 64, lanes: int = 0, rows: int = 32, offset: int = 0):
    """Each warp loads a fragment of what all threads have written, and stores one."""

    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((4096,), dtype)):
        thread = T.launch_thread("threadIdx.x", threads)
        tile = T.alloc_shared((rows * 24,), dtype)
        staged = T.alloc_shared((512,), "float32")
        a = T.alloc_buffer((256,), dtype, scope="wmma.matrix_a")
        c = T.alloc_buffer((256,), "float32", scope="wmma.accumulator")
        for i in range((rows * 24 + threads - 1) // threads):
            if i * threads + thread < rows * 24:
                tile[i * threads + thread] = x[i * threads + thread]
        if barrier:
            T.evaluate(T.tvm_storage_sync("shared"))
        T.evaluate(
            T.tvm_load_matrix_sync(
                a.data, 16, 16, 16, 0, tile.access_ptr("r", offset=thread // 32 * 16 * 24 + thread * lanes + offset),
                24, "row_major", dtype="void",
            )
        )  # fmt: skip
        T.evaluate(
            T.tvm_store_matrix_sync(
                c.data, 16, 16, 16, 0, staged.access_ptr("w", offset=thread // 32 * 256), 16, "row_major", dtype="void"
            )
        )
        T.evaluate(
            T.tvm_load_matrix_sync(
                c.data, 16, 16, 16, 0, staged.access_ptr("r", offset=thread // 32 * 256), 16, "row_major", dtype="void"
            )
        )

    return kernel


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint8"])
def test_fragments_are_what_a_warp_moves_together(dtype):
    own = "at element 0 of shared staged with no barrier between"
    (fault,) = checks.check_races(_by_warps(dtype)).faults
    assert own in fault, "which thread of a warp has which element is not defined, so even a warp's own needs a barrier"
    faults = checks.check_races(_by_warps(dtype, barrier=False)).faults
    assert any("of shared tile with no barrier between" in fault for fault in faults)
    faults = checks.check_races(_by_warps(dtype, lanes=1)).faults
    assert any("by threads that are not whole warps alike" in fault for fault in faults)
    faults = checks.check_races(_by_warps(dtype, threads=48)).faults
    assert any("by threads that are not whole warps alike" in fault for fault in faults)
    faults = checks.check_races(_by_warps(dtype, offset=9)).faults
    assert any("outside of shared tile" in fault for fault in faults)


def test_what_nobody_has_written_is_not_read():
    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((64,), "float32")):
        thread = T.launch_thread("threadIdx.x", 64)
        shared = T.alloc_shared((64,), "float32")
        if thread > 0:
            shared[thread] = x[thread]
        T.evaluate(T.tvm_storage_sync("shared"))
        x[thread] = shared[63 - thread]

    (fault,) = checks.check_races(kernel).faults
    assert fault == "reads element 0 of shared shared, which nobody has written"


def test_memory_seen_as_two_types_is_counted_in_its_own_elements():
    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((64,), "float32")):
        thread = T.launch_thread("threadIdx.x", 64)
        shared = T.alloc_shared((128,), "float16")
        wide = T.decl_buffer((64,), "float32", data=shared.data, scope="shared")
        wide[thread] = x[thread]
        x[thread] = T.Cast("float32", shared[thread * 2 + 2 - thread // 63 * 2])

    (fault,) = checks.check_races(kernel).faults
    assert "at element 2 of shared shared with no barrier between" in fault
