"""Malformed and hostile ONNX files, each made in a few lines: a name, and what writes it into a folder."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Change = Callable[[ModelProto], object]

SECRET = b"the secret beside the model's folder"
"""What a file outside holds: nothing that was read may contain it."""


def good() -> ModelProto:
    """A valid net that has all that the changes below break: weights, a subgraph, a function, attributes, opsets."""
    float_, bool_ = TensorProto.FLOAT, TensorProto.BOOL
    branches = {
        name: helper.make_graph([helper.make_node(op, ["c"], [name])], name, [], [value(name, float_, [1, 2, 3, 3])])
        for name, op in (("then", "Relu"), ("other", "Neg"))
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[0, 0, 0, 0]),
        helper.make_node("If", ["p"], ["i"], "if", then_branch=branches["then"], else_branch=branches["other"]),
        helper.make_node("double", ["i"], ["d"], "double", domain="local"),
        helper.make_node("Reshape", ["d", "shape"], ["y"], "reshape"),
    ]
    weights = [
        numpy_helper.from_array(np.ones((2, 2, 2, 2), np.float32), "w"),
        numpy_helper.from_array(np.ones(2, np.float32), "b"),
        numpy_helper.from_array(np.array([1, -1], np.int64), "shape"),
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    double = helper.make_function("local", "double", ["a"], ["s"], [helper.make_node("Add", ["a", "a"], ["s"])], opsets)
    ends = [[value("x", float_, [1, 2, 4, 4]), value("p", bool_, [])], [value("y", float_, [1, 18])]]
    graph = helper.make_graph(nodes, "good", *ends, weights)
    return helper.make_model(graph, opset_imports=opsets, functions=[double], ir_version=9)


def value(name: str, dtype: int, shape: list[int | str] | None) -> onnx.ValueInfoProto:
    """A typed value."""
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(model: ModelProto) -> TensorProto:
    """The Conv's weights."""
    return model.graph.initializer[0]


def branch(model: ModelProto) -> onnx.GraphProto:
    """A branch of the If."""
    return model.graph.node[1].attribute[0].g


def outside(tensor: TensorProto, **entries: object) -> None:
    """Say that the bytes of `tensor` lie in a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in entries.items():
        tensor.external_data.add(key=key, value=str(entry))


def nested(depth: int) -> NodeProto:
    """If in If in If."""
    node = helper.make_node("Identity", ["c"], ["leaf"])
    for k in range(depth):
        graph = helper.make_graph([node], f"g{k}", [], [value(node.output[0], TensorProto.FLOAT, None)])
        other = helper.make_graph([helper.make_node("Neg", ["c"], [f"n{k}"])], f"o{k}", [], [value(f"n{k}", 1, None)])
        node = helper.make_node("If", ["p"], [f"i{k}"], then_branch=graph, else_branch=other)
    return node


def laughs(model: ModelProto, count: int) -> None:
    """Functions that each call the one before twice: 2^count nodes once inlined."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for k in range(count):
        last = f"laugh{k - 1}" if k else "double"
        nodes = [
            helper.make_node(last, ["a"], ["t"], domain="local"),
            helper.make_node(last, ["t"], ["s"], domain="local"),
        ]
        model.functions.append(helper.make_function("local", f"laugh{k}", ["a"], ["s"], nodes, opsets))
    model.graph.node[2].op_type = f"laugh{count - 1}"


def _attribute(node: NodeProto, **fields: object) -> None:
    node.attribute.append(AttributeProto(**fields))


def _add(model: ModelProto, *args: object, **kwargs: object) -> None:
    model.graph.node.append(helper.make_node(*args, **kwargs))


def _const(model: ModelProto, name: str, array: np.ndarray) -> None:
    model.graph.initializer.append(numpy_helper.from_array(array, name))


def _loop_without_body(model: ModelProto) -> None:
    _const(model, "n", np.array(3, np.int64))
    _add(model, "Loop", ["n", ""], ["loop"])


def _scan_with_wrong_body(model: ModelProto) -> None:
    relu, ends = helper.make_node("Relu", ["q"], ["r"]), [[value(name, 1, [1])] for name in "qr"]
    body = helper.make_graph([relu], "body", *ends)
    _add(model, "Scan", ["x"], ["scan"], num_scan_inputs=7, body=body)


def _divide(model: ModelProto, dividend: int, divisor: int, op: str = "Div") -> None:
    _const(model, "dividend", np.array([dividend], np.int64))
    _const(model, "divisor", np.array([divisor], np.int64))
    _add(model, op, ["dividend", "divisor"], ["quotient"])
    _add(model, "Reshape", ["c", "quotient"], ["shaped"])
    model.graph.output.append(value("shaped", TensorProto.FLOAT, None))


def _huge(model: ModelProto, op: str) -> None:
    _const(model, "many", np.array([1 << 40], np.int64))
    if op == "ConstantOfShape":
        _add(model, op, ["many"], ["huge"])
    elif op == "Range":
        _const(model, "zero", np.array(0, np.int64))
        _const(model, "one", np.array(1, np.int64))
        _const(model, "end", np.array(1 << 50, np.int64))
        _add(model, op, ["zero", "end", "one"], ["huge"])
    else:
        _add(model, op, ["b", "many"], ["huge"])
    model.graph.output.append(value("huge", TensorProto.FLOAT if op != "Range" else TensorProto.INT64, None))


CHANGES: dict[str, Change] = {
    "no graph": lambda m: m.ClearField("graph"),
    "no opset": lambda m: m.ClearField("opset_import"),
    "no IR version": lambda m: m.ClearField("ir_version"),
    "IR version of the future": lambda m: setattr(m, "ir_version", 4000),
    "negative IR version": lambda m: setattr(m, "ir_version", -1),
    "opset of the future": lambda m: setattr(m.opset_import[0], "version", 9000),
    "opset zero": lambda m: setattr(m.opset_import[0], "version", 0),
    "negative opset": lambda m: setattr(m.opset_import[0], "version", -3),
    "an opset twice": lambda m: m.opset_import.append(helper.make_opsetid("", 12)),
    "an opset by both its names": lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 12)),
    "no nodes": lambda m: m.graph.ClearField("node"),
    "no outputs": lambda m: m.graph.ClearField("output"),
    "no inputs": lambda m: m.graph.ClearField("input"),
    "nothing in the graph": lambda m: m.graph.Clear(),
    "an output that nothing yields": lambda m: setattr(m.graph.output[0], "name", "nowhere"),
    "an output twice": lambda m: m.graph.output.append(m.graph.output[0]),
    "an input twice": lambda m: m.graph.input.append(m.graph.input[0]),
    "an output without a name": lambda m: setattr(m.graph.output[0], "name", ""),
    "an input without a type": lambda m: m.graph.input[0].ClearField("type"),
    "an output of another type": lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", TensorProto.INT8),
    "an output of another shape": lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 7),
    "an unknown element type": lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 999),
    "an undefined element type": lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 0),
    "a huge input": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1 << 62),
    "an input of size zero": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 0),
    "a map as input": lambda m: m.graph.input[0].type.map_type.value_type.tensor_type.SetInParent(),
    "reads what nothing yields": lambda m: m.graph.node[0].input.__setitem__(0, "nowhere"),
    "reads nothing where it must": lambda m: m.graph.node[0].input.__setitem__(0, ""),
    "too few inputs": lambda m: m.graph.node[0].ClearField("input"),
    "too many inputs": lambda m: m.graph.node[0].input.extend(["x"] * 50),
    "no results": lambda m: m.graph.node[0].ClearField("output"),
    "too many results": lambda m: m.graph.node[0].output.append("more"),
    "two nodes yield one value": lambda m: m.graph.node.append(m.graph.node[0]),
    "a node yields an input": lambda m: m.graph.node[0].output.__setitem__(0, "x"),
    "a node yields a weight": lambda m: m.graph.node[0].output.__setitem__(0, "w"),
    "a node reads its own result": lambda m: m.graph.node[0].input.__setitem__(0, "c"),
    "a cycle": lambda m: m.graph.node[0].input.__setitem__(0, "y"),
    "nodes in the wrong order": lambda m: m.graph.node.sort(key=lambda n: n.name, reverse=True),
    "an unknown operator": lambda m: setattr(m.graph.node[0], "op_type", "Convolve"),
    "no operator": lambda m: setattr(m.graph.node[0], "op_type", ""),
    "an operator of an unknown domain": lambda m: setattr(m.graph.node[0], "domain", "com.evil"),
    "an operator newer than the opset": lambda m: _add(m, "Gelu", ["x"], ["gelu"]),
    "an attribute twice": lambda m: _attribute(m.graph.node[0], name="pads", type=7, ints=[1, 1, 1, 1]),
    "an unknown attribute": lambda m: _attribute(m.graph.node[0], name="evil", type=2, i=1),
    "an attribute without a name": lambda m: _attribute(m.graph.node[0], type=2, i=1),
    "an attribute without a type": lambda m: _attribute(m.graph.node[0], name="group", i=1),
    "an attribute of an unknown type": lambda m: _attribute(m.graph.node[0], name="group", i=1, type=0),
    "an attribute of the wrong type": lambda m: _attribute(m.graph.node[0], name="group", type=3, s=b"two"),
    "an attribute with two values": lambda m: _attribute(m.graph.node[0], name="group", type=2, i=1, s=b"1"),
    "an attribute that refers to a function's": lambda m: _attribute(
        m.graph.node[0], name="group", type=2, ref_attr_name="g"
    ),
    "zero groups": lambda m: _attribute(m.graph.node[0], name="group", type=2, i=0),
    "many groups": lambda m: _attribute(m.graph.node[0], name="group", type=2, i=1 << 40),
    "negative strides": lambda m: _attribute(m.graph.node[0], name="strides", type=7, ints=[-1, -1]),
    "zero strides": lambda m: _attribute(m.graph.node[0], name="strides", type=7, ints=[0, 0]),
    "strides for three axes": lambda m: _attribute(m.graph.node[0], name="strides", type=7, ints=[1, 1, 1]),
    "zero dilations": lambda m: _attribute(m.graph.node[0], name="dilations", type=7, ints=[0, 0]),
    "an unknown auto_pad": lambda m: _attribute(m.graph.node[0], name="auto_pad", type=3, s=b"MAYBE"),
    "huge padding": lambda m: m.graph.node[0].attribute[0].ints.__setitem__(0, 1 << 62),
    "negative padding": lambda m: m.graph.node[0].attribute[0].ints.__setitem__(0, -9),
    "padding for one axis": lambda m: m.graph.node[0].attribute[0].ints.pop(),
    "a kernel of another shape than its weights": lambda m: _attribute(
        m.graph.node[0], name="kernel_shape", type=7, ints=[9, 9]
    ),
    "a Reshape that does not fit": lambda m: setattr(
        m.graph.initializer[2], "raw_data", np.array([7, 5], np.int64).tobytes()
    ),
    "a Reshape with two -1": lambda m: setattr(
        m.graph.initializer[2], "raw_data", np.array([-1, -1], np.int64).tobytes()
    ),
    "a Reshape to the smallest integer": lambda m: setattr(
        m.graph.initializer[2], "raw_data", np.array([1, -(1 << 63)], np.int64).tobytes()
    ),
    "weights cut short": lambda m: setattr(weight(m), "raw_data", weight(m).raw_data[:-1]),
    "weights too long": lambda m: setattr(weight(m), "raw_data", weight(m).raw_data * 2),
    "weights without bytes": lambda m: weight(m).ClearField("raw_data"),
    "weights in two fields": lambda m: weight(m).float_data.extend([1.0] * 16),
    "weights in the wrong field": lambda m: (weight(m).ClearField("raw_data"), weight(m).int32_data.extend([1] * 16)),
    "weights of an unknown type": lambda m: setattr(weight(m), "data_type", 99),
    "weights of no type": lambda m: weight(m).ClearField("data_type"),
    "weights of integers": lambda m: setattr(weight(m), "data_type", TensorProto.INT32),
    "weights of strings in bytes": lambda m: setattr(weight(m), "data_type", TensorProto.STRING),
    "weights of negative size": lambda m: weight(m).dims.__setitem__(0, -2),
    "weights of huge size": lambda m: weight(m).dims.__setitem__(0, 1 << 60),
    "weights whose size overflows": lambda m: weight(m).dims.extend([1 << 32, 1 << 32, 1 << 32]),
    "weights of other rank": lambda m: weight(m).dims.__delitem__(0),
    "weights without a name": lambda m: setattr(weight(m), "name", ""),
    "weights twice": lambda m: m.graph.initializer.append(weight(m)),
    "weights in segments": lambda m: weight(m).segment.MergeFrom(TensorProto.Segment(begin=0, end=5)),
    "quantized weights": lambda m: m.graph.quantization_annotation.add(tensor_name="nowhere"),
    "sparse weights without indices": lambda m: m.graph.sparse_initializer.add(dims=[4]),
    "sparse indices out of range": lambda m: m.graph.sparse_initializer.add(
        dims=[2],
        values=numpy_helper.from_array(np.ones(1, np.float32), "s"),
        indices=numpy_helper.from_array(np.array([1 << 40], np.int64), "k"),
    ),
    "a bias of another length": lambda m: m.graph.initializer[1].dims.__setitem__(0, 1),
    "an If without branches": lambda m: m.graph.node[1].ClearField("attribute"),
    "an If without one branch": lambda m: m.graph.node[1].attribute.pop(),
    "a branch without outputs": lambda m: branch(m).ClearField("output"),
    "a branch that reads what nothing yields": lambda m: branch(m).node[0].input.__setitem__(0, "q"),
    "a branch that yields a name of outside": lambda m: branch(m).node[0].output.__setitem__(0, "c"),
    "branches of other types": lambda m: setattr(branch(m).output[0].type.tensor_type, "elem_type", TensorProto.INT8),
    "a Loop without a body": _loop_without_body,
    "a Scan with a wrong body": _scan_with_wrong_body,
    "subgraphs 12 deep": lambda m: m.graph.node.insert(1, nested(12)),
    "subgraphs 24 deep": lambda m: m.graph.node.insert(1, nested(24)),
    "a function that calls itself": lambda m: m.functions[0].node.append(
        helper.make_node("double", ["a"], ["z"], domain="local")
    ),
    "a function without a body": lambda m: m.functions[0].ClearField("node"),
    "a function without a name": lambda m: setattr(m.functions[0], "name", ""),
    "a function twice": lambda m: m.functions.append(m.functions[0]),
    "a function whose result nothing yields": lambda m: m.functions[0].output.__setitem__(0, "q"),
    "a function of another domain": lambda m: setattr(m.functions[0], "domain", "elsewhere"),
    "a function without opsets": lambda m: m.functions[0].ClearField("opset_import"),
    "a function in place of Relu": lambda m: (
        setattr(m.functions[0], "domain", ""),
        setattr(m.functions[0], "name", "Relu"),
    ),
    "functions that double twenty times": lambda m: laughs(m, 20),
    "functions that double fifty times": lambda m: laughs(m, 50),
    "an integer division by zero": lambda m: _divide(m, 7, 0),
    "the smallest integer by minus one": lambda m: _divide(m, -(1 << 63), -1),
    "the smallest integer modulo minus one": lambda m: _divide(m, -(1 << 63), -1, "Mod"),
    "an integer modulo zero": lambda m: _divide(m, 7, 0, "Mod"),
    "ConstantOfShape of a terabyte": lambda m: _huge(m, "ConstantOfShape"),
    "Expand to a terabyte": lambda m: _huge(m, "Expand"),
    "Tile to a terabyte": lambda m: _huge(m, "Tile"),
    "Range to a petabyte": lambda m: _huge(m, "Range"),
    "external weights by an absolute path": lambda m: outside(weight(m), location="/etc/passwd"),
    "external weights above the folder": lambda m: outside(weight(m), location="../secret"),
    "external weights above it by a detour": lambda m: outside(weight(m), location="inner/../../secret"),
    "external weights that are a link out": lambda m: outside(weight(m), location="link"),
    "external weights that are a hard link": lambda m: outside(weight(m), location="hard"),
    "external weights that are a folder": lambda m: outside(weight(m), location="inner"),
    "external weights that are a device": lambda m: outside(weight(m), location="/dev/zero"),
    "external weights that are the model": lambda m: outside(weight(m), location="model.onnx", offset=1 << 20),
    "external weights without a path": lambda m: outside(weight(m), offset=0),
    "external weights at an empty path": lambda m: outside(weight(m), location=""),
    "external weights whose path has a NUL": lambda m: outside(weight(m), location="in\0ner"),
    "external weights that are missing": lambda m: outside(weight(m), location="nothing"),
    "external weights cut short": lambda m: outside(weight(m), location="short"),
    "external weights at a negative offset": lambda m: outside(weight(m), location="long", offset=-4),
    "external weights far behind the end": lambda m: outside(weight(m), location="long", offset=1 << 62),
    "external weights of negative length": lambda m: outside(weight(m), location="long", length=-1),
    "external weights of another length": lambda m: outside(weight(m), location="long", length=5),
    "external weights at no number": lambda m: outside(weight(m), location="long", offset="0x10"),
    "external weights at two places": lambda m: (
        outside(weight(m), location="long", offset=0) or outside(weight(m), location="../secret")
    ),
    "a name of a megabyte": lambda m: setattr(m.graph.node[0], "name", "n" * (1 << 20)),
    "names that are markup": lambda m: setattr(m.graph.node[0], "name", "<script>alert(1)</script>"),
    "names that are paths": lambda m: setattr(m.graph.node[0], "name", "../../../etc/passwd"),
    "names of control characters": lambda m: setattr(m.graph.node[0], "name", "a\x1b[2J\r\n\x00b"),
    "a doc string of a megabyte": lambda m: setattr(m, "doc_string", "d" * (1 << 20)),
    "metadata twice": lambda m: [m.metadata_props.add(key="k", value=v) for v in "ab"],
    "training information": lambda m: m.training_info.add(),
    "five thousand unread nodes": lambda m: m.graph.node.extend(
        [helper.make_node("Relu", ["x"], [f"r{k}"]) for k in range(5_000)]
    ),
}
"""What is wrong, and how it is done to `good`."""


def raw() -> Iterator[tuple[str, bytes]]:
    """Files that are broken below the level of ONNX."""
    data = good().SerializeToString()
    yield from (("empty", b""), ("one byte", b"\x08"), ("text", b"hello, world\n" * 50), ("zeros", bytes(4096)))
    yield from (
        ("a zip", b"PK\x03\x04" + bytes(200)),
        ("a gzip", b"\x1f\x8b\x08" + bytes(200)),
        ("ones", b"\xff" * 4096),
    )
    yield "a length without an end", b"\x3a" + b"\xff" * 9 + b"\x01" + data
    yield "a length beyond the end", b"\x3a\xff\xff\xff\x7f" + data
    yield "an unknown field", data + b"\xfa\x3e\x04evil"
    yield "two models in one file", data + data
    yield "a name that is not UTF-8", data.replace(b"conv", b"c\xff\xfev")
    yield "groups nested a thousand deep", b"\x0b" * 1000
    yield "messages nested ten thousand deep", _matryoshka(10_000)
    yield from ((f"cut after {part} %", data[: len(data) * part // 100]) for part in range(5, 100, 5))
    dice = random.Random(0)
    for k in range(40):
        damaged = bytearray(data)
        for _ in range(1 + k // 8):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        yield f"bytes changed at random, {k}", bytes(damaged)


def _matryoshka(depth: int) -> bytes:
    """Messages in messages, by the field of a graph in an attribute of a node of a graph."""
    inner = b""
    for k in range(depth):
        tag = (b"\x0a", b"\x2a", b"\x32")[k % 3]
        inner = tag + _varint(len(inner)) + inner
        if len(inner) > 1 << 20:
            break
    return b"\x3a" + _varint(len(inner)) + inner


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def write(folder: Path) -> dict[str, Path]:
    """Write every case into a folder of its own below `folder`, with a secret beside; case -> path of its model."""
    (folder / "secret").write_bytes(SECRET * 10)
    cases = {name: made.SerializeToString() for name, made in _changed()} | dict(raw())
    paths: dict[str, Path] = {}
    for k, (name, data) in enumerate(cases.items()):
        here = folder / str(k)
        (here / "inner").mkdir(parents=True)
        (here / "link").symlink_to(folder / "secret")
        os.link(folder / "secret", here / "hard")
        (here / "short").write_bytes(bytes(60))
        (here / "long").write_bytes(bytes(4096))
        paths[name] = here / "model.onnx"
        paths[name].write_bytes(data)
    return paths


def _changed() -> Iterator[tuple[str, ModelProto]]:
    for name, change in CHANGES.items():
        model = good()
        change(model)
        yield name, model
