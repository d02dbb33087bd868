"""The door: what comes in is normal, and what is broken is refused in one paragraph."""

import importlib
import mmap
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import oracle
from graphopt.errors import GraphoptError, ModelError
from graphopt.graph import bind_dims, from_proto, infer_shapes, isolated, load, normalise, onnx_library, save, sources
from graphopt.graph.external import HELD_BELOW
from graphopt.testing import from_text, op_types


def proto(nodes: list[onnx.NodeProto], opset: int = 17, **kwargs: object) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], **kwargs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


RELU = helper.make_node("Relu", ["x"], ["y"])


def written(model: onnx.ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_nodes_get_names_shapes_and_provenance(tmp_path: Path):
    model = load(written(proto([RELU]), tmp_path))
    (node,) = model.graph
    assert node.name
    assert sources(node) == [node.name]
    assert str(node.outputs[0].shape) == "[N,4]"


def test_initializers_listed_as_inputs_become_constants(tmp_path: Path):
    w = numpy_helper.from_array(np.ones(4, np.float32), "w")
    model = proto([helper.make_node("Add", ["x", "w"], ["y"])], initializer=[w])
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    loaded = load(written(model, tmp_path))
    assert [v.name for v in loaded.graph.inputs] == ["x"]
    assert "w" in loaded.graph.initializers


def test_old_opsets_are_raised(tmp_path: Path):
    node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    assert load(written(proto([node], opset=9), tmp_path)).opset_imports[""] >= 13


def test_scan_of_opset_8_is_refused_by_its_name(tmp_path: Path):
    """It has a batch axis that later ones lack, and onnx's converter forgets it."""
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "e"], ["t"]), helper.make_node("Identity", ["t"], ["o"])],
        "body",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("s", "e")],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("t", "o")],
    )
    scan = helper.make_node("Scan", ["", "x", "x"], ["y", "z"], body=body, num_scan_inputs=1)
    with pytest.raises(ModelError, match=r"opset 8, whose Scan .* Export it again with opset 9"):
        load(written(proto([scan], opset=8), tmp_path))


def test_a_proto_in_memory_enters_by_the_same_door(tmp_path: Path):
    old = proto([helper.make_node("Softmax", ["x"], ["y"], axis=1)], opset=9)
    assert from_proto(old).opset_imports[""] == load(written(old, tmp_path)).opset_imports[""] >= 13
    with pytest.raises(ModelError, match="the model is not an ONNX model"):
        from_proto(onnx.ModelProto())


def test_unordered_nodes_are_put_in_order(tmp_path: Path):
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Neg", ["x"], ["a"])]
    assert op_types(load(written(proto(nodes), tmp_path))) == ["Neg", "Relu"]


def cyclic() -> bytes:
    return proto(
        [helper.make_node("Add", ["x", "b"], ["y"]), helper.make_node("Relu", ["y"], ["b"])]
    ).SerializeToString()


def twice() -> bytes:
    model = proto([RELU])
    model.opset_import.append(helper.make_opsetid("ai.onnx", 13))
    return model.SerializeToString()


def without_outputs() -> bytes:
    model = proto([RELU])
    del model.graph.output[:]
    return model.SerializeToString()


WHOLE = proto([RELU]).SerializeToString()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "no graph"),
        (b"this is a text file, not a model\n" * 9, "not an ONNX model"),
        (WHOLE[: len(WHOLE) // 2], "cut short|no graph|not a valid"),
        (cyclic(), "cycle"),
        (proto([RELU], opset=99).SerializeToString(), "knows opsets up to"),
        (without_outputs(), "no outputs"),
        (twice(), "imports an opset more than once"),
        (proto([helper.make_node("NoSuchOp", ["x"], ["y"])]).SerializeToString(), "NoSuchOp"),
        (proto([helper.make_node("Relu", ["nowhere"], ["y"])]).SerializeToString(), "nowhere"),
        (proto([helper.make_node("Relu", ["x"], ["y"], bogus=1)]).SerializeToString(), "bogus"),
        (proto([helper.make_node("Reshape", ["x", "x"], ["y"])]).SerializeToString(), "contradict"),
    ],
    ids=[
        "empty",
        "text",
        "truncated",
        "cyclic",
        "opset-99",
        "no-outputs",
        "opset-twice",
        "unknown-op",
        "undefined-input",
        "attribute",
        "types",
    ],
)
def test_broken_files_are_refused(data: bytes, complaint: str, tmp_path: Path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=complaint) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="there is no file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="not a file"):
        load(tmp_path)


def external(tmp_path: Path, size: int = 4) -> Path:
    model = ir.from_proto(
        proto(
            [helper.make_node("Add", ["x", "w"], ["y"])],
            initializer=[numpy_helper.from_array(np.arange(size, dtype=np.float32).reshape(-1, 4).squeeze(), "w")],
        )
    )
    ir.save(model, tmp_path / "m.onnx", external_data="w.data", size_threshold_bytes=0)
    return tmp_path / "m.onnx"


def is_mapped(array: np.ndarray) -> bool:
    while isinstance(array.base, np.ndarray):
        array = array.base
    owner = array.base.obj if isinstance(array.base, memoryview) else array.base
    return isinstance(owner, mmap.mmap)


def test_external_weights_stay_in_their_file(tmp_path: Path):
    """And are let go when nobody looks: each reading is a mapping of its own."""
    tensor = load(external(tmp_path, HELD_BELOW)).graph.initializers["w"].const_value
    array = tensor.numpy()
    assert is_mapped(array)
    assert not array.flags.writeable
    np.testing.assert_array_equal(array.ravel(), np.arange(HELD_BELOW))
    mapping = weakref.ref(array.base)
    del array
    assert mapping() is None


def test_weights_stay_those_that_were_loaded_when_their_file_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.import_module("graphopt.graph.save"), "EXTERNAL_ABOVE", 1)
    path = save(load(external(tmp_path, HELD_BELOW)), tmp_path / "two.onnx")
    model = load(path)
    other = load(path)
    weights = other.graph.initializers["w"]
    weights.const_value = ir.Tensor(-weights.const_value.numpy(), name="w")
    save(other, path)
    before, after = (m.graph.initializers["w"].const_value.numpy() for m in (model, load(path)))
    np.testing.assert_array_equal(before.ravel(), np.arange(HELD_BELOW))
    np.testing.assert_array_equal(after, -before)


@pytest.mark.parametrize("dtype", [ir.DataType.INT4, ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN, ir.DataType.BOOL])
def test_external_weights_of_every_width_are_read(dtype: ir.DataType, tmp_path: Path):
    """Two four-bit numbers share a byte in the file."""
    array = np.resize([0, 1, 1, 0, 1], 3 * HELD_BELOW).astype(dtype.numpy())
    value = ir.val("w", const_value=ir.Tensor(array, dtype=dtype, name="w"), shape=array.shape, dtype=dtype)
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name="cast")
    (y,) = cast.outputs
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape(array.shape)
    graph = ir.Graph([], [y], nodes=[cast], initializers=[value], opset_imports={"": 21}, name="g")
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "m.onnx", external_data="w.data", size_threshold_bytes=0)
    tensor = load(tmp_path / "m.onnx").graph.initializers["w"].const_value
    np.testing.assert_array_equal(tensor.numpy().astype(np.float32), array.astype(np.float32))
    np.testing.assert_array_equal(oracle.run(load(tmp_path / "m.onnx"), {})["y"], array.astype(np.float32))


def test_external_weights_of_constant_nodes_are_found_too(tmp_path: Path):
    weights = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    nodes = [helper.make_node("Constant", [], ["w"], value=weights), helper.make_node("Add", ["x", "w"], ["y"])]
    model, path = proto(nodes), tmp_path / "m.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="w.data", size_threshold=0, convert_attribute=True)
    constant = load(path).graph[0].attributes["value"].as_tensor()
    np.testing.assert_array_equal(constant.numpy(), np.arange(4))
    (tmp_path / "w.data").unlink()
    with pytest.raises(ModelError, match="missing"):
        load(path)


def test_a_model_with_external_weights_is_saved_whole_anywhere(tmp_path: Path):
    """Small models carry their weights inside: the copy does not depend on the file that the original had."""
    (tmp_path / "elsewhere").mkdir()
    path = save(load(external(tmp_path)), tmp_path / "elsewhere" / "copy.onnx")
    (tmp_path / "w.data").unlink()
    np.testing.assert_array_equal(load(path).graph.initializers["w"].const_value.numpy(), np.arange(4))


def test_large_models_are_saved_with_their_weights_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from graphopt import oracle

    monkeypatch.setattr(importlib.import_module("graphopt.graph.save"), "EXTERNAL_ABOVE", 4000)
    monkeypatch.setattr(oracle, "EXTERNAL_ABOVE", 4000)
    w, b = np.random.default_rng(0).standard_normal((2, 1000)).astype(np.float32)
    before = from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N,1000] x, float[1000] w, float[1000] b) => (float[N,1000] y) { a = Mul(x, w)  y = Add(a, b) }
        """,
        w=w, b=b,
    )  # fmt: skip
    path = save(before, tmp_path / "big.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert path.stat().st_size < 4000
    once = load(path)
    x = {"x": np.ones((2, 1000), np.float32)}
    np.testing.assert_array_equal(oracle.run(once, x)["y"], np.broadcast_to(w + b, (2, 1000)))
    save(once, path)  # over the very file that its weights are mapped from
    np.testing.assert_array_equal(oracle.run(once, x)["y"], oracle.run(load(path), x)["y"])


def test_external_weights_that_are_missing_short_or_elsewhere_are_refused(tmp_path: Path):
    path = external(tmp_path)
    data = (tmp_path / "w.data").read_bytes()
    (tmp_path / "w.data").write_bytes(data[:-1])
    with pytest.raises(ModelError, match="'w' are cut short"):
        load(path)
    (tmp_path / "w.data").unlink()
    with pytest.raises(ModelError, match="'w' are missing"):
        load(path)
    inner = tmp_path / "inner"
    inner.mkdir()
    outside = onnx.load(str(path), load_external_data=False)
    (tmp_path / "w.data").write_bytes(data)
    for entry in outside.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../w.data"
    (inner / "m.onnx").write_bytes(outside.SerializeToString())
    with pytest.raises(ModelError, match=r"outside the model's folder|\.\."):
        load(inner / "m.onnx")


def test_the_file_holds_what_the_model_does(tmp_path: Path):
    branch = "then_branch = a () => (float[N,4] p) { w = Constant<value_floats=[1.0]>() p = Mul(x, w) }"
    text = f"""<ir_version: 10, opset_import: ["" : 21, "own" : 1], metadata_props: ["by" : "hand"], doc_string: "said">
        g (float[N,4] x, bool c) => (float[N,4] y, string[2] t)
        <float[4] b = {{1, 2, 3, 4}}, int64[1] k = {{200}}, string[2] words = {{"a", ""}}> {{
            d = own.twice(x) e = Add(d, b) f = If(c) <{branch}, else_branch = o () => (float[N,4] q) {{ q = Neg(x) }}>
            y = Add(e, f) t = Identity(words) }}
        <domain: "own", opset_import: ["" : 21]> twice (v) => (r) {{ r = Add(v, v) }}"""
    model = from_proto(onnx.parser.parse_model(text))
    model.graph.initializers["big"] = ir.val("big", const_value=ir.tensor(np.ones((300, 70), np.float32), name="big"))
    half = ir.tensor(np.arange(140000).astype(ml_dtypes.int4), ir.DataType.INT4, name="packed")
    model.graph.initializers["packed"] = ir.val("packed", const_value=half)
    want = ir.to_proto(model)
    assert onnx.load(save(model, tmp_path / "m.onnx")) == want
    assert want.metadata_props[0].value == "hand"


def test_saving_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = normalise(ir.from_proto(proto([RELU])))
    path = save(model, tmp_path / "out.onnx")
    good = path.read_bytes()

    def broken(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ir, "to_proto", broken)
    with pytest.raises(KeyboardInterrupt):
        save(model, path)
    assert path.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
    with pytest.raises(GraphoptError, match="no folder"):
        save(model, tmp_path / "nowhere" / "out.onnx")


def test_bind_dims_gives_every_value_its_size(small: ir.Model):
    bind_dims(small, {"N": 5})
    assert [n.outputs[0].shape[0] for n in small.graph] == [5, 5, 5]
    assert small.graph.outputs[0].shape[0] == 5


def test_bind_dims_refuses_unknown_names_and_sizes(small: ir.Model):
    with pytest.raises(ModelError, match="no input has a dimension named 'M'; the symbolic dimensions are: N"):
        bind_dims(small, {"M": 5})
    with pytest.raises(ModelError, match="can't be 0"):
        bind_dims(small, {"N": 0})


def test_shape_inference_raises_on_contradiction(small: ir.Model):
    small.graph[1].outputs[0].shape = ir.Shape(["N", 7, 4, 4])
    with pytest.raises(ModelError, match="contradict"):
        infer_shapes(small)


def test_models_of_text_become_normal():
    model = from_text('<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }')
    assert op_types(model) == ["Relu"]


def test_an_interrupted_call_of_onnx_leaves_no_answer_for_the_next(monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C in a notebook while a model is checked: the next model must not get that one's shapes."""

    def interrupted(_: object):
        monkeypatch.undo()
        raise KeyboardInterrupt

    one, two = (proto([helper.make_node(op, ["x"], ["y"])]).SerializeToString() for op in ("Relu", "Neg"))
    monkeypatch.setattr(isolated, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        isolated.call(onnx_library.INFER, one)
    answer = onnx.ModelProto.FromString(isolated.call(onnx_library.INFER, two))
    assert [node.op_type for node in answer.graph.node] == ["Neg"]
