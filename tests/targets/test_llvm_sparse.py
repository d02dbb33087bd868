"""Sparse kernels: against onnxruntime over shapes and patterns, and when they are chosen."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt.base import Context
from graphopt.targets.llvm import Llvm
from graphopt.targets.llvm.cpu import resolve
from graphopt.targets.llvm.kernels.sparse_pattern import Lines, Pattern, grouped
from graphopt.targets.llvm.kernels.window import Conv
from graphopt.targets.llvm.plan import sparse
from graphopt.targets.llvm.plan.choice import Candidate
from graphopt.testing import from_text

# No shrinking: each example compiles a model, and a failure must be told in seconds.
EXAMPLES = settings(
    phases=[Phase.explicit, Phase.generate],
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def zeros(rng: np.random.Generator, shape, density: float, block: int = 1) -> np.ndarray:
    """Random weights of which `density` are not zero, `block` along the first axis at a time."""
    kept = rng.random((-(-shape[0] // block), *shape[1:])) < density
    w = np.where(np.repeat(kept, block, 0)[: shape[0]], rng.standard_normal(shape), 0)
    return w.astype(np.float32)


def pattern(c: Conv, w: np.ndarray, width: int, vectors: int, outputs: int, unroll: int, inner: int, chunk: int):
    inner = min(inner, c.ci)
    used = grouped(w, outputs)[1].sum(axis=(2, 3))
    counts = np.add.reduceat(used, np.arange(0, c.ci, inner), axis=1)
    return Pattern(c, width, vectors, outputs, unroll, inner, int((-(-counts // unroll) * unroll).sum()), chunk)


@pytest.fixture
def only_sparse(monkeypatch: pytest.MonkeyPatch):
    """Every layer with a sparse kernel, of the shape that `shape` was called with."""
    chosen = {}

    def beside(dense, layer, isa, parallel):
        if layer.conv.group > 1:
            return dense
        return [Candidate("sparse", None, 1.0, pattern(layer.conv, layer.weight, **chosen))]

    monkeypatch.setattr(sparse, "beside", beside)
    return chosen.update


SHAPES = {
    "width": st.sampled_from([16, 8, 4]),
    "vectors": st.integers(1, 4),
    "outputs": st.sampled_from([1, 2, 4]),
    "unroll": st.sampled_from([1, 2, 3]),
    "inner": st.integers(1, 24),
    "chunk": st.sampled_from([16, 32, 64]),
}


@EXAMPLES
@given(
    n=st.sampled_from([1, 2, '"n"']),
    ci=st.integers(1, 21),
    co=st.sampled_from([1, 7, 16, 19, 40]),
    size=st.tuples(st.integers(5, 13), st.integers(5, 19)),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 4), (1, 3)]),
    strides=st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3)]),
    dilations=st.sampled_from([(1, 1), (2, 1)]),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    density=st.sampled_from([0.0, 0.1, 0.5]),
    rest=st.sampled_from(["y = Relu(c)", "a = Add(c, r)  y = Relu(a)", "t = Sigmoid(c)  y = Add(t, r)"]),
    shape=st.fixed_dictionaries(SHAPES),
)
def test_convolutions(check, only_sparse, n, ci, co, size, kernel, strides, dilations, pads, density, rest, shape):
    """Strides (phases), dilations and uneven borders; parts of vectors, tiles, groups, blocks and chunks left over."""
    n = 2 if n == '"n"' else n
    only_sparse(shape)
    rng = np.random.default_rng(0)
    oh, ow = (
        (s + a + b - (k - 1) * d - 1) // t + 1
        for s, a, b, k, d, t in zip(size, pads[:2], pads[2:], kernel, dilations, strides, strict=True)
    )
    w = zeros(rng, (co, ci, *kernel), density)
    text = f"""g (float[{n},{ci},{size[0]},{size[1]}] x, float[{n},{co},{oh},{ow}] r,
                  float[{co},{ci},{kernel[0]},{kernel[1]}] w, float[{co}] b) => (float[{n},{co},{oh},{ow}] y) {{
        c = Conv<pads = {[*pads]}, strides = {[*strides]}, dilations = {[*dilations]}>(x, w, b)  {rest} }}"""
    check(text, left=None, w=w, b=rng.standard_normal(co).astype(np.float32))


@EXAMPLES
@given(
    rows=st.sampled_from([(1,), (5,), (16,), (3, 11), ("N", 6), (47,)]),
    k=st.integers(1, 50),
    co=st.sampled_from([1, 5, 16, 33, 64]),
    kind=st.sampled_from(["gemm", "transposed", "matmul"]),
    density=st.sampled_from([0.0, 0.05, 0.4]),
    shape=st.fixed_dictionaries(SHAPES),
    mcpu=st.sampled_from(["native", "x86-64-v3"]),
)
def test_products(check, only_sparse, rows, k, co, kind, density, shape, mcpu: str):
    """Gemm, with transB too, and MatMul with the bias behind it; one row, and an open batch."""
    only_sparse(
        {**shape, "width": 1 if rows == (1,) else shape["width"], "vectors": 1 if rows == (1,) else shape["vectors"]}
    )
    rng = np.random.default_rng(0)
    w = zeros(rng, (k, co), density)
    lead = ",".join(map(str, rows))
    b = rng.standard_normal(co).astype(np.float32)
    if kind == "matmul" or len(rows) > 1:
        body, weight = "c = MatMul(x, w) d = Add(c, b) y = Relu(d)", f"float[{k},{co}] w"
    elif kind == "gemm":
        body, weight = "c = Gemm(x, w, b) y = Relu(c)", f"float[{k},{co}] w"
    else:
        body, weight, w = "y = Gemm<transB = 1>(x, w, b)", f"float[{co},{k}] w", np.ascontiguousarray(w.T)
    feeds = {"x": rng.standard_normal([2 if d == "N" else d for d in rows] + [k]).astype(np.float32)}
    check(f"g (float[{lead},{k}] x, {weight}, float[{co}] b) => (float[{lead},{co}] y) {{ {body} }}",
          mcpu, None, feeds=feeds, w=w, b=b)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    co=st.integers(1, 40), ci=st.integers(1, 30), taps=st.integers(1, 5), density=st.sampled_from([0.0, 0.1, 0.6]),
    shape=st.fixed_dictionaries(SHAPES),
)  # fmt: skip
def test_packed_weights_are_all_of_them(co: int, ci: int, taps: int, density: float, shape: dict[str, int]):
    """Every weight that is not zero is stored once, at its input's place, under its output channel."""
    c = Conv(1, 1, 40, ci, co, (1, taps))
    w = zeros(np.random.default_rng(0), (co, ci, 1, taps), density)
    p = pattern(c, w, **shape)
    values, places, starts, targets = p.pack(w)
    assert len(values) == p.stored * p.outputs
    found = np.zeros((p.rows, ci * len(p.lines.phases) * p.lines.step))
    for entry, (begin, end) in enumerate(itertools.pairwise(starts)):
        turn = entry % p.groups
        group = turn // (p.chunk // p.outputs) * (p.chunk // p.outputs) + targets[entry]
        for j in range(begin * p.unroll, end * p.unroll):
            found[group * p.outputs : (group + 1) * p.outputs, places[j]] += values[j * p.outputs : (j + 1) * p.outputs]
    want = np.zeros_like(found)
    want[:co, Lines(c).places().reshape(-1)] = w.reshape(co, -1)
    np.testing.assert_array_equal(found, want)


def build(w: np.ndarray, rows: int, **options):
    k, co = w.shape
    model = from_text(
        '<ir_version: 9, opset_import: ["": 17]> '
        f"g (float[{rows},{k}] x, float[{k},{co}] w) => (float[{rows},{co}] y) {{ y = MatMul(x, w) }}",
        w=w,
    )
    model.graph.node(0).name = "product"
    return Llvm(threads=1, **options).build(model, Context())


def test_chosen_where_it_pays_and_the_report_says_so():
    rng = np.random.default_rng(0)
    few = build(zeros(rng, (512, 512), 0.1), 128)
    (how,) = few.report["choices"].values()
    assert how["candidate"].startswith("sparse")
    assert (
        "90.0% of 262144 weights are zero" in few.report["sparse"]["product"]
        or "89." in few.report["sparse"]["product"]
    )
    assert "gemm" in few.report["sparse"]["product"]
    dense = build(zeros(rng, (512, 512), 0.7), 128)
    assert dense.report["sparse"] == {}
    assert next(iter(dense.report["choices"].values()))["candidate"].startswith("gemm")


def test_small_products_in_the_cache_stay_dense():
    """One row and half of the weights: the dense kernel reads 16 weights at once, the sparse one 1."""
    program = build(zeros(np.random.default_rng(0), (512, 512), 0.5), 1)
    assert program.report["sparse"]["product"].startswith("gemm")


def test_packed_weights_are_a_fraction():
    rng = np.random.default_rng(0)
    program = build(zeros(rng, (1024, 1024), 0.1), 64)
    assert sum(a.nbytes for a in program.weights.values()) <= 0.25 * 4 * 1024 * 1024


def test_blocks_of_output_channels_share_inputs():
    w = np.ascontiguousarray(zeros(np.random.default_rng(0), (256, 512), 0.1, block=4).T)
    (how,) = build(w, 128).report["choices"].values()
    assert how["candidate"].endswith("x4")
    (how,) = build(zeros(np.random.default_rng(0), (512, 256), 0.1), 128).report["choices"].values()
    assert how["candidate"].endswith("x1")


def test_equal_shapes_of_other_patterns_are_other_kernels(check):
    rng = np.random.default_rng(0)
    a, b = zeros(rng, (256, 256), 0.05), zeros(rng, (256, 256), 0.1)
    check(
        "g (float[64,256] x, float[256,256] a, float[256,256] b) => (float[64,256] y) "
        "{ h = MatMul(x, a) y = MatMul(h, b) }",
        a=a, b=b,
    )  # fmt: skip


def test_tuned_on_its_own_weights(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Random numbers in place of the tables would be read as places far outside the input."""
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path))
    program = build(zeros(np.random.default_rng(0), (512, 512), 0.38), 128, tune=True)
    (how,) = program.report["choices"].values()
    assert any(name.startswith("sparse") for name in how["candidates_us"])
    assert all(time > 0 for time in how["candidates_us"].values())


def test_threads(check):
    """Chunks of output channels are shared out where there are few tiles."""
    w = zeros(np.random.default_rng(0), (512, 300), 0.1)
    layer = sparse.Layer(Conv(1, 1, 64, 512, 300, (1, 1)), w.T[:, :, None, None])
    cpu = resolve("native")
    from graphopt.targets.llvm.kernels.emit import Isa

    (found,) = sparse.sparse(layer, Isa(cpu.lanes, cpu.registers, cpu.features), parallel=True)
    assert found.pattern is not None
    assert found.pattern.chunks >= 4
    model = from_text(
        '<ir_version: 9, opset_import: ["": 17]> '
        "g (float[64,512] x, float[512,300] w) => (float[64,300] y) { y = MatMul(x, w) }", w=w,
    )  # fmt: skip
    import graphopt

    x = np.random.default_rng(1).standard_normal((64, 512), np.float32)
    np.testing.assert_allclose(graphopt.compile(model, "llvm")(x), x @ w, rtol=0, atol=1e-4)
