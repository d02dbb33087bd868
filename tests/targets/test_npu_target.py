"""The target as a whole: which nodes go to the NPU, and that the compiled model computes what onnxruntime does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt import models, oracle
from graphopt.base import Context
from graphopt.graph import infer_shapes, normalise, sources
from graphopt.targets.npu import Npu
from graphopt.targets.npu.codegen import compile_program
from graphopt.targets.npu.machine import load_machine
from graphopt.targets.npu.regions import candidates, needed
from graphopt.targets.npu.rewrite import offload, program_of
from graphopt.targets.npu.simulator import execute
from graphopt.testing import from_text

GEMMINI, EDGE = load_machine("gemmini-16"), load_machine("edge")


class Builder:
    """Writes Q/DQ graphs: `constant` quantizes to int8 with a scale, `pair` puts Q and DQ behind a value."""

    def __init__(self, activations: type[np.generic] = np.int8, weights: type[np.generic] = np.int8) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)
        self.activations, self.weight_type = activations, weights

    def array(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def pair(self, value: str, scale: float, zero: int) -> str:
        parameters = [
            self.array(f"{value}_s", np.float32(scale)),
            self.array(f"{value}_z", self.activations(zero)),
        ]
        self.node("QuantizeLinear", [value, *parameters], f"{value}_q")
        return self.node("DequantizeLinear", [f"{value}_q", *parameters], f"{value}_d")

    def weight(self, name: str, shape: tuple[int, ...], axis: int = 0) -> str:
        info = np.iinfo(self.weight_type)
        values = self.rng.integers(info.min, info.max + 1, shape).astype(self.weight_type)
        channels = () if self.weight_type is np.uint8 else (shape[axis],)
        scale = self.rng.uniform(0.001, 0.004, channels).astype(np.float32)
        zero = np.full(channels, 131 if self.weight_type is np.uint8 else 0, self.weight_type)
        inputs = [self.array(f"{name}_q", values), self.array(f"{name}_s", scale), self.array(f"{name}_z", zero)]
        return self.node("DequantizeLinear", inputs, name, axis=axis)

    def bias(self, name: str, channels: int) -> str:
        return self.array(name, self.rng.normal(0, 0.3, channels).astype(np.float32))

    def model(self, x: list[int], y: str) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
            [helper.make_empty_tensor_value_info(y)],
            self.initializers,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return normalise(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


def chain(builder: Builder, zero: int) -> ir.Model:
    """Convolution with Relu, depthwise with Clip, pointwise, pooled, flattened, classified: ends in float."""
    b = builder
    value = b.pair("x", 0.02, zero)
    value = b.node("Conv", [value, b.weight("w1", (16, 3, 3, 3)), b.bias("b1", 16)], "c1", strides=[2, 2], pads=[1] * 4)
    value = b.pair(b.node("Relu", [value], "r1"), 0.03, zero)
    value = b.node("Conv", [value, b.weight("w2", (16, 1, 3, 3))], "c2", group=16, pads=[1, 1, 1, 1])
    low, high = b.array("low", np.float32(0.1)), b.array("high", np.float32(3.0))
    value = b.pair(b.node("Clip", [value, low, high], "r2"), 0.02, zero)
    value = b.pair(b.node("Conv", [value, b.weight("w3", (24, 16, 1, 1)), b.bias("b3", 24)], "c3"), 0.05, zero)
    value = b.pair(b.node("GlobalAveragePool", [value], "p"), 0.02, zero)
    value = b.pair(b.node("Flatten", [value], "f"), 0.02, zero)
    value = b.node("Gemm", [value, b.weight("w4", (10, 24)), b.bias("b4", 10)], "y", transB=1)
    return b.model([2, 3, 15, 15], value)


def by_parts(model: ir.Model, feeds: dict[str, np.ndarray], machine: str = "gemmini-16") -> list[tuple[str, float]]:
    """Each operator alone, fed what onnxruntime computes before it: its name, and its largest error in steps."""
    description = load_machine(machine)
    parts = needed(candidates(model, description)[0])
    wanted = sorted({str(value.name) for part in parts for value in (*part.sources, part.result)})
    values = oracle.run(model, feeds, wanted)
    errors: list[tuple[str, float]] = []
    for part in parts:
        program, inputs, _ = program_of([part], part.name)
        stream, constants = compile_program(program, description)
        (out,) = execute(stream, description, constants, [values[str(value.name)] for value in inputs])
        expected = values[str(part.result.name)]
        if part.unit is not None:
            shape = (-1,) if part.anchor.op_type != "Conv" else (-1, *(1,) * (expected.ndim - 2))
            got = out.view(np.int32).reshape(expected.shape).astype(np.float64)
            errors.append((part.name, float(np.abs(got - expected / part.unit.reshape(shape)).max())))
        else:
            got = out.view(expected.dtype).reshape(expected.shape).astype(np.int64)
            errors.append((part.name, float(np.abs(got - expected.astype(np.int64)).max())))
    return errors


@pytest.mark.parametrize("machine", ["gemmini-16", "edge"])
@pytest.mark.parametrize(
    ("dtype", "weights", "zero"), [(np.int8, np.int8, -20), (np.uint8, np.int8, 110), (np.uint8, np.uint8, 128)]
)
def test_every_region_is_within_one_step_of_onnxruntime(machine: str, dtype: Any, weights: Any, zero: int) -> None:
    """onnxruntime runs the pairs in float; a float bias is rounded to int32, half a unit of an accumulator."""
    model = chain(Builder(dtype, weights), zero)
    x = np.random.default_rng(1).normal(0, 1, (2, 3, 15, 15)).astype(np.float32)
    errors = by_parts(model, {"x": x}, machine)
    assert [name for name, _ in errors] == ["c1", "c2", "c3", "p", "f", "y"]
    assert all(error <= 1 for _, error in errors), errors


@pytest.mark.parametrize(("dtype", "weights"), [(np.int8, np.int8), (np.uint8, np.uint8)])
@pytest.mark.parametrize("group", [1, 2, 6])
def test_equal_to_qlinearconv_bit_for_bit(dtype: Any, weights: Any, group: int) -> None:
    """S8S8 and U8U8 are the combinations that onnxruntime computes exactly on every CPU."""
    b = Builder(dtype, weights)
    info = np.iinfo(dtype)
    x = np.random.default_rng(2).integers(info.min, info.max + 1, (2, 6, 13, 11)).astype(dtype)
    (
        b.array("x_s", np.float32(0.017)),
        b.array("x_z", dtype(7)),
        b.array("y_s", np.float32(0.043)),
        b.array("y_z", dtype(9)),
    )
    quantized = b.node("QuantizeLinear", ["x", "x_s", "x_z"], "x_q")
    value = b.node("DequantizeLinear", [quantized, "x_s", "x_z"], "x_d")
    weight = b.weight("w", (12, 6 // group, 3, 3))
    value = b.node("Conv", [value, weight], "c", group=group, pads=[1, 0, 2, 1], strides=[1, 2])
    b.node("QuantizeLinear", [value, "y_s", "y_z"], "y")
    model = b.model([2, 6, 13, 11], "y")
    model.graph.outputs[0].dtype = ir.DataType.INT8 if dtype is np.int8 else ir.DataType.UINT8
    (item,), left = offload(model, GEMMINI, alone=True)
    assert not left
    constants = model.graph.initializers["c_npu_constants"].const_value
    assert constants is not None
    (out,) = execute(item.stream, GEMMINI, constants.numpy(), [x])

    inputs = ["q", "x_s", "x_z", "w_q", "w_s", "w_z", "y_s", "y_z"]
    node = helper.make_node("QLinearConv", inputs, ["y"], group=group, pads=[1, 0, 2, 1], strides=[1, 2])
    kind = TensorProto.INT8 if dtype is np.int8 else TensorProto.UINT8
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("q", kind, x.shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        b.initializers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    expected = oracle.run(normalise(ir.from_proto(proto)), {"q": x})["y"]
    np.testing.assert_array_equal(out.view(dtype).reshape(expected.shape), expected)


def test_four_bit_weights_are_taken_and_packed() -> None:
    """The same values stored as int8 and as INT4: the same result, from half the bytes of weights of 8 bits."""
    results, sizes = [], []
    for bits, four in ((8, False), (4, False), (4, True)):
        b = Builder()
        value = b.node("Conv", [b.pair("x", 0.02, 3), b.weight("w", (6, 5, 3, 3))], "c", pads=[1] * 4)
        model = b.model([1, 5, 9, 9], b.pair(value, 0.05, 1))
        for name, dtype in (("w_q", ml_dtypes.int4), ("w_z", ml_dtypes.int4)):
            stored = model.graph.initializers[name]
            assert stored.const_value is not None
            array = stored.const_value.numpy() >> (8 - bits)
            stored.const_value = ir.tensor(array.astype(dtype) if four else array, name=name)
            stored.dtype = stored.const_value.dtype
        (part,) = needed(candidates(model, GEMMINI)[0])
        program, *_ = program_of([part], part.name)
        stream, constants = compile_program(program, GEMMINI)
        x = np.random.default_rng(1).integers(-128, 128, (1, 5, 9, 9)).astype(np.int8)
        results.append(execute(stream, GEMMINI, constants, [x])[0].tobytes())
        sizes.append(constants.nbytes)
    assert results[1] == results[2]
    assert sizes[1] == sizes[2]
    assert sizes[0] - sizes[1] == 128  # 270 weights, each tile on 16 bytes


def build(tail: Callable[[Builder, str], str], shape: list[int]) -> tuple[ir.Model, dict[str, str]]:
    """A model made by `tail(builder, quantized input)`; the reason for each node that stays on the CPU."""
    builder = Builder()
    value = tail(builder, builder.pair("x", 0.02, 3))
    model = builder.model(shape, value)
    return model, {name: reason for name, (_, reason) in offload(model.clone(), GEMMINI, alone=True)[1].items()}


def conv(b: Builder, value: str, shape: tuple[int, ...], **attributes: Any) -> str:
    return b.node("Conv", [value, b.weight("w", shape)], "c", **attributes)


def matmul_with_bias(b: Builder, value: str) -> str:
    product = b.node("MatMul", [value, b.weight("w", (9, 6), 1)], "c")
    return b.pair(b.node("Add", [b.bias("b", 6), product], "s"), 0.05, 1)


def used_twice(b: Builder, value: str) -> str:
    value = conv(b, value, (4, 4, 1, 1))
    return b.node("Concat", [value, b.node("Softmax", [value], "r")], "y", axis=1)


FORMS: dict[str, tuple[Callable[[Builder, str], str], list[int]]] = {
    "float after": (lambda b, v: b.node("Softmax", [conv(b, v, (5, 4, 3, 3))], "y"), [1, 4, 9, 9]),
    "one-dimensional": (lambda b, v: b.pair(conv(b, v, (5, 4, 3), pads=[2, 0]), 0.05, 0), [1, 4, 9]),
    "same lower": (
        lambda b, v: b.pair(conv(b, v, (5, 4, 3, 3), auto_pad="SAME_LOWER", strides=[2, 2]), 0.05, 1),
        [1, 4, 8, 8],
    ),
    "dilated": (lambda b, v: b.pair(conv(b, v, (5, 4, 3, 2), dilations=[2, 3]), 0.05, 1), [1, 4, 9, 9]),
    "matmul with bias": (matmul_with_bias, [1, 4, 9, 9]),
    "gemm": (
        lambda b, v: b.pair(b.node("Gemm", [v, b.weight("w", (7, 6), 1), b.bias("b", 6)], "c"), 0.05, 1),
        [3, 7],
    ),
    "used twice": (used_twice, [1, 4, 9, 9]),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_the_array_takes(name: str) -> None:
    tail, shape = FORMS[name]
    model, left = build(tail, shape)
    assert not left
    x = np.random.default_rng(3).normal(0, 1, shape).astype(np.float32)
    ((_, error),) = by_parts(model, {"x": x})
    assert error <= 1


REFUSED = {
    "float operators follow": lambda b, v: b.node("Sigmoid", [conv(b, v, (5, 4, 3, 3))], "y"),
    "is not quantized": lambda b, v: b.node("Conv", [v, b.array("w", np.ones((2, 4, 1, 1), np.float32))], "c"),
    "computed at run time": lambda b, v: b.node("MatMul", [v, v], "c"),
    "transposed": lambda b, v: b.node("ConvTranspose", [v, b.weight("w", (4, 2, 3, 3))], "c"),
    "another axis": lambda b, v: b.node("MatMul", [v, b.weight("w", (9, 9), 0)], "c"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_stays_on_the_cpu_says_why(reason: str) -> None:
    _, left = build(REFUSED[reason], [1, 4, 9, 9])
    assert list(left) == ["c"]
    assert reason in left["c"]


def test_a_layer_that_no_tile_fits_stays_on_the_cpu() -> None:
    tiny = GEMMINI.model_copy(update={"scratchpad_bytes": 1024, "accumulator_bytes": 256})
    builder = Builder()
    value = builder.node("Conv", [builder.pair("x", 0.02, 3), builder.weight("w", (4, 4, 31, 31))], "c")
    done, left = offload(builder.model([1, 4, 31, 31], value), tiny)
    assert not done
    assert "no tile of it fits" in left["c"][1]


def test_a_float_model_runs_on_the_cpu_as_a_whole() -> None:
    weights = {"w": np.ones((4, 2, 3, 3), np.float32)}
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[1,2,8,8] x, float[4,2,3,3] w) => (float[1,4,6,6] y) { y = Conv(x, w) }
    """
    program = Npu().build(from_text(text, **weights), Context())
    assert program.report["npu"]["nodes"] == []
    assert [entry["reason"] for entry in program.report["npu"]["left"]] == [
        "not quantized: add insert-qdq to the pipeline"
    ]


def test_an_open_shape_stays_on_the_cpu() -> None:
    builder = Builder()
    model = builder.model([1, 4, 9, 9], conv(builder, builder.pair("x", 0.02, 3), (2, 4, 3, 3)))
    model.graph.inputs[0].shape = ir.Shape(["N", 4, 9, 9])
    for node in model.graph:
        node.outputs[0].shape = None
    infer_shapes(model)
    _, left = offload(model, GEMMINI)
    assert "open" in left["c"][1]


def test_replaced_nodes_keep_their_provenance() -> None:
    model = chain(Builder(), 3)
    offload(model, EDGE, cpu_gmacs=0.01)
    (call,) = (node for node in model.graph if node.op_type == "CallPacked")
    assert {"c1", "r1", "r1_q", "c3", "p"} <= set(sources(call))


SCRIPT = """
import sys
sys.modules["onnx"] = sys.modules["onnxruntime"] = sys.modules["onnx_ir"] = None
import numpy as np
from graphopt.artifact import load
np.save(sys.argv[3], load(sys.argv[1]).run({"image": np.load(sys.argv[2])})["logits"])
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[graphopt.artifact.Executable, Path]:
    """The trained digits network, quantized, on the edge machine; and a folder it is saved in."""
    reference = models.get("digits")
    assert reference.calibration is not None
    pipeline = "fold-batch-norm,insert-qdq{activations=int8}"
    compiled = graphopt.compile(reference.path(), "npu", pipeline, calibration=reference.calibration(), dims={"N": 50})
    folder = tmp_path_factory.mktemp("npu")
    compiled.save(folder / "digits.gopt")
    return compiled, folder


def test_the_trained_network_runs_on_the_npu(digits: tuple[Any, Path]) -> None:
    compiled, _ = digits
    reference = models.get("digits")
    assert reference.evaluation is not None
    assert reference.baseline is not None
    evaluation = reference.evaluation()
    images = np.concatenate([feeds["image"] for feeds in evaluation.feeds()])[: evaluation.n // 50 * 50]
    logits = [compiled.run({"image": batch})["logits"] for batch in np.split(images, len(images) // 50)]
    assert len(images) == evaluation.n
    assert evaluation.score(iter({"logits": part} for part in logits)) >= reference.baseline - 0.01


def test_the_report_accounts_for_every_node(digits: tuple[Any, Path]) -> None:
    compiled, _ = digits
    report = compiled.report["target"]["npu"]
    ops = [node["op"] for node in report["nodes"]] + [node["op"] for node in report["left"]]
    assert ops.count("Conv") == 5
    assert ops.count("Gemm") == 1
    assert report["cycles"] == sum(node["cycles"] for node in report["nodes"])
    for node in report["nodes"]:
        assert node["dram_bytes"] >= node["compulsory_bytes"]
        assert (0 < node["utilisation"] <= 1) == (node["macs"] > 0)
        assert node["cycles"] * EDGE.array.macs_per_cycle >= node["macs"]
    for memory in EDGE.memories:
        assert report["cycles"] >= sum(node["bytes"][memory.name] for node in report["nodes"]) / memory.bytes_per_cycle


def test_the_artifact_runs_in_a_process_without_onnx(digits: tuple[Any, Path]) -> None:
    compiled, folder = digits
    image = np.random.default_rng(5).normal(0, 1, (50, 1, 8, 8)).astype(np.float32)
    np.save(folder / "x.npy", image)
    files = [str(folder / name) for name in ("digits.gopt", "x.npy", "y.npy")]
    subprocess.run([sys.executable, "-c", SCRIPT, *files], check=True, timeout=120)
    np.testing.assert_array_equal(np.load(folder / "y.npy"), compiled.run({"image": image})["logits"])
