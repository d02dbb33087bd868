"""The kernel library against onnxruntime over generated shapes: odd channels, strides, paddings, epilogues.

Whole nodes go through the plan and the lowering, so that packing, layout and fusion are tested with the kernels.
"""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt import oracle
from graphopt.base import Context
from graphopt.graph import normalise
from graphopt.targets.llvm import Llvm
from graphopt.targets.llvm.cpu import Cpu, resolve
from graphopt.targets.llvm.kernels import tile
from graphopt.targets.llvm.kernels.emit import Isa, pieces, registers
from graphopt.targets.llvm.plan import choice, plan
from graphopt.targets.lowering.canonical import canonicalise
from graphopt.testing import random_feeds

# No shrinking: each example compiles a model, and a failure must be told in seconds.
EXAMPLES = settings(
    phases=[Phase.explicit, Phase.generate],
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    fan_in = int(np.prod(shape[1:])) or 1
    return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def model_of(
    nodes: list[ir.Node], inputs: list[ir.Value], output: ir.Value, constants: dict[str, np.ndarray]
) -> ir.Model:
    output.type = ir.TensorType(ir.DataType.FLOAT)
    values = [ir.val(n, const_value=ir.tensor(a, name=n)) for n, a in constants.items()]
    by_name = {v.name: v for v in values}
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name in by_name:
                node.replace_input_with(index, by_name[value.name])
    graph = ir.Graph(inputs, [output], nodes=nodes, initializers=values, opset_imports={"": 17}, name="g")
    return normalise(ir.Model(graph, ir_version=8))


def same_as_onnxruntime(model: ir.Model, rtol: float, kernels: int = 1) -> None:
    from graphopt.artifact import assemble

    planned = canonicalise(model.clone())
    assert len(plan(planned, resolve("native"), parallel=False)) >= kernels, "the kernels under test were not chosen"
    program = Llvm(threads=1).build(model, Context())
    feeds = random_feeds(model)
    want = oracle.run(model, feeds)
    with assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        got = executable.run(feeds)
    for name, expected in want.items():
        error = np.abs(got[name] - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30)
        assert error <= rtol, f"{name} is off by {error:.2e}"


@st.composite
def convolutions(draw: st.DrawFn):
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    strides, dilations = (draw(st.tuples(st.integers(1, 3), st.integers(1, 2))) for _ in range(2))
    pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
    size = tuple(d * (k - 1) + 1 + draw(st.integers(0, 20)) for k, d in zip(kernel, dilations, strict=True))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    return kernel, strides, dilations, pads, size, group, draw(st.integers(1, 20)), draw(st.integers(1, 40))


ACTIVATIONS = {
    "none": [],
    "relu": [("Relu", {})],
    "sigmoid": [("Sigmoid", {})],
    "leaky": [("LeakyRelu", {"alpha": 0.1})],
    "hard-sigmoid": [("HardSigmoid", {"alpha": 0.2, "beta": 0.5})],
    "hard-swish": [("HardSwish", {})],
    "tanh": [("Tanh", {})],
}


def conv_model(case, activation: str, residual: str, seed: int, batch: int | str = 2) -> ir.Model:
    kernel, strides, dilations, pads, size, group, ci, co = case
    rng = np.random.default_rng(seed)
    x = ir.val("x", ir.DataType.FLOAT, [batch, ci * group, *size])
    w, b = ir.val("w"), ir.val("b")
    attributes = {"strides": strides, "dilations": dilations, "pads": pads, "group": group}
    nodes = [ir.node("Conv", [x, w, b], attributes)]
    inputs = [x]
    out = [
        (s + pads[i] + pads[i + 2] - d * (k - 1) - 1) // t + 1
        for i, (s, k, t, d) in enumerate(zip(size, kernel, strides, dilations, strict=True))
    ]

    def add() -> None:
        r = ir.val("r", ir.DataType.FLOAT, [2, co * group, *out])
        inputs.append(r)
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], r]))

    if residual == "before":
        add()
    for op, options in ACTIVATIONS[activation]:
        nodes.append(ir.node(op, [nodes[-1].outputs[0]], options))
    if residual == "after":
        add()
    constants = {"w": weights(rng, co * group, ci, *kernel), "b": rng.standard_normal(co * group).astype(np.float32)}
    return model_of(nodes, inputs, nodes[-1].outputs[0], constants)


@EXAMPLES
@given(convolutions(), st.sampled_from(sorted(ACTIVATIONS)), st.sampled_from(["", "before", "after"]))
def test_direct_convolution(case, activation: str, residual: str):
    same_as_onnxruntime(conv_model(case, activation, residual, 0), 2e-5)


@EXAMPLES
@given(
    h=st.integers(1, 21),
    w=st.integers(1, 21),
    ci=st.sampled_from([5, 16, 24, 36]),
    co=st.sampled_from([7, 16, 40, 64]),
    pad=st.integers(0, 2),
    large=st.booleans(),
)
def test_winograd(h: int, w: int, ci: int, co: int, pad: int, large: bool, monkeypatch: pytest.MonkeyPatch):
    only = choice.Candidate("winograd4" if large else "winograd2", None, 1.0)
    monkeypatch.setattr(choice, "convolution", lambda *_: [only])
    case = ((3, 3), (1, 1), (1, 1), (pad,) * 4, (h + 2, w + 2), 1, ci, co)
    same_as_onnxruntime(conv_model(case, "relu", "before", 1), 2e-5)


@EXAMPLES
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 700), st.integers(1, 70))
def test_pointwise_convolution(h: int, w: int, ci: int, co: int):
    case = ((1, 1), (1, 1), (1, 1), (0, 0, 0, 0), (h, w), 1, ci, co)
    same_as_onnxruntime(conv_model(case, "relu", "after", 2), 2e-5)


@pytest.mark.parametrize(
    ("h", "k", "co", "batch"),
    [(9, 24, 100, 2), (23, 1030, 200, 1), (23, 1030, 200, "N"), (1, 700, 300, "N"), (7, 512, 480, 1)],
    ids=["small weights", "large weights", "open rows", "fewer rows than a tile", "one block and a rest"],
)
def test_blocks_of_rows(h: int, k: int, co: int, batch: int | str):
    """Each row is computed once, whatever is left over behind whole tiles and whole blocks of them."""
    model = conv_model(((1, 1), (1, 1), (1, 1), (0, 0, 0, 0), (h, h), 1, k, co), "relu", "", 8, batch)
    same_as_onnxruntime(model, 2e-5)


@EXAMPLES
@given(convolutions(), st.integers(1, 50))
def test_depthwise_convolution(case, channels: int):
    kernel, strides, dilations, pads, size, _, _, _ = case
    case = (kernel, strides, dilations, pads, size, channels, 1, 1)
    same_as_onnxruntime(conv_model(case, "relu", "", 3), 2e-5)


@EXAMPLES
@given(st.integers(1, 40), st.integers(1, 1500), st.integers(1, 70), st.booleans(), st.booleans())
def test_dense_layers(rows: int, k: int, co: int, gemm: bool, residual: bool):
    rng = np.random.default_rng(4)
    x = ir.val("x", ir.DataType.FLOAT, [rows, k] if gemm else [2, rows, k])
    inputs = [x]
    if gemm:
        nodes = [ir.node("Gemm", [x, ir.val("w"), ir.val("b")], {"transB": 1})]
        constants = {"w": weights(rng, co, k), "b": rng.standard_normal(co).astype(np.float32)}
    else:
        nodes = [ir.node("MatMul", [x, ir.val("w")])]
        constants = {"w": weights(rng, k, co)}
    if residual:
        r = ir.val("r", ir.DataType.FLOAT, [rows, co] if gemm else [2, rows, co])
        inputs.append(r)
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], r]))
    nodes.append(ir.node("Relu", [nodes[-1].outputs[0]]))
    same_as_onnxruntime(model_of(nodes, inputs, nodes[-1].outputs[0], constants), 2e-5)


@EXAMPLES
@given(convolutions(), st.sampled_from(["MaxPool", "AveragePool"]), st.booleans(), st.integers(1, 40))
def test_pooling(case, op: str, count: bool, channels: int):
    kernel, strides, _, _, size, _, _, _ = case
    x = ir.val("x", ir.DataType.FLOAT, [2, channels, *size])
    pads = [(k - 1) // 2 for k in kernel] * 2
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    if op == "AveragePool":
        attributes["count_include_pad"] = int(count)
    nodes = [ir.node(op, [x], attributes)]
    same_as_onnxruntime(model_of(nodes, [x], nodes[0].outputs[0], {}), 1e-5)


def test_concatenation_swish_and_global_pooling_stay_channels_last():
    """Two branches with odd channel counts, a gated activation, and the turn back to ONNX's order at the end."""
    rng = np.random.default_rng(5)
    x = ir.val("x", ir.DataType.FLOAT, ["N", 5, 9, 9])
    a = ir.node("Conv", [x, ir.val("wa")], {"pads": [1, 1, 1, 1]})
    gate = ir.node("Sigmoid", [a.outputs[0]])
    swish = ir.node("Mul", [a.outputs[0], gate.outputs[0]])
    b = ir.node("Conv", [x, ir.val("wb")])
    both = ir.node("Concat", [swish.outputs[0], b.outputs[0]], {"axis": 1})
    scaled = ir.node("Mul", [both.outputs[0], ir.val("scale")])
    mean = ir.node("GlobalAveragePool", [scaled.outputs[0]])
    constants = {"wa": weights(rng, 7, 5, 3, 3), "wb": weights(rng, 18, 5, 1, 1), "scale": weights(rng, 25, 1, 1)}
    nodes = [a, gate, swish, b, both, scaled, mean]
    model = model_of(nodes, [x], mean.outputs[0], constants)
    same_as_onnxruntime(model, 1e-5, kernels=4)
    planned = canonicalise(model.clone())
    plan(planned, resolve("native"), parallel=False)
    assert sum(n.op_type == "Transpose" for n in planned.graph) == 1, "only the input is turned"


@EXAMPLES
@given(
    counts=st.sampled_from([[3, 18, 40], [16, 16], [1100, 1000], [5] * 9]),
    reader=st.sampled_from(["Conv", "MaxPool", "AveragePool"]),
    cut=st.booleans(),
)
def test_concatenations_and_slices_are_read_where_they_lie(counts: list[int], reader: str, cut: bool):
    """1x1 convolutions and pooling read the parts: no copy, but for more than eight of them."""
    rng = np.random.default_rng(9)
    x = ir.val("x", ir.DataType.FLOAT, [2, 4, 5, 6])
    parts = [ir.node("Conv", [x, ir.val(f"w{i}")]) for i in range(len(counts))]
    constants = {f"w{i}": weights(rng, c, 4, 1, 1) for i, c in enumerate(counts)}
    both = ir.node("Concat", [part.outputs[0] for part in parts], {"axis": 1})
    nodes, value, channels = [*parts, both], both.outputs[0], sum(counts)
    if cut:
        nodes.append(ir.node("Slice", [value, ir.val("one"), ir.val("end"), ir.val("one")]))
        constants |= {"one": np.array([1]), "end": np.array([channels - 1])}
        value, channels = nodes[-1].outputs[0], channels - 2
    if reader == "Conv":
        nodes.append(ir.node("Conv", [value, ir.val("w")]))
        constants["w"] = weights(rng, 20, channels, 1, 1)
    else:
        nodes.append(ir.node(reader, [value], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 1]}))
    model = model_of(nodes, [x], nodes[-1].outputs[0], constants)
    same_as_onnxruntime(model, 2e-5)
    kernels = plan(canonicalise(model.clone()), resolve("native"), parallel=False)
    assert any(symbol.startswith("concat") for symbol in kernels) == (len(counts) > 8)


def test_a_value_that_others_read_is_not_swallowed():
    """The convolution's own result is returned beside its activation: nothing may be fused over it."""
    rng = np.random.default_rng(6)
    x = ir.val("x", ir.DataType.FLOAT, [1, 3, 6, 6])
    conv = ir.node("Conv", [x, ir.val("w")], name="conv")
    relu = ir.node("Relu", [conv.outputs[0]])
    model = model_of([conv, relu], [x], relu.outputs[0], {"w": weights(rng, 4, 3, 3, 3)})
    model.graph.outputs.append(model.graph[0].outputs[0])
    same_as_onnxruntime(model, 1e-5)


def test_two_convolutions_into_one_addition():
    """Only one of them can take the addition along; the other's result is its residual."""
    rng = np.random.default_rng(7)
    x = ir.val("x", ir.DataType.FLOAT, [1, 16, 8, 8])
    a = ir.node("Conv", [x, ir.val("wa")])
    b = ir.node("Conv", [x, ir.val("wb")])
    add = ir.node("Add", [b.outputs[0], a.outputs[0]])
    relu = ir.node("Relu", [add.outputs[0]])
    constants = {"wa": weights(rng, 24, 16, 1, 1), "wb": weights(rng, 24, 16, 1, 1)}
    model = model_of([a, b, add, relu], [x], relu.outputs[0], constants)
    same_as_onnxruntime(model, 1e-5, kernels=2)
    planned = canonicalise(model.clone())
    plan(planned, resolve("native"), parallel=False)
    assert not [n.op_type for n in planned.graph if n.op_type in ("Add", "Relu")]


@given(st.integers(0, 100), st.sampled_from([1, 4, 8, 16]))
def test_pieces_cover_every_element_once(count: int, lanes: int):
    covered = [i for start, width in pieces(count, lanes) for i in range(start, start + width)]
    assert covered == list(range(count))
    assert all(width & (width - 1) == 0 and width <= lanes for _, width in pieces(count, lanes))


@given(st.integers(1, 300), st.integers(1, 100), st.sampled_from([Isa(16, 32), Isa(8, 16), Isa(4, 32), Isa(4, 16)]))
def test_tiles_fit_the_registers(rows: int, cols: int, isa: Isa):
    shape = tile.choose(rows, cols, isa)
    assert shape.rows * shape.cols + shape.cols + 1 <= isa.registers
    assert 1 <= shape.rows <= rows
    assert 1 <= shape.cols <= cols


@pytest.mark.parametrize("mcpu", ["x86-64-v2", "x86-64-v3", "x86-64-v4", "neoverse-n1"])
def test_register_budgets_of_other_cpus(mcpu: str):
    cpu: Cpu = resolve(mcpu)
    assert (cpu.lanes, cpu.registers) == {
        "x86-64-v2": (4, 16), "x86-64-v3": (8, 16), "x86-64-v4": (16, 32), "neoverse-n1": (4, 32),
    }[mcpu]  # fmt: skip


def test_arrays_that_tvm_would_not_put_on_the_stack_are_refused():
    """From 1 KiB on they would be the runtime's memory, and kernels half as fast."""
    with pytest.raises(ValueError, match="don't fit the stack"):
        registers(256)
    with pytest.raises(ValueError, match="don't fit the stack"):
        registers(1024, "uint8")
