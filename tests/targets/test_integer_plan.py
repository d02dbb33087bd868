"""Quantized graphs run on integer kernels, within one step of onnxruntime's exact integer mode."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphopt.artifact import assemble
from graphopt.base import Context
from graphopt.graph import normalise
from graphopt.targets.llvm import Llvm
from graphopt.targets.llvm.cpu import resolve
from graphopt.targets.llvm.plan import plan
from graphopt.targets.llvm.plan.integer import choose
from graphopt.targets.lowering.canonical import canonicalise


class Net:
    """A QDQ graph under construction: values are float, with pairs where they are asked for."""

    def __init__(self, seed: int = 0, activation: type = np.uint8) -> None:
        self.rng = np.random.default_rng(seed)
        self.activation = activation
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.inputs: list[ir.Value] = []

    def constant(self, array) -> ir.Value:
        array = np.asarray(array)
        name = f"c{len(self.constants)}"
        value = ir.val(name, ir.DataType.from_numpy(array.dtype), array.shape, const_value=ir.tensor(array, name=name))
        self.constants.append(value)
        return value

    def input(self, *shape) -> ir.Value:
        self.inputs.append(ir.val(f"x{len(self.inputs)}", ir.DataType.FLOAT, list(shape)))
        return self.inputs[-1]

    def op(self, name: str, *inputs, **attributes) -> ir.Value:
        node = ir.node(name, list(inputs), attributes, name=f"n{len(self.nodes)}")
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def pair(self, x: ir.Value, scale: float, zero: int) -> ir.Value:
        shifted = zero - 128 if self.activation is np.int8 else zero
        s, z = self.constant(np.float32(scale)), self.constant(self.activation(shifted))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, s, z), s, z)

    def weight(self, *shape, axis=0) -> ir.Value:
        q = self.rng.integers(-127, 128, shape).astype(np.int8)
        scale = (self.rng.uniform(0.5, 2, shape[axis]) / (60 * np.sqrt(q.size / shape[axis]))).astype(np.float32)
        zero = np.zeros(shape[axis], np.int8)
        return self.op("DequantizeLinear", self.constant(q), self.constant(scale), self.constant(zero), axis=axis)

    def conv(self, x: ir.Value, *shape, **attributes) -> ir.Value:
        bias = self.constant(self.rng.standard_normal(shape[0]).astype(np.float32))
        return self.op("Conv", x, self.weight(*shape), bias, **attributes)

    def model(self, *outputs: ir.Value) -> ir.Model:
        for value in outputs:
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            self.inputs, outputs, nodes=self.nodes, initializers=self.constants, opset_imports={"": 17}, name="g"
        )
        return normalise(ir.Model(graph, ir_version=8))


def exact(model: ir.Model, feeds):
    """onnxruntime without fusions: the float arithmetic that the pairs define."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, feeds)


def symbols(model: ir.Model, mcpu: str = "native") -> list[str]:
    return list(plan(canonicalise(model.clone()), resolve(mcpu), parallel=False))


def compare(model: ir.Model, step: float, sizes=None, steps: float = 1.0) -> None:
    rng = np.random.default_rng(5)
    feeds = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape]
        feeds[str(value.name)] = rng.standard_normal(shape).astype(np.float32)
    program = Llvm(threads=1).build(model, Context())
    with assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        got = executable.run(feeds)
    for value, want in zip(model.graph.outputs, exact(model, feeds), strict=True):
        assert want.std() > 3 * step, "a test of nothing"
        np.testing.assert_allclose(got[str(value.name)], want, rtol=0, atol=steps * step * 1.001)


@pytest.mark.parametrize("activation", [np.uint8, np.int8])
def test_chain_of_convolutions(activation):
    net = Net(activation=activation)
    x = net.pair(net.input(2, 3, 19, 17), 0.03, 120)
    y = net.pair(net.op("Relu", net.conv(x, 16, 3, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1])), 0.02, 7)
    y = net.pair(net.conv(y, 21, 16, 1, 1), 0.03, 130)
    model = net.model(net.pair(net.conv(y, 12, 7, 3, 2, group=3, pads=[0, 1, 0, 0]), 0.03, 128))
    assert sum("integer" in s for s in symbols(model)) == 3
    compare(model, 0.03, steps=2)  # a step of a value between moves the last one by less than one more


@pytest.mark.parametrize("both", [False, True])
def test_residual(both):
    """The other side of an addition is 8 bits; with `both` the layer's own side is made 8 bits first as well."""
    net = Net()
    x = net.pair(net.input(1, 16, 9, 9), 0.03, 128)
    y = net.conv(x, 16, 16, 3, 3, pads=[1, 1, 1, 1])
    y = net.op("Relu", net.op("Add", net.pair(y, 0.05, 100) if both else y, x))
    model = net.model(net.pair(y, 0.04, 3))
    assert len(symbols(model)) <= 2 + len([s for s in symbols(model) if "integer" not in s])
    assert sum("integer" in s for s in symbols(model)) == 1
    compare(model, 0.04, steps=1 + both * 0.05 / 0.04)


def test_what_float_operators_read_stays_float():
    net = Net()
    x = net.pair(net.input(1, 8, 7, 11), 0.03, 128)
    y = net.conv(x, 24, 8, 3, 3, pads=[1, 1, 1, 1])
    model = net.model(net.op("Sigmoid", y))
    assert sum("integer" in s for s in symbols(model)) == 1
    compare(model, 1e-4)  # the float bias is rounded to steps of the accumulators


def test_dense_layers_of_an_open_batch():
    net = Net()
    x = net.pair(net.input("N", 30), 0.03, 128)
    q = net.rng.integers(-127, 128, 21).astype(np.int32)
    y = net.op("Add", net.op("MatMul", x, net.weight(30, 21, axis=1)), net.constant(q.astype(np.float32) / 99))
    y = net.pair(net.op("Clip", y, net.constant(np.float32(-0.5)), net.constant(np.float32(1.5))), 0.01, 60)
    bias = net.constant(net.rng.standard_normal(9).astype(np.float32))
    model = net.model(net.op("Gemm", y, net.weight(9, 21), bias, transB=1))
    assert sum("integer_dense" in s for s in symbols(model)) == 2
    compare(model, 0.01, {"N": 5}, steps=2)


def test_one_dimensional_and_turned_convolutions():
    net = Net()
    x = net.pair(net.input(2, 5, 40), 0.03, 128)
    model = net.model(net.pair(net.conv(x, 12, 5, 7, strides=[2], pads=[3, 3]), 0.03, 128))
    assert sum("integer" in s for s in symbols(model)) == 1
    compare(model, 0.03)
    net = Net()
    x = net.pair(net.input(1, 5, 40, 1), 0.03, 128)
    model = net.model(net.pair(net.conv(x, 12, 5, 5, 1, pads=[2, 0, 2, 0]), 0.03, 128))
    compare(model, 0.03)


def test_value_read_as_integers_and_as_float():
    net = Net()
    x = net.pair(net.input(1, 16, 8, 8), 0.03, 128)
    y = net.pair(net.conv(x, 16, 16, 3, 3, pads=[1, 1, 1, 1]), 0.03, 128)
    z = net.pair(net.conv(y, 16, 16, 1, 1), 0.03, 128)
    model = net.model(z, net.op("Tanh", y))
    compare(model, 0.03, steps=2)


@pytest.mark.parametrize("trouble", ["per-channel input", "weight zero point", "computed scale", "bias overflows"])
def test_what_is_no_region_runs_as_float(trouble):
    net = Net()
    x = net.input(1, 8, 7, 7)
    if trouble == "per-channel input":
        s, z = net.constant(np.linspace(0.02, 0.04, 8, dtype=np.float32)), net.constant(np.full(8, 128, np.uint8))
        d = net.op("DequantizeLinear", net.op("QuantizeLinear", x, s, z, axis=1), s, z, axis=1)
    elif trouble == "computed scale":
        s, z = net.op("ReduceMax", net.op("Abs", x), keepdims=0), net.constant(np.uint8(128))
        s = net.op("Div", s, net.constant(np.float32(127)))
        d = net.op("DequantizeLinear", net.op("QuantizeLinear", x, s, z), s, z)
    else:
        d = net.pair(x, 0.03, 128)
    weight, bias = net.weight(8, 8, 3, 3), net.constant(net.rng.standard_normal(8).astype(np.float32))
    if trouble == "weight zero point":
        q = net.constant(net.rng.integers(-127, 128, (8, 8, 3, 3)).astype(np.int8))
        weight = net.op("DequantizeLinear", q, net.constant(np.float32(0.001)), net.constant(np.int8(3)))
    if trouble == "bias overflows":
        bias = net.constant(np.full(8, 3e6, np.float32))
    model = net.model(net.pair(net.op("Conv", d, weight, bias), 0.03 if trouble != "bias overflows" else 2e4, 128))
    assert not any("integer" in s for s in symbols(model))
    if trouble != "bias overflows":
        compare(model, 0.03)


@pytest.mark.usefixtures("on_integers")
@pytest.mark.parametrize(("channels", "kernel", "strides"), [(37, (3, 3), [1, 1]), (16, (5, 5), [2, 2])])
def test_depthwise(channels, kernel, strides):
    net = Net()
    x = net.pair(net.input(2, channels, 13, 11), 0.03, 101)
    y = net.conv(x, channels, 1, *kernel, group=channels, strides=strides, pads=[1, 2, 1, 1])
    y = net.op("Clip", y, net.constant(np.float32(0)), net.constant(np.float32(6)))
    model = net.model(net.pair(y, 0.02, 1))
    assert sum("integer_depthwise" in s for s in symbols(model)) == 1
    compare(model, 0.02)


@pytest.mark.usefixtures("on_integers")
@pytest.mark.parametrize(("bits", "float_layers"), [(8, 1), (7, 0)])
def test_layer_that_is_faster_in_float_stays_so(bits, float_layers):
    """Without dot products five taps of a line are Winograd's, a 1x1 layer is not; the report gives the account."""
    net = Net()
    x = net.pair(net.input(1, 64, 1, 400), 0.03, 128)
    for shape, pad in (((64, 64, 1, 5), 2), ((64, 64, 1, 1), 0)):
        q = net.rng.integers(1 - 2 ** (bits - 1), 2 ** (bits - 1), shape).astype(np.int8)
        scale = net.constant(np.full(64, 0.5 / np.sqrt(q[0].size) / 2 ** (bits - 1), np.float32))
        weight = net.op("DequantizeLinear", net.constant(q), scale, axis=0)
        x = net.pair(net.op("Conv", x, weight, pads=[0, pad, 0, pad]), 0.01, 128)
    model = net.model(x)
    program = Llvm(mcpu="x86-64-v3", threads=1).build(model, Context())
    accounts = [account for name, account in program.report["integer"].items() if name != "the model"]
    assert len(accounts) == 2
    assert sum(account.startswith("float32: maddwd") for account in accounts) == float_layers
    with assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        feeds = {"x0": np.random.default_rng(1).standard_normal((1, 64, 1, 400)).astype(np.float32)}
        (got,) = executable.run(feeds).values()
    np.testing.assert_allclose(got, exact(model, feeds)[0], rtol=0, atol=0.02001)


def calls(model: ir.Model, mcpu: str = "native") -> list[str]:
    """The kernels in order, without their numbers, and the ONNX operators between them."""
    canonical = canonicalise(model.clone())
    plan(canonical, resolve(mcpu), parallel=False)
    return [
        str(n.attributes.get_string("symbol")).rsplit("_", 1)[0] if n.op_type == "CallPacked" else n.op_type
        for n in canonical.graph
    ]


def test_a_bias_that_is_added_behind_a_convolution_is_its_bias():
    """As in squeeze-and-excitation blocks of some exporters; then the activation and rounding are the layer's too."""
    net = Net()
    x = net.pair(net.input(1, 16, 1, 1), 0.03, 128)
    bias = net.constant(net.rng.standard_normal((1, 24, 1, 1)).astype(np.float32))
    y = net.op("Add", net.op("Conv", x, net.weight(24, 16, 1, 1)), bias)
    y = net.pair(net.op("HardSigmoid", y), 1 / 255, 0)
    model = net.model(net.conv(y, 8, 24, 1, 1))
    assert sum("integer" in name for name in calls(model)) == 2
    assert not any("pointwise" in name for name in calls(model))
    compare(model, 0.02)


def test_what_follows_a_squeezed_convolution_belongs_to_it():
    """Also when the graph was prepared once before, to see whether integers pay."""
    net = Net()
    y = net.conv(net.pair(net.input(1, 8, 40, 1), 0.03, 128), 16, 8, 5, 1, kernel_shape=[5, 1])
    y = net.op("Squeeze", y, net.constant(np.array([3])))
    y = net.op(
        "Tanh",
        net.op(
            "Mul",
            net.op("Add", y, net.constant(net.rng.standard_normal((1, 16, 1)).astype(np.float32))),
            net.constant(np.float32(0.5)),
        ),
    )
    model = net.model(net.op("Mul", y, net.op("Sigmoid", y)))
    assert not {"Mul", "Tanh", "Sigmoid", "Add"} & set(calls(model))
    compare(model, 0.01)


@pytest.mark.usefixtures("on_integers")
def test_a_picture_is_quantized_on_its_way_to_channels_last():
    net = Net()
    x = net.pair(net.input(2, 3, 20, 30), 0.03, 128)
    model = net.model(net.conv(x, 16, 3, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1]))
    assert calls(model)[:3] == ["Transpose", "quantize", "integer_conv"]
    compare(model, 0.01)


def test_a_model_that_is_slower_on_integers_is_float_throughout(monkeypatch):
    """Nothing is rounded then, but what the ranges cut off is: Relu may have been left to them."""

    def model_of(rounded: bool) -> ir.Model:
        net = Net()
        x = net.input(1, 8, 12, 12)
        x = net.pair(x, 0.02, 128) if rounded else x
        y = net.conv(x, 8, 8, 3, 3, pads=[1, 1, 1, 1])
        limits = net.constant(np.float32(0)), net.constant(np.float32(2.55))
        y = net.op("MaxPool", net.pair(y, 0.01, 0) if rounded else net.op("Clip", y, *limits), kernel_shape=[2, 2])
        return net.model(net.conv(net.pair(y, 0.01, 0) if rounded else y, 8, 8, 3, 3))

    model = model_of(rounded=True)
    monkeypatch.setattr(choose, "FINISH", 1e6)
    assert not any("integer" in name or "Linear" in name for name in calls(model))
    program = Llvm(threads=1).build(model, Context())
    feeds = {"x0": np.random.default_rng(5).standard_normal((1, 8, 12, 12)).astype(np.float32)}
    with assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        (got,) = executable.run(feeds).values()
    (want,) = exact(model_of(rounded=False), feeds)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert program.report["integer"]["the model"].startswith("float32 throughout")
    monkeypatch.undo()
    assert Llvm(threads=1).build(model, Context()).report["integer"]["the model"].startswith("int8")


def test_of_regions_that_want_the_same_node_the_later_one_has_it():
    """Two convolutions whose results are added: only one of them may add, and no node is replaced twice."""
    from types import SimpleNamespace

    from graphopt.targets.llvm.plan.integer.region import last_first

    a, b, add = (ir.node(op, []) for op in ("Conv", "Conv", "Add"))

    def match(node, position, taken):
        if node is add:
            return None
        free = [] if add in taken else [add]
        return SimpleNamespace(nodes=(node, *free))

    assert [region.nodes for region in last_first([a, b, add], set(), match)] == [(b, add), (a,)]
    assert [region.nodes for region in last_first([a, b, add], {b}, match)] == [(a, add)]
