"""A program written to a file, loaded again and called: what comes back is what went in, and wrong calls are named."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt.artifact as artifact
from graphopt.artifact import checks, container
from graphopt.artifact.manifest import TensorSpec
from graphopt.base import Program
from graphopt.errors import ArtifactError, DataError, UsageError
from graphopt.graph import constant_array
from graphopt.graph.absent import absent, draw
from graphopt.graph.cost import cost


def dense_relu(weights: dict[str, np.ndarray], dtype: str = "float32") -> Program:
    """``y = relu(x @ w + b)``, ``x`` handed back as it came, as a Relax module compiled for any x86 or Arm CPU."""
    import tempfile
    from pathlib import Path

    import tvm
    from tvm import relax

    builder, n = relax.BlockBuilder(), tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType([n, 8], dtype))
    w, b = (relax.Var(name, relax.TensorType(list(array.shape), dtype)) for name, array in weights.items())
    with builder.function("main", [x, w, b]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.relu(relax.op.add(relax.op.matmul(x, w), b)))
            out = builder.emit_output(relax.Tuple([y, x]))
        builder.emit_func_output(out)
    target = tvm.target.Target({"kind": "llvm"})
    built = relax.build(builder.get(), target, relax_pipeline=relax.get_default_pipeline(target))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lib.so"
        built.export_library(str(path))
        library = path.read_bytes()
    report = {"kernels": 1, "seconds": np.float32(0.5)}
    return Program(library, weights, ["x"], ["y", "same"], files={"logs/build.txt": b"all well"}, report=report)


def model_of(weights: dict[str, np.ndarray], dtype: str = "float32") -> ir.Model:
    columns, element = weights["w"].shape[1], {"float32": "float"}.get(dtype, dtype)
    text = f"""<ir_version: 10, opset_import: ["": 18]>
    net ({element}[N, 8] x) => ({element}[N, {columns}] y, {element}[N, 8] same) {{
        h = MatMul(x, w)
        s = Add(h, b)
        y = Relu(s)
        same = Identity(x)
    }}"""
    model = ir.from_onnx_text(text)
    for name, array in weights.items():
        value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
        model.graph.register_initializer(value)
    return model


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return {"w": rng.normal(size=(8, 64)).astype(np.float32), "b": rng.normal(size=(64,)).astype(np.float32)}


@pytest.fixture(scope="module")
def program(weights):
    return dense_relu(weights)


@pytest.fixture(scope="module")
def path(tmp_path_factory, program, weights):
    before = model_of({"w": weights["w"] * 2, "b": weights["b"]})
    place = tmp_path_factory.mktemp("artifact") / "net.gopt"
    return artifact.write(
        place,
        program,
        target="llvm{mcpu=x}",
        before=before,
        after=model_of(weights),
        report={"passes": ["fold"]},
        keep_source=True,
    )


@pytest.fixture(scope="module")
def net(path):
    return artifact.load(path)


@pytest.fixture(scope="module")
def lean(tmp_path_factory, program, weights):
    """The same without its source, as is the default."""
    before = model_of({"w": weights["w"] * 2, "b": weights["b"]})
    place = tmp_path_factory.mktemp("lean") / "net.gopt"
    return artifact.write(place, program, target="llvm", before=before, after=model_of(weights), report={})


def test_what_runs_is_what_was_written(net, weights):
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    y, same = net(x)
    np.testing.assert_allclose(y, np.maximum(x @ weights["w"] + weights["b"], 0), rtol=1e-5, atol=1e-5)
    named = net.run({"x": x})
    assert list(named) == ["y", "same"]
    np.testing.assert_array_equal(named["y"], y)
    assert not np.shares_memory(same, x), "an output that is an input must still be the caller's own array"
    same[:] = 0
    assert x.any()


def test_outputs_stay_as_they_were_when_called_again(net):
    first, _ = net(np.ones((2, 8), np.float32))
    kept = first.copy()
    net(np.full((2, 8), 7, np.float32))
    np.testing.assert_array_equal(first, kept)


def test_inputs_of_any_layout_and_alignment(net):
    x = np.random.default_rng(2).normal(size=(4, 8)).astype(np.float32)
    expected = net(x)[0]
    unaligned = np.zeros(33, np.float32)[1:].reshape(4, 8)
    unaligned[:] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    for other in (np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], unaligned, frozen):
        np.testing.assert_array_equal(net(other)[0], expected)
    np.testing.assert_array_equal(net(np.repeat(x, 2, axis=0)[::2][:1])[0], net(x[:1].copy())[0])
    assert net(np.zeros((0, 8), np.float32))[0].shape == (0, 64)


def test_weights_are_views_of_the_mapped_file(net):
    for array in net.weights.values():
        assert array.ctypes.data % 64 == 0
    held = net._session.weights
    assert [t.data_ptr() if hasattr(t, "data_ptr") else np.from_dlpack(t).ctypes.data for t in held] == [
        array.ctypes.data for array in net.weights.values()
    ]
    whole = np.frombuffer(net._container.data, np.uint8)
    assert all(np.shares_memory(whole, array) for array in net.weights.values())


def test_the_same_parts_give_the_same_bytes(tmp_path, path, program, weights):
    before = model_of({"w": weights["w"] * 2, "b": weights["b"]})
    again = artifact.write(
        tmp_path / "b.gopt",
        program,
        target="llvm{mcpu=x}",
        before=before,
        after=model_of(weights),
        report={"passes": ["fold"]},
        keep_source=True,
    )
    assert again.read_bytes() == path.read_bytes()


def test_any_zip_tool_reads_it_and_unzipped_graphs_are_valid_models(path, tmp_path, weights):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("manifest.json"))
        stored = {i.filename for i in archive.infolist() if i.compress_type == zipfile.ZIP_STORED}
        assert stored == {"weights.bin", "graphs.bin"}
        archive.extractall(tmp_path)
    import hashlib

    for name, member in manifest["members"].items():
        data = (tmp_path / name).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (member["sha256"], member["nbytes"])
    for which in ("before", "after"):
        onnx.checker.check_model(str(tmp_path / f"{which}.onnx"))
    after = onnx.load(tmp_path / "after.onnx")
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in after.graph.initializer}
    np.testing.assert_array_equal(stored["w"], weights["w"])


def test_tensors_the_program_has_are_not_stored_twice(path):
    with zipfile.ZipFile(path) as archive:
        # after's w is the program's; of before only w differs; b is small enough to stay in the graph
        assert archive.getinfo("weights.bin").file_size == 8 * 64 * 4 + 64 * 4
        assert archive.getinfo("graphs.bin").file_size == 8 * 64 * 4
        assert archive.getinfo("after.onnx").file_size < 1500


def test_weights_that_do_not_run_are_left_out(lean, path, weights):
    """after's w is the program's and comes back; before's w is known by type, shape and statistics only."""
    with zipfile.ZipFile(lean) as archive:
        assert archive.getinfo("graphs.bin").file_size == 0
        assert archive.read("weights.bin") == zipfile.ZipFile(path).read("weights.bin")
    opened = artifact.load(lean)
    np.testing.assert_array_equal(
        opened.graph_with_weights("after").graph.initializers["w"].const_value.numpy(), weights["w"]
    )
    before = opened.graph("before")
    (value,) = absent(before)
    assert (value.name, str(value.const_value.dtype), list(value.const_value.shape)) == ("w", "FLOAT", [8, 64])
    assert constant_array(value) is None
    assert cost(before).parameters == 8 * 64 + 64
    with pytest.raises(ArtifactError, match=r"before the passes: 1 are missing, such as w.*--keep-source"):
        opened.graph_with_weights("before")
    assert draw(before) == 1
    drawn = value.const_value.numpy()
    assert drawn.std() == pytest.approx(2 * weights["w"].std(), rel=0.1)
    assert np.abs(drawn).max() <= 1.001 * np.abs(2 * weights["w"]).max()
    assert not absent(before)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "float8_e4m3fn", "bfloat16", "float16"])
def test_weights_of_any_type_are_left_out_and_drawn(program, weights, dtype):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 7, (64, 64)).astype(getattr(ml_dtypes, dtype, dtype))
    model = model_of(weights)
    model.graph.initializers["w"].const_value = ir.tensor(numbers, name="w")
    made = artifact.assemble(program, target="llvm", before=model, after=model_of(weights), report={})
    before = made.graph("before")
    assert draw(before) == 1
    drawn = before.graph.initializers["w"].const_value.numpy()
    assert (drawn.dtype, drawn.shape) == (numbers.dtype, numbers.shape)
    assert 0 <= drawn.astype(np.float32).min() < 1
    assert 5 < drawn.astype(np.float32).max() <= 6


def test_what_a_graph_does_is_kept_without_the_source(program, weights):
    """Indices are no weights: random ones would be out of range."""
    model = model_of(weights)
    rows = ir.tensor(np.arange(500), name="rows")
    value = ir.Value(name="rows", const_value=rows, shape=ir.Shape([500]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.register_initializer(value)
    node = ir.node("Gather", [next(iter(model.graph)).outputs[0], value], name="pick")
    model.graph.insert_after(next(iter(model.graph)), node)
    made = artifact.assemble(program, target="llvm", before=model, after=model_of(weights), report={})
    kept = made.graph("before").graph.initializers["rows"].const_value.numpy()
    np.testing.assert_array_equal(kept, np.arange(500))


def test_graphs_report_and_files_come_back(net, weights):
    before, after = net.graph("before"), net.graph("after")
    np.testing.assert_array_equal(after.graph.initializers["w"].const_value.numpy(), weights["w"])
    np.testing.assert_array_equal(before.graph.initializers["w"].const_value.numpy(), weights["w"] * 2)
    assert [n.op_type for n in after.graph] == ["MatMul", "Add", "Relu", "Identity"]
    assert net.report == {"passes": ["fold"], "target": {"kernels": 1, "seconds": 0.5}}
    assert net.files == ["logs/build.txt"]
    assert net.read_file("logs/build.txt") == b"all well"
    with pytest.raises(ArtifactError, match="no member"):
        net.read_file("other")
    assert [str(s) for s in net.inputs] == ["float32[N, 8]"]
    assert "x: float32[N, 8]" in repr(net)


def test_writing_leaves_the_graphs_as_they_were(tmp_path, program, weights):
    model = model_of(weights)
    artifact.write(tmp_path / "a.gopt", program, target="llvm", before=model, after=model, report={})
    assert isinstance(model.graph.initializers["w"].const_value, ir.Tensor)


def test_assembled_in_memory_it_saves_the_same_file(tmp_path, path, program, weights):
    before = model_of({"w": weights["w"] * 2, "b": weights["b"]})
    made = artifact.assemble(
        program,
        target="llvm{mcpu=x}",
        before=before,
        after=model_of(weights),
        report={"passes": ["fold"]},
        keep_source=True,
    )
    made(np.ones((1, 8), np.float32))
    assert made.save(tmp_path / "saved.gopt").read_bytes() == path.read_bytes()


def test_closed_it_says_so(path):
    with artifact.load(path) as net:
        net(np.ones((1, 8), np.float32))
    with pytest.raises(ArtifactError, match="closed"):
        net(np.ones((1, 8), np.float32))


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "missing 'x'"),
        ({"X": 0}, r"missing 'x'; unknown 'X'.*its inputs are 'x' \(float32\[N, 8\]\)"),
        ({"x": np.ones((1, 8))}, r"'x' expects float32\[N, 8\] and got float64\[1, 8\].*astype\('float32'\)"),
        ({"x": np.ones(8, np.float32)}, "must have 2 dimensions, not 1"),
        ({"x": np.ones((1, 9), np.float32)}, "dimension 1 must be 8, not 9"),
        ({"x": [[1.0], [1.0, 2.0]]}, "'x' expects .* got no array"),
        ({"x": np.ones((1, 8), ">f4")}, "got >f4"),
        ({"x": None}, "got object"),
    ],
)
def test_a_wrong_call_is_named(net, feeds, said):
    with pytest.raises(DataError, match=said):
        net.run(feeds)


def test_too_many_positional_arrays(net):
    with pytest.raises(TypeError, match="2 arrays given"):
        net(np.ones((1, 8), np.float32), 1)


def test_a_symbol_is_one_size_wherever_it_stands():
    a, b = (TensorSpec(name=n, dtype="int64", shape=["N", None]) for n in "ab")
    checks.fit([a, b], {"a": np.zeros((2, 3), int), "b": np.zeros((2, 5), int)}, {})
    with pytest.raises(DataError, match=r"dimension 0 is 3 where N is already 2 \(in 'a'\)"):
        checks.fit([a, b], {"a": np.zeros((2, 3), int), "b": np.zeros((3, 3), int)}, {})
    free = TensorSpec(name="a", dtype="bool", shape=None)
    assert checks.fit([free], {"a": True}, {})[0][0].shape == ()


def test_bfloat16_goes_in_and_comes_out():
    bf16 = ml_dtypes.bfloat16
    weights = {"w": np.eye(8, 64).astype(bf16), "b": np.zeros(64, bf16)}
    net = artifact.assemble(
        dense_relu(weights, "bfloat16"),
        target="llvm",
        before=model_of(weights, "bfloat16"),
        after=model_of(weights, "bfloat16"),
        report={},
    )
    x = np.arange(16).reshape(2, 8).astype(bf16)
    y, same = net(x)
    assert y.dtype == bf16
    np.testing.assert_array_equal(y[:, :8], x)
    np.testing.assert_array_equal(same, x)


def test_threads(path):
    from graphopt.artifact.runtime import available_threads

    most = available_threads()
    one = artifact.load(path, threads=1)
    assert (one.threads, artifact.load(path).threads) == (1, most)
    x = np.ones((3, 8), np.float32)
    expected, results = one(x)[0], []
    workers = [threading.Thread(target=lambda: results.append(one(x)[0])) for _ in range(4)]
    [w.start() for w in workers], [w.join() for w in workers]
    assert len(results) == 4
    assert all(np.array_equal(r, expected) for r in results)
    for wrong in (0, most + 1):
        with pytest.raises(UsageError, match=f"between 1 and {most}"):
            artifact.load(path, threads=wrong)


def test_running_needs_neither_onnx_nor_onnxruntime_nor_the_compiler(path):
    code = f"""
import sys
for name in ("onnx", "onnx_ir", "onnxruntime", "onnxscript"):
    sys.modules[name] = None
import numpy as np
from graphopt import load
with load({str(path)!r}) as net:
    print(net(np.ones((1, 8), np.float32))[0].shape, net.report["passes"])
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
assert "libtvm_compiler" not in maps
assert "tvm" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 64) ['fold']\n"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_parts_of_the_file_that_nobody_uses_stay_out_of_memory(tmp_path):
    """Opening verifies all bytes and leaves no page of the map behind."""
    place = tmp_path / "large"
    with open(place, "w+b") as file:
        container.pack(file, {"a.bin": container.content(bytes(1 << 25))}, lambda _: b"{}")
        opened = container.Container(file, "large")
    entry = Path("/proc/self/smaps").read_text().split(str(place))[1]
    resident = next(int(line.split()[1]) for line in entry.splitlines() if line.startswith("Rss:"))
    assert resident < 1 << 10  # KiB; the file has 32 MiB
    assert len(opened.read("a.bin")) == 1 << 25


def test_a_gpu_artifact_without_a_gpu_says_so(tmp_path, program, weights):
    import ctypes.util

    if ctypes.util.find_library("cuda"):
        pytest.skip("this machine has a CUDA driver")
    import dataclasses

    model = model_of(weights)
    place = tmp_path / "gpu.gopt"
    artifact.write(
        place, dataclasses.replace(program, device="cuda"), target="cuda", before=model, after=model, report={}
    )
    with pytest.raises(ArtifactError, match="NVIDIA GPU, and this machine has no CUDA driver"):
        artifact.load(place)
    assert artifact.read(place).manifest.device == "cuda", "it can be looked at all the same"
