"""The CUDA target as far as it can be proven without a GPU, and on one where there is one."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import artifact, graph, models, oracle
from graphopt.base import Context, Program
from graphopt.errors import LoweringError, UsageError
from graphopt.pipeline.registry import make_target
from graphopt.targets.cuda import Cuda, arch
from graphopt.targets.cuda.account import occupancy, roofline
from graphopt.targets.cuda.machine_code import compiler, link, ptxas
from graphopt.targets.cuda.machine_code.fatbin import fatbin
from graphopt.testing import from_text

needs_compiler = pytest.mark.skipif(set(compiler.routes()) == {"source"}, reason="neither nvcc nor NVRTC here")
needs_linux = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and cc")
needs_gpu = pytest.mark.skipif(not arch.devices(), reason="no CUDA device on this machine")

NET = """<ir_version: 10, opset_import: ["": 18]>
net (float[N, 3, 9, 9] x) => (float[N, 5] y, float[N, 4, 9, 9] h) {
    [conv] c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    [relu] h = Relu(c)
    [pool] p = GlobalAveragePool(h)
    [flatten] f = Flatten(p)
    [gemm] g = Gemm<transB = 1>(f, v)
    [softmax] y = Softmax(g)
}"""


def small_net() -> ir.Model:
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "v": (5, 4)}
    model = ir.from_onnx_text(
        NET, initializers=[ir.tensor(rng.normal(size=s).astype(np.float32), name=n) for n, s in shapes.items()]
    )
    return graph.normalise(model)


@pytest.fixture(scope="module")
def net() -> ir.Model:
    return small_net()


@pytest.fixture(scope="module")
def program(net) -> Program:
    return Cuda(arch="sm_80").build(net, Context())


@pytest.fixture(scope="module")
def saved(net, program, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("cuda") / "net.gopt"
    return artifact.write(place, program, target="cuda{arch=sm_80}", before=net, after=net, report={})


def test_an_unknown_architecture_lists_the_known():
    with pytest.raises(UsageError, match=r"no architecture 'sm_50'.*sm_80 \(A100\).*sm_120"):
        Cuda(arch="sm_50")
    assert {"sm_75", "sm_80", "sm_90", "sm_120"} <= set(arch.known_archs())


def test_architectures_are_a_list_of_the_grammar_and_each_is_named_once():
    assert make_target("cuda{arch=[sm_90,sm_80]}") == Cuda(arch=("sm_80", "sm_90"))
    assert make_target("cuda{arch=sm_90}") == Cuda(arch="sm_90")
    for wrong in ((), ("sm_80", "sm_80")):
        with pytest.raises(UsageError, match=r"each architecture once, as in cuda\{arch=\[sm_80,sm_90\]\}"):
            Cuda(arch=wrong)


@needs_compiler
@pytest.mark.parametrize("name", list(arch.known_archs()))
def test_every_architecture_of_the_table_compiles(name):
    """One kernel in CUDA C as TVM writes it: the table holds nothing the compiler refuses."""
    source = 'extern "C" __global__ void twice_kernel(float* x) { x[threadIdx.x] *= 2.0f; }'
    binary = compiler.compile_source(source, name)
    assert binary.cubin is not None
    assert binary.cubin[:4] == b"\x7fELF"
    assert [use.name for use in ptxas.parse(binary.log)] == ["twice_kernel"]


@needs_compiler
def test_the_report_has_the_facts_of_each_kernel(program):
    report, source = program.report, program.files["kernels.cu"].decode()
    assert report["arch"] == "sm_80"
    assert report["route"] in ("nvcc", "nvrtc")
    assert report["embedded"] == "cubin"
    assert report["run"].startswith("not run")
    written = set(re.findall(r"__global__ void .*?(\w+_kernel\w*)\(", source))
    assert {kernel["name"] for kernel in report["kernels"]} == written
    assert all(8 <= kernel["registers"] <= 255 for kernel in report["kernels"])
    assert report["spilling"] == []
    rules = {kernel["schedule"] for kernel in report["kernels"]}
    assert "Matmul" in rules
    assert "" not in rules
    nodes = {node for kernel in report["kernels"] for node in kernel["nodes"]}
    assert {"conv", "softmax"} <= nodes <= {"conv", "relu", "pool", "flatten", "gemm", "softmax"}
    tiled = next(kernel for kernel in report["kernels"] if kernel["shared"])
    assert tiled["barriers"] > 0


@needs_compiler
def test_each_kernel_has_its_launch_and_occupancy(program):
    """A block of the tiled kernels is 128 threads of dlight's Matmul rule; its 9x9 positions are 3 tiles."""
    kernels = {"".join(kernel["nodes"]): kernel for kernel in program.report["kernels"]}
    assert kernels["conv"]["threads"] == 128
    assert all(0 < kernel["occupancy"] <= 1 and kernel["blocks"] >= 1 for kernel in kernels.values())
    softmax = kernels["softmax"]
    again = occupancy.occupancy("sm_80", softmax["threads"], softmax["registers"], softmax["shared"])
    assert (softmax["occupancy"], softmax["occupancy_limit"]) == (again.share, again.limit)


def test_estimates_name_what_limits_and_say_that_they_are_estimates(program):
    found = program.report["estimates"]
    assert list(found) == ["A100", "L4"], "an sm_80 build runs on these; Jetson's sm_87 wants its own"
    for one in found.values():
        assert "estimate" in one["estimate"]
        assert "not measured" in one["estimate"]
        assert one["milliseconds"] == pytest.approx(sum(row["microseconds"] for row in one["kernels"]) / 1e3)
        assert {row["limit"] for row in one["kernels"]} <= {"memory", "arithmetic", "few blocks", "tensor cores"}
    conv = next(row for row in found["A100"]["kernels"] if row["function"].startswith("fused_conv"))
    moved = 4 * (3 * 81 + 4 * 81 + 4 * 3 * 9 + 4)
    assert conv["limit"] == "memory"
    assert conv["microseconds"] == pytest.approx(1e6 * moved / 2039e9)


@needs_compiler
def test_the_page_and_inspect_show_them_as_estimates(saved):
    from graphopt.artifact import read
    from graphopt.inspect.built import built
    from graphopt.report.evidence import of_artifact
    from graphopt.report.page import page

    text = page(of_artifact(saved, measure=False))
    assert "On the GPU" in text
    assert "fused_conv2d_add_relu_kernel" in text
    assert "This is an estimate from data sheets, a lower bound; not measured" in text
    assert set(built(read(saved)).estimates) == {"A100", "L4"}


def test_occupancy_is_what_nvidias_calculator_gives():
    """Values of the calculator's own examples: registers, then shared memory, then warps, then blocks bind."""
    assert occupancy.occupancy("sm_80", 256, 64, 0) == occupancy.Occupancy(4, 0.5, "registers")
    assert occupancy.occupancy("sm_80", 128, 32, 48 << 10) == occupancy.Occupancy(3, 0.1875, "shared memory")
    assert occupancy.occupancy("sm_80", 1024, 32, 0) == occupancy.Occupancy(2, 1.0, "warps")
    assert occupancy.occupancy("sm_86", 32, 16, 0) == occupancy.Occupancy(16, 16 / 48, "blocks")
    assert occupancy.occupancy("sm_75", 256, 255, 0) == occupancy.Occupancy(1, 0.25, "registers")


def test_the_roofline_is_the_slower_of_products_and_bytes():
    def limit(**of: object) -> tuple[float, str]:
        work = roofline.Work(**{"function": "f", "calls": 2, "macs": 0, "moved": 0, "blocks": 1000, **of})
        row = roofline.estimates(["sm_80"], [work])["A100"]["kernels"][0]
        return row["microseconds"], row["limit"]

    assert limit(macs=10**9) == (pytest.approx(2 * 2e9 / 19.5e6), "arithmetic")
    assert limit(macs=10**9, blocks=54) == (pytest.approx(4 * 2e9 / 19.5e6), "few blocks")
    assert limit(macs=10**9, tensor_cores="float16") == (pytest.approx(2 * 2e9 / 312e6), "tensor cores")
    assert limit(macs=10**9, tensor_cores="int8") == (pytest.approx(2 * 2e9 / 624e6), "tensor cores")
    assert limit(macs=10**6, moved=10**9) == (pytest.approx(2 * 1e9 / 2039e3), "memory")
    assert limit(macs=10**6, blocks=0) == limit(macs=10**6, blocks=1)  # half of an open size that counts as 1


def test_code_runs_on_later_gpus_of_the_family_but_not_on_jetson():
    assert roofline.code_for("sm_89", ["sm_80", "sm_86", "sm_90"]) == "sm_86"
    assert roofline.code_for("sm_87", ["sm_80"]) is None
    assert roofline.code_for("sm_89", ["sm_87"]) is None
    assert roofline.code_for("sm_80", ["sm_86"]) is None


def test_bytes_of_a_gather_are_those_of_the_rows_it_takes():
    from tvm.script import tirx as T  # noqa: N812

    from graphopt.targets.cuda.account.work import moved_bytes

    @T.prim_func(s_tir=True)
    def take(table: T.Buffer((1000, 8), "float32"), rows: T.Buffer((3,), "int64"), out: T.Buffer((3, 8), "float32")):
        for i, j in T.grid(3, 8):
            with T.sblock("take"):
                vi, vj = T.axis.remap("SS", [i, j])
                T.reads(table[rows[vi], vj], rows[vi])
                T.writes(out[vi, vj])
                out[vi, vj] = table[rows[vi], vj]

    assert moved_bytes(take) == 2 * (4 * 3 * 8) + 8 * 3


@needs_compiler
def test_several_architectures_are_one_image_that_the_driver_takes_its_own_from(net, tmp_path):
    program = Cuda(arch=("sm_75", "sm_90")).build(net, Context())
    assert program.report["arch"] == ["sm_75", "sm_90"]
    assert program.report["embedded"] == "fatbin of sm_75, sm_90"
    cubins = {name: program.files[f"kernels.{name}.cubin"] for name in ("sm_75", "sm_90")}
    image = fatbin(cubins)
    assert image in program.library
    assert image[:4] == b"\x50\xed\x55\xba"
    other = program.report["other_archs"]["sm_90"]
    assert [kernel["name"] for kernel in other] == [kernel["name"] for kernel in program.report["kernels"]]
    assert {"A100", "H100", "L4", "Orin"} & set(program.report["estimates"]) == {"H100"}


def test_the_image_is_what_fatbinary_writes(tmp_path):
    """Byte for byte, where CUDA's own tool is installed."""
    nvcc = compiler.routes().get("nvcc")
    tool = nvcc and shutil.which("fatbinary", path=f"{Path(nvcc).resolve().parent}:/usr/local/cuda/bin")
    if not tool:
        pytest.skip("no fatbinary here")
    source = 'extern "C" __global__ void k(float* x) { x[threadIdx.x] += 1.0f; }'
    cubins = {name: compiler.compile_source(source, name).cubin for name in ("sm_80", "sm_90")}
    images = []
    for name, cubin in cubins.items():
        (tmp_path / name).write_bytes(cubin)
        images.append(f"--image3=kind=elf,sm={name[3:]},file={name}")
    command = [tool, "-64", "--compress=false", "--create=out", *images]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "out").read_bytes() == fatbin(cubins)


@needs_compiler
def test_the_library_holds_machine_code_and_no_source(program):
    cubin = program.files["kernels.sm_80.cubin"]
    assert cubin in program.library
    assert b"__global__" not in program.library
    assert b"__global__" in program.files["kernels.cu"]


@pytest.fixture(scope="module")
def source_only(net) -> Program:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "_nvcc", lambda: None)
        patch.setattr(compiler, "_nvrtc", lambda: None)
        return Cuda().build(net, Context())


def test_without_any_compiler_the_source_is_embedded(source_only):
    assert b"__global__" in source_only.library
    assert source_only.report["route"] == "source"
    assert "when loaded beside a GPU" in source_only.report["embedded"]
    assert list(source_only.files) == ["kernels.cu"]
    counted = {"tensor_core_instructions", "asynchronous_copies"}
    assert {"schedule", "nodes", "name", *counted} == set(source_only.report["kernels"][0])


@needs_compiler
def test_what_the_compiler_refuses_is_said():
    with pytest.raises(LoweringError, match=r"(nvcc|NVRTC) refused the kernels for sm_80: .*error"):
        compiler.compile_source("__global__ void k() { nonsense; }", "sm_80")


def test_both_compilers_find_the_same_registers():
    if not {"nvcc", "nvrtc"} <= set(compiler.routes()):
        pytest.skip("not both nvcc and NVRTC here")
    source = 'extern "C" __global__ void k(float* x) { x[threadIdx.x] = sqrtf(x[blockIdx.x]) + 1.0f; }'
    uses = [ptxas.parse(compiler.compile_source(source, "sm_90", route).log) for route in ("nvcc", "nvrtc")]
    assert uses[0] == uses[1]


def test_the_log_of_ptxas_is_read():
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'fused_conv_kernel_1' for 'sm_80'
ptxas info    : Function properties for fused_conv_kernel_1
    24 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 6912 bytes smem, 376 bytes cmem[0]
ptxas info    : Compiling entry function 'add_kernel' for 'sm_80'
ptxas info    : Function properties for add_kernel
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, 376 bytes cmem[0]
"""
    conv, add = ptxas.parse(log)
    assert conv == ptxas.KernelUse("fused_conv_kernel_1", 255, 6912, 16, 20, 24, 1)
    assert conv.function == "fused_conv"
    assert add == ptxas.KernelUse("add_kernel", 12)


def test_packed_modules_of_another_shape_are_refused():
    def string(data: bytes) -> bytes:
        return struct.pack("<Q", len(data)) + data

    content = string(b"cuda") + struct.pack("<Q", 0) + string(b"source")
    body = b"head" + string(b"cuda") + struct.pack("<Q", len(content)) + content
    blob = struct.pack("<Q", len(body)) + body
    swapped = link.with_cubin(blob, b"source", b"CUBIN!!")
    content = string(b"cubin") + struct.pack("<Q", 0) + string(b"CUBIN!!")
    body = b"head" + string(b"cuda") + struct.pack("<Q", len(content)) + content
    assert swapped == struct.pack("<Q", len(body)) + body
    for other in (blob + b"x", blob.replace(b"cuda", b"rocm"), b""):
        with pytest.raises(LoweringError, match="packs CUDA modules in a way"):
            link.with_cubin(other, b"source", b"CUBIN")


def test_a_kernel_that_can_not_be_scheduled_is_named(net, monkeypatch):
    from tvm.s_tir import dlight

    class Fits:
        def __init__(self, *_: object) -> None: ...

        def apply(self, *_: object) -> None:
            raise ValueError("not an affine binding")

    for rule in ("Matmul", "GEMV", "Reduction", "GeneralReduction", "Fallback"):
        monkeypatch.setattr(dlight.gpu, rule, Fits)
    monkeypatch.setattr("graphopt.targets.cuda.kernels.ShortSums", Fits)
    with pytest.raises(LoweringError, match=r"can't be scheduled for a GPU: .*\(of .*conv.*\): Fits: not an affine"):
        Cuda().build(net, Context())


def test_what_tvm_gives_up_on_is_one_error(net, monkeypatch):
    from tvm import relax

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("emit_te needs\n a shape")

    monkeypatch.setattr(relax, "build", fail)
    with pytest.raises(LoweringError, match=r"could not write the kernels in CUDA C: emit_te needs a shape\."):
        Cuda().build(net, Context())


def test_schedules_compute_what_onnxruntime_computes(net):
    """The scheduled loops, thread by thread on the CPU: an odd batch, so that tiles do not fit evenly."""
    from graphopt.targets.cuda.serial import serial_program

    run = artifact.assemble(serial_program(net, "sm_80"), target="llvm", before=net, after=net, report={}).run
    for n in (1, 3):
        feeds = {"x": np.random.default_rng(n).normal(size=(n, 3, 9, 9)).astype(np.float32)}
        expected = oracle.run(net, feeds)
        for name, value in run(feeds).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("body", ["Conv<group=4>(x, w, b)", "Conv<group=4, strides=[2,2]>(x, w, b)"])
def test_a_bias_after_a_sum_of_one_term_is_added_once(body):
    """Of TVM's own rules Fallback puts it into the sum's start and into its only step."""
    from graphopt.targets.cuda.serial import serial_program

    text = f"net (float[1,4,6,6] x, float[4,1,1,1] w, float[4] b) => (float[1,4,h,v] y) {{ c = {body} y = Relu(c) }}"
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 1, 1, 1)).astype(np.float32), "b": rng.normal(size=4).astype(np.float32)}
    model = from_text(f'<ir_version: 8, opset_import: ["": 17]> {text}', **weights)
    run = artifact.assemble(serial_program(model, "sm_80"), target="llvm", before=model, after=model, report={}).run
    feeds = {"x": rng.normal(size=(1, 4, 6, 6)).astype(np.float32)}
    np.testing.assert_allclose(run(feeds)["y"], oracle.run(model, feeds)["y"], rtol=1e-5, atol=1e-6)


def test_a_wrong_schedule_would_be_seen(net, monkeypatch):
    """One block too few: the check above must fail then."""
    from tvm import tirx

    from graphopt.targets.cuda import serial

    def short(loop: tirx.For) -> tirx.For:
        if loop.kind != tirx.ForKind.THREAD_BINDING:
            return loop
        missing = 1 if loop.thread_binding.thread_tag == "blockIdx.x" else 0
        return tirx.For(loop.loop_var, loop.min, loop.extent - missing, tirx.ForKind.SERIAL, loop.body)

    monkeypatch.setattr(serial, "_serial_loop", short)
    run = artifact.assemble(serial.serial_program(net, "sm_80"), target="llvm", before=net, after=net, report={}).run
    feeds = {"x": np.random.default_rng(1).normal(size=(1, 3, 9, 9)).astype(np.float32)}
    expected = oracle.run(net, feeds)["h"]
    assert not np.allclose(run(feeds)["h"], expected, rtol=1e-3, atol=1e-3)


@needs_compiler
@pytest.mark.parametrize("name", ["sm_90", pytest.param("sm_80", marks=pytest.mark.slow)])
def test_a_trained_model_builds_without_spills(name):
    model = graph.load(models.get("digits").path())
    program = Cuda(arch=name).build(model, Context())
    heavy = {n.name for n in model.graph if n.op_type in ("Conv", "Gemm", "MaxPool", "GlobalAveragePool")}
    kernels = program.report["kernels"]
    assert heavy <= {node for kernel in kernels for node in kernel["nodes"]}
    assert len(kernels) == len(heavy), (
        "what is elementwise is fused, and transposes of weights are done at compile time"
    )
    assert program.report["spilling"] == []


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_every_reference_model_compiles_without_spills(name):
    """For an A100 and an H100, in one artifact."""
    report = Cuda(arch=("sm_80", "sm_90")).build(graph.load(models.get(name).path()), Context()).report
    assert report["spilling"] == []
    assert all(kernel["occupancy"] > 0 for kernel in [*report["kernels"], *report["other_archs"]["sm_90"]])
    assert {"A100", "H100"} <= set(report["estimates"])


def test_schedules_of_a_trained_model_compute_what_onnxruntime_computes():
    from graphopt.targets.cuda.serial import serial_program

    entry = models.get("digits")
    model = graph.load(entry.path())
    run = artifact.assemble(serial_program(model, "sm_80"), target="llvm", before=model, after=model, report={}).run
    feeds = entry.example(3)
    expected = oracle.run(model, feeds)
    for name, value in run(feeds).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)


def _stub(folder: Path) -> None:
    """libcuda.so.1 and libcudart.so.13 that write launches down."""
    from graphopt.testing import cuda_emulation

    code = Path(cuda_emulation.__file__).parent / "native" / "driver.c"
    (folder / "versions").write_text("libcudart.so.13 { global: *; };")
    common = [shutil.which("cc") or "gcc", "-shared", "-fPIC", "-w", str(code)]
    driver = ["-DDRIVER", "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1")]
    versions = f"-Wl,--version-script={folder / 'versions'}"
    runtime = [versions, "-Wl,-soname,libcudart.so.13", "-o", str(folder / "libcudart.so.13")]
    for options in (driver, runtime):
        subprocess.run([*common, *options], check=True)


def _run_behind_a_stub(saved: Path, folder: Path, prepare: str = "") -> subprocess.CompletedProcess[str]:
    _stub(folder)
    code = f"""
import ctypes
ctypes.CDLL("libcudart.so.13", ctypes.RTLD_GLOBAL)
import numpy as np
from graphopt.artifact import load, runtime
runtime._load_cuda_runtime = lambda: None
{prepare}
result = load({str(saved)!r}).run({{"x": np.ones((3, 3, 9, 9), np.float32)}})
print("shapes", [value.shape for value in result.values()], flush=True)
import tvm
"""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "TVM_NUM_THREADS": "1"}  # no pool to hang in at exit
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment, check=False
    )


@needs_compiler
@needs_linux
def test_tvms_cuda_runtime_loads_the_machine_code_and_launches_every_kernel(saved, program, tmp_path):
    """Behind a stub driver: what is proven is the host's half, not what the kernels compute."""
    done = _run_behind_a_stub(saved, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "shapes [(3, 5), (3, 4, 9, 9)]" in lines
    hashed = 5381
    for byte in program.files["kernels.sm_80.cubin"][:4096]:
        hashed = (hashed * 33 + byte) % (1 << 64)
    assert {line for line in lines if line.startswith("load")} == {f"load ELF {hashed}"}
    launches = [line.split()[1:] for line in lines if line.startswith("launch")]
    assert {name for name, _, _ in launches} == {kernel["name"] for kernel in program.report["kernels"]}
    assert all(int(blocks) >= 1 and 1 <= int(threads) <= arch.MAX_THREADS for _, blocks, threads in launches)


@needs_compiler
@needs_linux
def test_embedded_source_is_compiled_as_it_is_loaded(net, source_only, tmp_path):
    """The stub's device is an sm_80; without a compiler the error says what to install."""
    place = artifact.write(
        tmp_path / "source.gopt", source_only, target="cuda{arch=sm_80}", before=net, after=net, report={}
    )
    done = _run_behind_a_stub(place, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "load ELF" in done.stdout
    assert "launch softmax_kernel" in done.stdout
    none = "from graphopt.targets.cuda.machine_code import compiler; compiler._nvcc = compiler._nvrtc = lambda: None"
    done = _run_behind_a_stub(place, tmp_path, none)
    assert done.returncode != 0
    assert "neither nvcc nor NVRTC" in done.stderr
    assert "ArtifactError" in done.stderr.splitlines()[-1]


def test_status_says_what_would_compile_and_run():
    status = Cuda.status()
    assert list(status["compilers"])[-1] == "source"
    assert status["runs_here"] == bool(status["devices"])
    assert status["archs"]["sm_90"].startswith("H100")


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_it_computes_what_onnxruntime_computes(net, saved):
    run = artifact.load(saved).run
    for n in (1, 3):
        feeds = {"x": np.random.default_rng(n).normal(size=(n, 3, 9, 9)).astype(np.float32)}
        expected = oracle.run(net, feeds)
        for name, value in run(feeds).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-4)
