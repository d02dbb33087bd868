"""Runs of kernel calls as one function: where values lie, and that results stay what they were."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import artifact, oracle
from graphopt.base import Context
from graphopt.graph import load
from graphopt.models import get
from graphopt.targets.llvm import Llvm, memory
from graphopt.testing import from_text

HEADER = '<ir_version: 10, opset_import: ["": 20]>'


def evaluate(size, **dims):
    return eval(str(memory.text(size)), dims)  # a formula such as 64 + n * 128


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(
        st.tuples(st.integers(0, 5000), st.integers(0, 12), st.integers(0, 6), st.sampled_from(["", "n", "m", "nm"])),
        min_size=1,
        max_size=20,
    ),
    n=st.integers(1, 7),
    m=st.integers(1, 7),
)
def test_values_that_live_at_the_same_time_lie_apart(values, n, m):
    from tvm import tirx

    symbols = {name: tirx.Var(name, "int64") for name in "nm"}
    spans = {
        index: memory.Span(memory.Size(size, tuple(symbols[c] for c in factors)), first, first + length)
        for index, (size, first, length, factors) in enumerate(values)
    }
    layout = memory.plan(spans)
    total = evaluate(layout.total, n=n, m=m)
    places = {}
    for index, span in spans.items():
        size = span.size.bytes * int(np.prod([{"n": n, "m": m}[f.name] for f in span.size.factors], initial=1))
        start = evaluate(layout.offsets[index], n=n, m=m)
        assert start % memory.ALIGNMENT == 0
        assert 0 <= start <= start + size <= total
        places[index] = (start, start + size)
    for i, a in spans.items():
        for j, b in spans.items():
            if i < j and a.first <= b.last and b.first <= a.last:
                assert places[i][1] <= places[j][0] or places[j][1] <= places[i][0]


def test_a_chain_needs_two_places():
    spans = {i: memory.Span(memory.Size(640, ()), i, i + 1) for i in range(10)}
    assert int(memory.plan(spans).total) == 2 * 640


def compiled(text, folder, **arrays):
    model = from_text(f"{HEADER} {text}", **arrays)
    program = Llvm(threads=1).build(model, Context())
    path = artifact.write(folder / "m.gopt", program, target="llvm", before=model, after=model, report={})
    return model, program, artifact.load(path)


def check(model, loaded, feeds):
    expected, got = oracle.run(model, feeds), loaded.run(feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5 * max(1, float(np.abs(value).max(initial=0))))


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def noise(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


MLP = """g (float[N,8] x, float[8,8] w) => (float[N,8] z, float[a,b] flat, float[N,8] y) {
    h = MatMul(x, w) y = Relu(h) k = MatMul(y, w) z = Softmax(k)
    t = Constant<value_ints=[-1,4]>() flat = Reshape(y, t) }"""


def test_an_open_batch_is_planned_once(tmp_path):
    model, program, loaded = compiled(MLP, tmp_path, w=noise(8, 8))
    (size,) = program.report["activation_bytes"]
    assert "N" in size
    for n in (1, 3, 64, 2):
        check(model, loaded, {"x": noise(n, 8)})


def test_results_and_views_of_them_are_arrays_of_their_own(tmp_path):
    _, _, loaded = compiled(MLP, tmp_path, w=noise(8, 8))
    first = loaded.run({"x": noise(2, 8)})
    kept = {name: array.copy() for name, array in first.items()}
    first["y"][:] = 0
    loaded.run({"x": noise(2, 8) + 1})
    np.testing.assert_array_equal(first["flat"], kept["flat"])
    np.testing.assert_array_equal(first["z"], kept["z"])


def test_a_branch_stands_between_runs(tmp_path):
    text = """g (float[4,8] x, bool c, float[8,8] w) => (float[4,8] z) {
        h = MatMul(x, w) a = Softmax(h)
        b = If(c) <then_branch = p () => (float[4,8] u) { s = Exp(a) u = Softmax(s) },
                   else_branch = q () => (float[4,8] v) { t = Neg(a) v = Softmax(t) }>
        d = MatMul(b, w) z = Softmax(d) }"""
    model, program, loaded = compiled(text, tmp_path, w=noise(8, 8))
    assert len(program.report["activation_bytes"]) == 2
    for c in (True, False):
        check(model, loaded, {"x": noise(4, 8), "c": np.array(c)})


def test_kernels_can_be_seen_one_by_one(tmp_path):
    _, _, loaded = compiled(MLP, tmp_path, w=noise(8, 8))
    feeds, seen = {"x": noise(2, 8)}, []
    expected = loaded.run(feeds)
    loaded._session.instrument(lambda _function, name, before, *_: seen.append(name) if before else None)
    got = loaded.run(feeds)
    loaded._session.instrument(None)
    assert sum(name.startswith(("dense", "gemm")) for name in seen) == 2
    del seen[:]
    for name, array in loaded.run(feeds).items():
        np.testing.assert_array_equal(array, expected[name])
        np.testing.assert_array_equal(got[name], expected[name])
    assert not seen


def test_many_shapes_leave_no_memory_behind(tmp_path):
    """Each size of workspace is kept for the next call of that size, until many were met."""
    text = """g (float[N,64] x, float[64,64] w) => (float[N,64] z) {
        a = MatMul(x, w) b = Softmax(a) c = MatMul(b, w) z = Softmax(c) }"""
    model, _, loaded = compiled(text, tmp_path, w=noise(64, 64))
    check(model, loaded, {"x": noise(5, 64)})
    before = resident()
    for n in range(1000, 9000, 40):
        loaded.run({"x": np.zeros((n, 64), np.float32)})
    assert resident() - before < 300e6  # all 200 workspaces would be 500 MB, and the results half of that


def test_every_function_says_that_its_buffers_do_not_overlap(monkeypatch):
    """TVM takes the word of a module's last function for all: without it accumulators live in memory, at half speed."""
    from tvm import tirx

    seen: list[dict[str, bool]] = []
    build = tirx.build

    def spy(module, *arguments, **options):
        seen.append({v.name_hint: "tirx.noalias" in f.attrs for v, f in module.functions_items()})
        return build(module, *arguments, **options)

    monkeypatch.setattr(tirx, "build", spy)
    Llvm(threads=1).build(load(get("digits").path()), Context())
    (functions,) = seen
    assert any(name.startswith("shape_func") for name in functions), "the function that did not say so"
    assert all(functions.values()), functions
