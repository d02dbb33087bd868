"""Static libraries for C: built by gcc into a program of its own, run, and compared with onnxruntime."""

import ctypes
import platform
import shutil
import subprocess

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from graphopt import api, oracle
from graphopt.artifact import load, read, write
from graphopt.base import Context
from graphopt.cli.app import app
from graphopt.errors import ArtifactError, LoweringError, UsageError
from graphopt.graph import bind_dims, save
from graphopt.targets.llvm import Llvm
from graphopt.targets.llvm.static import export
from graphopt.testing import from_text, random_feeds

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
CROSS, QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64"
emulated = pytest.mark.skipif(
    shutil.which(CROSS) is None or shutil.which(QEMU) is None, reason=f"{CROSS} or {QEMU} is missing"
)


def network() -> ir.Model:
    """Winograd (scratch memory), depthwise, pooling, dense, softmax; int64 inputs; outputs that are inputs or views."""
    rng = np.random.default_rng(0)
    return from_text(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[N, 16, 12, 12] x, int64[N, 3] ids, float[32, 16, 3, 3] w0, float[32, 1, 3, 3] w1, float[800, 20] w2,
           float[50, 20] table) => (float[N, 20] y, int64[N, 3] same, float[N, 3, 20] rows, float[N, 20] again)
        {
            a = Conv<pads=[1, 1, 1, 1]>(x, w0)
            b = Relu(a)
            c = Conv<group=32>(b, w1)
            d = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(c)
            e = Flatten(d)
            f = MatMul(e, w2)
            y = Softmax(f)
            again = Identity(y)
            same = Identity(ids)
            rows = Gather(table, ids)
        }""",
        w0=rng.standard_normal((32, 16, 3, 3), np.float32) / 12,
        w1=rng.standard_normal((32, 1, 3, 3), np.float32) / 3,
        w2=rng.standard_normal((800, 20), np.float32) / 28,
        table=rng.standard_normal((50, 20), np.float32),
    )


def fixed() -> ir.Model:
    model = network()
    bind_dims(model, {"N": 2})
    return model


def feeds_of(model):
    feeds = random_feeds(model)
    feeds["ids"] = np.array([[0, 49, 7], [3, 3, 1]], np.int64)
    return feeds


def build_and_run(model, feeds, info, folder, name="model", compiler="gcc", through=()):
    command = info["build"].split()
    assert command[0] == compiler
    subprocess.run([*command, "-Wall", "-Wextra", "-Werror", "-static"], cwd=folder, check=True)
    for value in model.graph.inputs:
        feeds[value.name].tofile(folder / f"in-{value.name}")
    inputs = [f"in-{v.name}" for v in model.graph.inputs]
    outputs = [f"out-{v.name}" for v in model.graph.outputs]
    subprocess.run([*through, "./example", *inputs, *outputs], cwd=folder, check=True, timeout=120)
    want = oracle.run(model, feeds)
    for name, expected in want.items():
        got = np.fromfile(folder / f"out-{name}", expected.dtype).reshape(expected.shape)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * float(np.abs(expected).max()), err_msg=name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("static")
    return folder, export(fixed(), Llvm(threads=1), folder, "model")


def test_a_c_program_computes_what_onnxruntime_does(exported):
    folder, info = exported
    build_and_run(fixed(), feeds_of(fixed()), info, folder)
    assert {path.name for path in folder.iterdir()} >= {"libmodel.a", "model.h", "main.c"}


def test_a_model_of_a_single_kernel(tmp_path):
    model = from_text(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[2, 16] x, float[16, 4] w) => (float[2, 4] y) { y = MatMul(x, w) }""",
        w=np.ones((16, 4), np.float32),
    )
    build_and_run(model, random_feeds(model), export(model, Llvm(threads=1), tmp_path, "model"), tmp_path)


def test_only_the_function_has_a_global_name_and_nothing_of_tvm_is_needed(exported):
    folder, _ = exported
    names = subprocess.run(["nm", "-g", "libmodel.a"], cwd=folder, capture_output=True, text=True, check=True).stdout
    defined = [line.split()[-1] for line in names.splitlines() if " T " in line or " D " in line or " R " in line]
    assert defined == ["model_run"]
    assert "tvm" not in names.lower()


def test_a_wrong_pointer_is_refused(exported, tmp_path):
    folder, info = exported
    library = tmp_path / "model.so"
    archive = ["-Wl,--whole-archive", str(folder / "libmodel.a"), "-Wl,--no-whole-archive"]
    subprocess.run(["gcc", "-shared", "-o", library, *archive, "-lm"], check=True)
    run = ctypes.CDLL(str(library)).model_run
    model = fixed()
    feeds, want = feeds_of(model), oracle.run(model, feeds_of(model))

    def aligned(nbytes):
        buffer = np.zeros(nbytes + 128, np.uint8)
        return buffer[-buffer.ctypes.data % 64 :][:nbytes]

    ins = [aligned(feeds[v.name].nbytes) for v in model.graph.inputs]
    for place, value in zip(ins, model.graph.inputs, strict=True):
        place[:] = feeds[value.name].view(np.uint8).ravel()
    outs = [aligned(want[v.name].nbytes) for v in model.graph.outputs]
    work = aligned(info["workspace_bytes"] + 64)

    def call(inputs, outputs, workspace):
        def pointers(addresses):
            return (ctypes.c_void_p * len(addresses))(*addresses)

        return run(pointers(inputs), pointers(outputs), ctypes.c_void_p(workspace))

    i, o, w = [a.ctypes.data for a in ins], [a.ctypes.data for a in outs], work.ctypes.data
    assert call([i[0] + 4, *i[1:]], o, w) == 1
    assert call(i, [None, *o[1:]], w) == 1
    assert call(i, o, w + 8) == 1
    assert call(i, o, None) == 1
    assert not any(a.any() for a in outs)
    assert call(i, o, w) == 0
    np.testing.assert_allclose(outs[0].view(np.float32).reshape(2, 20), want["y"], atol=2e-5)


@emulated
def test_aarch64_under_emulation(tmp_path):
    info = export(fixed(), Llvm(mcpu="neoverse-n1", threads=1), tmp_path, "model")
    assert info["triple"] == "aarch64-linux-gnu"
    build_and_run(fixed(), feeds_of(fixed()), info, tmp_path, compiler=CROSS, through=[QEMU])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="not an x86")
def test_an_older_cpu_of_this_architecture(tmp_path):
    info = export(fixed(), Llvm(mcpu="x86-64-v2", threads=1), tmp_path, "model")
    assert "avx" not in info["cpu_features"]
    build_and_run(fixed(), feeds_of(fixed()), info, tmp_path)


def test_open_dimensions_and_control_flow_are_refused(tmp_path):
    with pytest.raises(LoweringError, match="--dim"):
        export(network(), Llvm(threads=1), tmp_path / "open", "model")
    data_dependent = from_text(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[3, 4] x) => (int64[2, K] y) { a = Relu(x) y = NonZero(a) }"""
    )
    with pytest.raises(LoweringError, match="nonzero"):
        export(data_dependent, Llvm(threads=1), tmp_path / "data", "model")
    assert list(tmp_path.iterdir()) == []


def test_export_of_an_artifact_by_the_command_line(tmp_path):
    save(fixed(), tmp_path / "m.onnx")
    api.compile(tmp_path / "m.onnx").save(tmp_path / "m.gopt")
    with pytest.raises(ArtifactError, match="--keep-source"):
        api.export(tmp_path / "m.gopt", tmp_path / "c")
    api.compile(tmp_path / "m.onnx", keep_source=True).save(tmp_path / "m.gopt")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "m.gopt"), "-o", str(tmp_path / "c"), "--name", "net"])
    assert done.exit_code == 0, done.exception
    assert (tmp_path / "c" / "libnet.a").exists()
    assert "int net_run(" in (tmp_path / "c" / "net.h").read_text()
    with pytest.raises(UsageError, match="C names"):
        api.export(tmp_path / "m.gopt", tmp_path / "c", name="a-b")


@emulated
@pytest.mark.skipif(platform.machine() == "aarch64", reason="this is one")
def test_an_artifact_for_aarch64_is_made_and_refused_elsewhere(tmp_path):
    model = from_text('<ir_version: 10, opset_import: ["": 20]> g (float[1, 8] x) => (float[1, 8] y) { y = Relu(x) }')
    program = Llvm(mcpu="neoverse-n1", threads=1).build(model, Context())
    place = write(tmp_path / "m.gopt", program, target="llvm", before=model, after=model, report={})
    assert "neon" in read(place).manifest.cpu_features
    with pytest.raises(ArtifactError, match="on aarch64"):
        load(place)
