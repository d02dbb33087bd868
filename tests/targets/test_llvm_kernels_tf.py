"""What transformers are made of, against onnxruntime over generated shapes: GELU as exporters write it, biases."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt import oracle
from graphopt.base import Context
from graphopt.graph import normalise
from graphopt.targets.llvm import Llvm
from graphopt.targets.llvm.cpu import resolve
from graphopt.targets.llvm.plan import plan
from graphopt.targets.lowering.canonical import canonicalise

EXAMPLES = settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Graph:
    """Nodes one after the other; constants are arrays."""

    def __init__(self, seed: int, **inputs: list[int | str]) -> None:
        self.rng = np.random.default_rng(seed)
        self.inputs = {name: ir.val(name, ir.DataType.FLOAT, shape) for name, shape in inputs.items()}
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def __getitem__(self, name: str) -> ir.Value:
        return self.inputs[name]

    def weights(self, *shape: int) -> np.ndarray:
        return (self.rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    def __call__(self, op: str, *operands: ir.Value | np.ndarray | float, **attributes) -> ir.Value:
        values = [v if isinstance(v, ir.Value) else self.constant(v) for v in operands]
        self.nodes.append(ir.node(op, values, attributes))
        return self.nodes[-1].outputs[0]

    def constant(self, array: np.ndarray | float) -> ir.Value:
        array = np.asarray(array, np.float32) if not isinstance(array, np.ndarray) else array
        name = f"c{len(self.constants)}"
        tensor = ir.tensor(array, name=name)
        self.constants.append(ir.val(name, tensor.dtype, list(array.shape), const_value=tensor))
        return self.constants[-1]

    def model(self, *outputs: ir.Value) -> ir.Model:
        for value in outputs:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            list(self.inputs.values()), outputs, nodes=self.nodes, initializers=self.constants,
            opset_imports={"": 17}, name="g",
        )  # fmt: skip
        return normalise(ir.Model(graph, ir_version=8))


def check(model: ir.Model, feeds: dict[str, np.ndarray], rtol: float, left: set[str] | None = None, mcpu="native"):
    """The compiled model gives what onnxruntime gives, and after planning only operators in `left` are left."""
    from graphopt.artifact import assemble

    planned = canonicalise(model.clone())
    plan(planned, resolve(mcpu), parallel=False)
    others = {node.op_type for node in planned.graph} - {"CallPacked"}
    assert left is None or others <= left, f"not taken by kernels: {others}"
    program = Llvm(mcpu=mcpu, threads=1).build(model, Context())
    with assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        want, got = oracle.run(model, feeds), executable.run(feeds)
    for name, expected in want.items():
        error = np.abs(got[name] - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30)
        assert error <= rtol, f"{name} is off by {error:.2e}"


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def gelu_erf(g: Graph, x: ir.Value) -> ir.Value:
    return g("Mul", g("Mul", x, g("Add", g("Erf", g("Div", x, 2**0.5)), 1.0)), 0.5)


def gelu_tanh(g: Graph, x: ir.Value) -> ir.Value:
    cube = g("Mul", x, g("Mul", x, g("Mul", 0.044715, x)))
    gate = g("Mul", 0.5, g("Add", 1.0, g("Tanh", g("Mul", 0.7978845608, g("Add", x, cube)))))
    return g("Mul", x, gate)


def gelu_pow(g: Graph, x: ir.Value) -> ir.Value:
    inner = g("Add", x, g("Mul", g("Pow", x, 3.0), 0.044715))
    return g("Mul", g("Mul", x, 0.5), g("Add", g("Tanh", g("Mul", inner, 0.7978845608)), 1.0))


def softplus_like(g: Graph, x: ir.Value) -> ir.Value:
    e = g("Exp", g("Neg", g("Abs", x)))
    return g("Div", g("Add", g("Max", x, 0.0), g("Sqrt", e)), g("Add", g("Reciprocal", g("Add", e, 1.0)), 2.0))


def swish(g: Graph, x: ir.Value) -> ir.Value:
    return g("Mul", g("Sigmoid", g("Mul", x, 1.0)), x)


FORMULAS = [gelu_erf, gelu_tanh, gelu_pow, softplus_like, swish]


@EXAMPLES
@given(st.integers(1, 40), st.integers(1, 80), st.sampled_from(FORMULAS), st.booleans(), st.booleans())
def test_dense_layer_with_bias_residual_and_formula(rows: int, co: int, formula, bias: bool, residual: bool):
    g = Graph(0, x=[1, rows, 24], r=[1, rows, co])
    y = g("MatMul", g["x"], g.weights(24, co))
    y = g("Add", normal(1, co), y) if bias else y
    y = formula(g, g("Add", y, g["r"]) if residual else y)
    check(g.model(y), {"x": normal(2, 1, rows, 24, scale=2.0), "r": normal(3, 1, rows, co)}, 1e-5, left=set())


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("mcpu", ["native", "x86-64-v3"])
def test_formula_over_a_wide_range(formula, mcpu: str):
    """An identity as the matrix product: the formula itself, from -30 to 30."""
    g = Graph(0, x=[3, 21])
    y = formula(g, g("MatMul", g["x"], np.eye(21, dtype=np.float32)))
    check(g.model(y), {"x": np.linspace(-30, 30, 63, dtype=np.float32).reshape(3, 21)}, 1e-6, left=set(), mcpu=mcpu)


def test_formula_stops_where_others_read():
    """The inner sum is returned as well: what follows it is not the product's own."""
    g = Graph(0, x=[3, 21])
    x = g("MatMul", g["x"], g.weights(21, 21))
    inner = g("Add", g("Erf", x), 1.0)
    check(g.model(g("Mul", x, inner), inner), {"x": normal(1, 3, 21)}, 1e-5)


@EXAMPLES
@given(st.integers(1, 300), st.integers(1, 5), st.sampled_from(["native", "x86-64-v3"]))
def test_softmax(size: int, rows: int, mcpu: str):
    g = Graph(0, x=[2, rows, size])
    check(g.model(g("Softmax", g["x"], axis=-1)), {"x": normal(1, 2, rows, size, scale=10.0)}, 1e-6, set(), mcpu)


@EXAMPLES
@given(st.integers(2, 300), st.integers(1, 5), st.sampled_from(["native", "x86-64-v3"]))
def test_layer_normalization(size: int, rows: int, mcpu: str):
    g = Graph(0, x=[2, "N", size])
    y = g("LayerNormalization", g["x"], normal(1, size), normal(2, size), axis=-1, epsilon=1e-5)
    check(g.model(y), {"x": normal(3, 2, rows, size) + 5}, 1e-5, set(), mcpu)


def attention_graph(n, heads, tq, tk, dk, dv, mask, joined: bool, scale: str) -> Graph:
    """softmax(scale Q K' + mask) V; `joined` heads are [N, T, H * D] before and after, as exporters have them."""
    if joined:
        g = Graph(0, q=[n, tq, heads * dk], k=[n, tk, heads * dk], v=[n, tk, heads * dv])
        turn = [("q", dk, [0, 2, 1, 3]), ("k", dk, [0, 2, 3, 1]), ("v", dv, [0, 2, 1, 3])]
        q, k, v = (
            g("Transpose", g("Reshape", g[name], np.array([0, 0, heads, d], np.int64)), perm=perm)
            for name, d, perm in turn
        )
    else:
        g = Graph(0, q=[n, heads, tq, dk], k=[n, heads, tk, dk], v=[n, heads, tk, dv])
        q, k, v = g["q"], g("Transpose", g["k"], perm=[0, 1, 3, 2]), g["v"]
    if scale == "before":
        q = g("Mul", q, dk**-0.5)
    s = g("MatMul", q, k)
    if scale == "after":
        s = g("Div", s, dk**0.5)
    if mask is not None:
        g.inputs["mask"] = ir.val("mask", ir.DataType.FLOAT, mask)
        s = g("Add", s, g["mask"])
    y = g("MatMul", g("Softmax", s, axis=-1), v)
    if joined:
        y = g("Reshape", g("Transpose", y, perm=[0, 2, 1, 3]), np.array([0, 0, heads * dv], np.int64))
    g.output = y
    return g


def attention_feeds(g: Graph, **sizes: int) -> dict[str, np.ndarray]:
    shapes = {name: [sizes.get(str(d), d) for d in v.shape] for name, v in g.inputs.items()}
    feeds = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    if "mask" in feeds:
        feeds["mask"] = np.where(feeds["mask"] > 0.7, -1e9, feeds["mask"]).astype(np.float32)
    return feeds


SIZES = st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 45)] * 2, *[st.integers(1, 40)] * 2)


@EXAMPLES
@given(
    SIZES, st.sampled_from(["", "keys", "full", "heads"]), st.booleans(), st.sampled_from(["", "before", "after"]),
    st.sampled_from(["native", "x86-64-v3"]),
)  # fmt: skip
def test_attention(sizes, masked: str, joined: bool, scale: str, mcpu: str):
    n, heads, tq, tk, dk, dv = sizes
    tk += 1
    mask = {"": None, "keys": [n, 1, 1, tk], "full": [1, 1, tq, tk], "heads": [n, heads, tq, tk]}[masked]
    g = attention_graph(n, heads, tq, tk, dk, dv, mask, joined, scale)
    left = {"Reshape", "Mul"} if joined else {"Mul"}
    check(g.model(g.output), attention_feeds(g), 1e-5, left, mcpu)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_any_batch_and_length(masked: bool):
    g = attention_graph("N", 3, "T", "T", 12, 20, ["N", 1, 1, "T"] if masked else None, True, "after")
    model = g.model(g.output)
    for n, t in ((1, 1), (2, 37), (3, 64)):
        check(model, attention_feeds(g, N=n, T=t), 1e-5, {"Reshape"})


def test_rows_whose_symbols_change_their_names():
    """The graph's output calls its rows otherwise than its input does."""
    g = Graph(0, x=["N", "T", 24])
    y = g("LayerNormalization", g("MatMul", g["x"], g.weights(24, 24)), normal(1, 24), normal(2, 24), axis=-1)
    y = g("Softmax", y, axis=-1)
    y.shape = ir.Shape(["rows", None, 24])
    check(g.model(y), {"x": normal(3, 2, 5, 24)}, 1e-5, set())


@pytest.mark.parametrize("end", [10**9, 2**31 - 1])
def test_a_slice_to_the_end_keeps_the_name_of_the_batch(end: int):
    """As tf2onnx writes it; what was sliced meets what was not, once shapes are computed from both."""
    g = Graph(0, x=["N", 6, 8])
    y = g("Slice", g["x"], *[np.array(v, np.int64) for v in ([0, 0], [end, end], [0, 1])])
    y = g("ReduceMax", g("MatMul", y, g.weights(8, 8)), axes=[1], keepdims=0)
    shape = g(
        "Concat", g("Slice", g("Shape", g["x"]), *[np.array([v], np.int64) for v in (0, 1)]), np.array([1]), axis=0
    )
    model = g.model(g("Sub", y, g("Expand", g("Sqrt", np.ones(1, np.float32)), shape)))
    for n in (1, 3):
        check(model, {"x": normal(n, n, 6, 8)}, 1e-5)


@pytest.mark.parametrize("pool", ["GlobalMaxPool", "GlobalAveragePool", None])
def test_squeeze_moves_behind_what_follows_a_convolution(pool):
    """Bias, GELU and pooling after a one-dimensional convolution written as a two-dimensional one."""
    g = Graph(0, x=[2, 7, 19, 1])
    y = g("Conv", g["x"], g.weights(21, 7, 5, 1), kernel_shape=[5, 1])
    whole = [np.array(v, np.int64) for v in ([0, 0], [21, 15], [1, 2])]
    y = g("Squeeze", g("Slice", y, *whole), np.array([3], np.int64))
    y = gelu_tanh(g, g("Add", y, normal(1, 1, 21, 1)))
    y = y if pool is None else g(pool, y)
    check(g.model(y), {"x": normal(2, 2, 7, 19, 1)}, 1e-5, {"Transpose", "Squeeze", "Reshape"})


def test_squeeze_stays_where_it_is_read():
    """The squeezed value is returned as well, and a sum with another value than a convolution's keeps its shape."""
    g = Graph(0, x=[2, 7, 19, 1], r=[2, 5, 19])
    y = g("Squeeze", g("Conv", g["x"], g.weights(5, 7, 1, 1)), np.array([3], np.int64))
    check(g.model(g("Relu", g("Add", y, g["r"])), y), {"x": normal(2, 2, 7, 19, 1), "r": normal(3, 2, 5, 19)}, 1e-5)


def test_rows_of_any_number():
    """One artifact for every number of rows: whole tiles, and what is left of each size."""
    from graphopt.artifact import assemble

    g = Graph(0, x=["N", 40])
    model = g.model(gelu_erf(g, g("Add", g("MatMul", g["x"], g.weights(40, 70)), normal(1, 70))))
    program = Llvm(threads=1).build(model, Context())
    with assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        for rows in range(1, 34):
            feeds = {"x": normal(rows, rows, 40)}
            (want,), (got,) = oracle.run(model, feeds).values(), executable.run(feeds).values()
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_position_embeddings_keep_the_length_s_name():
    """Token types and positions as BERT's exporters have them: all rows are called as the input's, attention is met."""
    g = Graph(0, x=["N", "T", 24], mask=["N", 1, 1, "T"])
    shape = g("Shape", g["x"])
    n, t = (g("Unsqueeze", g("Gather", shape, np.array(i, np.int64)), np.array([0], np.int64)) for i in (0, 1))
    zero, one = np.array([0], np.int64), np.array([1], np.int64)
    positions = g("Slice", np.arange(50, dtype=np.int64)[None], zero, t, one, one)
    kinds = g("Slice", np.zeros((1, 50), np.int64), zero, t, one, one)
    both = g("Concat", n, t, axis=0)
    target = g("Where", g("Equal", both, np.array([-1, -1], np.int64)), np.array([1, 1], np.int64), both)
    x = g("Add", g("Add", g["x"], g("Gather", g.weights(2, 24), g("Expand", kinds, target))),
          g("Gather", g.weights(50, 24), positions))  # fmt: skip
    q, k, v = (
        g("Transpose", g("Reshape", g("MatMul", x, g.weights(24, 24)), np.array([0, 0, 3, 8], np.int64)), perm=perm)
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    y = g("MatMul", g("Softmax", g("Add", g("MatMul", q, k), g["mask"]), axis=-1), v)
    model = g.model(g("Reshape", g("Transpose", y, perm=[0, 2, 1, 3]), np.array([0, 0, 24], np.int64)))
    planned = canonicalise(model.clone())
    plan(planned, resolve("native"), parallel=False)
    assert not {"Softmax", "Transpose", "MatMul"} & {node.op_type for node in planned.graph}
    check(model, {"x": normal(1, 2, 7, 24), "mask": normal(2, 2, 1, 1, 7)}, 1e-5)


@EXAMPLES
@given(st.integers(1, 70), st.booleans(), st.booleans(), st.booleans())
def test_layer_normalization_written_out(size: int, product: bool, scaled: bool, shifted: bool):
    g = Graph(0, x=["N", 3, size])
    centred = g("Sub", g["x"], g("ReduceMean", g["x"], axes=[-1]))
    square = g("Mul", centred, centred) if product else g("Pow", centred, 2.0)
    y = g("Div", centred, g("Sqrt", g("Add", g("ReduceMean", square, axes=[2]), 1e-5)))
    y = g("Mul", y, normal(1, size)) if scaled else y
    y = g("Add", normal(2, size), y) if shifted else y
    check(g.model(y), {"x": normal(3, 2, 3, size) + 2}, 1e-5, set())


def test_other_normalizations_are_left_alone():
    """The mean of another axis in one place, and a centred value that is not the squared one."""
    for axis, twisted in ((1, False), (2, True)):
        g = Graph(0, x=[2, 9, 9])
        centred = g("Sub", g["x"], g("ReduceMean", g["x"], axes=[2]))
        square = g("Pow", g["x"] if twisted else centred, 2.0)
        y = g("Div", centred, g("Sqrt", g("Add", g("ReduceMean", square, axes=[axis]), 1e-5)))
        check(g.model(y), {"x": normal(3, 2, 9, 9) + 2}, 1e-5)


@pytest.mark.parametrize("mcpu", ["x86-64-v2", "neoverse-n1"])
def test_machine_code_for_other_registers(mcpu: str):
    """Vectors of 4 lanes, with 16 registers and with 32."""
    from graphopt.targets.llvm.pipeline import compile_module
    from graphopt.targets.lowering import lower

    g = attention_graph("N", 2, "T", "T", 9, 21, ["N", 1, 1, "T"], True, "after")
    y = g("LayerNormalization", g("MatMul", g.output, g.weights(42, 30)), normal(1, 30), normal(2, 30), axis=-1)
    cpu, kernels = resolve(mcpu), {}
    lowered = lower(g.model(gelu_erf(g, y)), lambda canonical: kernels.update(plan(canonical, cpu, parallel=False)))
    assert {name.rpartition("_")[0] for name in kernels} >= {"attention", "dense", "layer_norm"}
    assert not compile_module(lowered, kernels, cpu, parallel=False).unscheduled


def test_what_a_kernel_replaced_is_not_computed_once_more():
    """A residual is noted before the kernel of its producer takes its place; two blocks of a pre-norm transformer."""
    g = Graph(17, x=["N", 6, 24])
    y = g["x"]
    for _ in range(2):
        y = g("Add", y, g("MatMul", gelu_erf(g, g("MatMul", y, g.weights(24, 40))), g.weights(40, 24)))
        y = g("LayerNormalization", y, np.ones(24, np.float32), np.zeros(24, np.float32), axis=-1)
    check(g.model(g("Add", y, g["x"])), {"x": normal(18, 2, 6, 24)}, 1e-5, left={"Add"})
