"""CUDA kernels on the CPU: that they compute what they should, and that each kind of fault is seen."""

from __future__ import annotations

import re
import shutil
import sys

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import artifact, oracle
from graphopt.base import Context
from graphopt.errors import ArtifactError, DataError
from graphopt.targets.cuda import Cuda
from graphopt.testing import from_text
from graphopt.testing.cuda_emulation import EmulationError, emulate, run_kernel
from graphopt.testing.cuda_emulation.translate import to_cpp

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _net() -> ir.Model:
    text = """<ir_version: 10, opset_import: ["": 18]>
    net (float[N, 3, 5, 5] x, float[4, 3, 3, 3] w, float[5, 4] v) => (float[N, 5] y, float[N, 4, 5, 5] h) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w)
        h = Relu(c)
        p = GlobalAveragePool(h)
        f = Flatten(p)
        g = Gemm<transB = 1>(f, v)
        y = Softmax(g)
    }"""
    return from_text(text, w=_normal(4, 3, 3, 3), v=_normal(5, 4))


def test_a_net_computes_what_onnxruntime_computes():
    """Through TVM's stock virtual machine on a `cuda` device, two batch sizes, neither of which fills a tile."""
    net = _net()
    feeds = [{"x": _normal(n, 3, 5, 5, seed=n)} for n in (1, 3)]
    for given, results in zip(feeds, emulate(net, feeds), strict=True):
        for name, expected in oracle.run(net, given).items():
            np.testing.assert_allclose(results[name], expected, rtol=1e-5, atol=1e-5)


SOFTMAX = "softmax (float[3, 70] x) => (float[3, 70] y) { y = Softmax(x) }"


@pytest.fixture(scope="module")
def softmax(tmp_path_factory) -> tuple[ir.Model, str]:
    model = from_text(f'<ir_version: 10, opset_import: ["": 18]> {SOFTMAX}')
    program = Cuda(arch="sm_90", compiler="source").build(model, Context())
    path = tmp_path_factory.mktemp("emulated") / "softmax.gopt"
    artifact.write(path, program, target="cuda{arch=sm_90}", before=model, after=model, report={})
    return model, str(path)


def test_an_artifact_is_emulated_and_its_source_can_be_edited(softmax):
    model, path = softmax
    feeds, seen = {"x": _normal(3, 70)}, []

    def edit(source: str) -> str:
        seen.append(source)
        return source.replace("expf(", "exp2f(")

    expected = oracle.run(model, feeds)["y"]
    np.testing.assert_allclose(emulate(path, feeds, checks=False)["y"], expected, rtol=1e-5)
    assert not np.allclose(emulate(path, feeds, checks=False, edit=edit)["y"], expected, rtol=1e-3)
    assert "__global__" in seen[0]


def test_every_barrier_that_matters_is_missed_when_it_is_gone(softmax):
    """Softmax has 6 barriers. Two are not needed: what is written before and read after is one thread's own."""
    model, path = softmax
    feeds = {"x": _normal(3, 70)}
    expected = oracle.run(model, feeds)["y"]
    source: list[str] = []
    emulate(path, feeds, edit=lambda text: source.append(text) or text)
    barrier = "__syncthreads();"
    places = [match.start() for match in re.finditer(re.escape(barrier), source[0])]
    unseen = 0
    for place in places:
        mutant = source[0][:place] + source[0][place + len(barrier) :]
        try:
            unseen += np.allclose(emulate(path, feeds, edit=lambda _, mutant=mutant: mutant)["y"], expected, rtol=1e-5)
        except EmulationError as error:
            assert re.search("no barrier between|no thread of the block has written", str(error))  # noqa: PT017
    assert (len(places), unseen) == (6, 2)


def test_what_graphopt_refuses_is_its_own_error(softmax, tmp_path):
    model, path = softmax
    with pytest.raises(DataError, match=r"input 'x' expects .* dimension 1 must be 70"):
        emulate(path, {"x": _normal(3, 71)})
    other = artifact.assemble(_llvm(model), target="llvm", before=model, after=model, report={}).save(
        tmp_path / "m.gopt"
    )
    with pytest.raises(ArtifactError, match="holds no CUDA kernels to emulate: it was made for llvm"):
        emulate(other, {"x": _normal(3, 70)})


def _llvm(model: ir.Model):
    from graphopt.targets.llvm import Llvm

    return Llvm().build(model, Context())


def _kernel(body: str, parameters: str = "float* __restrict__ x_ptr", name: str = "k") -> str:
    return f'extern "C" __global__ void __launch_bounds__(64) {name}({parameters}) {{\n{body}\n}}\n'


def _run(body: str, *arguments: np.ndarray, threads: int = 64, **options) -> list[np.ndarray]:
    parameters = ", ".join(f"{_C[a.dtype.name]}* __restrict__ {n}_ptr" for n, a in zip("xyzw", arguments, strict=False))
    return run_kernel(_kernel(body, parameters), "k", (1, 1, 1), (threads, 1, 1), arguments, **options)


_C = {"float32": "float", "float16": "half", "int32": "int", "int8": "signed char"}

FAULTS = {
    "out of bounds": (
        "x_ptr[threadIdx.x + 1] = 0.0f;",
        r"\(63, 0, 0\) writes bytes 256 to 260 of x_ptr, which has 256",
    ),
    "before the start": ("x_ptr[0] = x_ptr[(int)threadIdx.x - 5];", r"\(0, 0, 0\) reads bytes -20 to -16 of x_ptr"),
    "vector past the end": ("*(float4*)(x_ptr + threadIdx.x * 4) = make_float4(0, 0, 0, 0);", "bytes 256 to 272"),
    "shared out of bounds": (
        "__shared__ alignas(64) float s[63]; s[threadIdx.x] = 1.0f;",
        "bytes 252 to 256 of s, which",
    ),
    "race": (
        "__shared__ alignas(64) float s[64]; s[threadIdx.x] = 1.0f; x_ptr[threadIdx.x] = s[63 - threadIdx.x];",
        r"block \(0, 0, 0\), thread \(0, 0, 0\) reads byte 252 of shared s, which no thread of the block has written",
    ),
    "race, read first": (
        "__shared__ alignas(64) float s[64]; s[threadIdx.x] = 1.0f; __syncthreads();"
        "x_ptr[threadIdx.x] = s[(threadIdx.x + 63) % 64]; s[threadIdx.x] = 2.0f;",
        "reads byte 0 of shared s, which thread 0 writes with no barrier between",
    ),
    "write after read": (
        "__shared__ alignas(64) float s[64]; s[threadIdx.x] = 1.0f; __syncthreads();"
        "x_ptr[threadIdx.x] = s[(threadIdx.x + 1) % 64]; s[threadIdx.x] = 2.0f;",
        "writes byte 4 of shared s, which an earlier thread reads with no barrier between",
    ),
    "barrier in a branch": ("if (threadIdx.x < 7) __syncthreads();", "waits at a barrier or has ended"),
    "two barriers": ("if (threadIdx.x < 7) { __syncthreads();\n} else { __syncthreads(); }", "at another barrier"),
    "a lane that never comes": (
        "if (threadIdx.x < 7) x_ptr[0] = __shfl_down_sync(0xffffffffu, 1.0f, 1, 32);",
        "in an operation of its warp for threads that never come",
    ),
    "a thread's own array": (
        "float a[4]; for (int i = 0; i <= x_ptr[0] + 4; i++) a[i] = i; x_ptr[1] = a[1];",
        "SIGILL: an in",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(name):
    """One source with all of them, so that it is compiled once."""
    kernels = "".join(_kernel(body, name=f"k{i}") for i, (body, _) in enumerate(FAULTS.values()))
    with pytest.raises(EmulationError, match=FAULTS[name][1]):
        run_kernel(kernels, f"k{list(FAULTS).index(name)}", (1, 1, 1), (64, 1, 1), [np.zeros(64, np.float32)])


def test_too_many_threads_for_a_kernel_are_refused():
    with pytest.raises(EmulationError, match="blocks of 65 threads; it may have 1 to 64"):
        _run("x_ptr[0] = 1.0f;", np.zeros(64, np.float32), threads=65)


def test_shuffles_votes_and_partial_warps():
    """A warp and a half: sums by shuffles, as the hardware gives them; the second warp has 16 lanes."""
    body = """
    float v = x_ptr[threadIdx.x];
    for (int by = 8; by > 0; by >>= 1) v = v + __shfl_xor_sync(0xffffffffu, v, by, 16);
    y_ptr[threadIdx.x] = v;
    z_ptr[threadIdx.x] = __shfl_sync(__activemask(), x_ptr[threadIdx.x], 3, 8);
    w_ptr[threadIdx.x] = (int)__ballot_sync(0xffffffffu, threadIdx.x % 2 == 0);
    if (threadIdx.x % 3 == 0) { unsigned mask = __activemask(); w_ptr[threadIdx.x] = (int)mask; }
    """
    x, y, z, w = np.arange(48, dtype=np.float32), *np.zeros((2, 48), np.float32), np.zeros(48, np.int32)
    _, y, z, w = _run(body, x, y, z, w, threads=48)
    np.testing.assert_array_equal(y, np.repeat(x.reshape(3, 16).sum(1), 16))
    np.testing.assert_array_equal(z, np.repeat(x[3::8], 8))
    even, third = sum(1 << i for i in range(0, 32, 2)), sum(1 << i for i in range(0, 32, 3))
    assert w[1] == np.array(even, np.uint32).view(np.int32)
    assert w[47] == even & 0xFFFF
    assert w[0] == np.array(third, np.uint32).view(np.int32)
    assert w[33] == sum(1 << i for i in range(16) if (i + 32) % 3 == 0)


def test_half_precision_rounds_as_ieee_says():
    x = np.concatenate([_normal(60), [65519.0, 65520.0, 6e-8, np.nan]]).astype(np.float32)
    body = "y_ptr[threadIdx.x] = (half)x_ptr[threadIdx.x] * (half)3.0f + (half)0.1f;"
    y = _run(body, x, np.zeros(64, np.float16))[1]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y, x.astype(np.float16) * np.float16(3) + np.float16(0.1))


def test_dynamic_shared_memory_is_as_large_as_the_launch_says():
    body = """
    extern __shared__ uchar buffer[];
    ((float*)buffer)[threadIdx.x] = x_ptr[threadIdx.x];
    __syncthreads();
    x_ptr[threadIdx.x] = ((float*)buffer)[63 - threadIdx.x];
    """.replace("uchar", "unsigned char")
    x = _normal(64)
    np.testing.assert_array_equal(_run(body, x, shared=256)[0], x[::-1])
    with pytest.raises(EmulationError, match="bytes 252 to 256 of memory of dynamic size, which has 252"):
        _run(body, x, shared=252)


def test_what_the_headers_lack_is_said():
    with pytest.raises(EmulationError, match=r"refused the kernels for emulation: .*ptx_wgmma_fence_sync_aligned"):
        _run('asm volatile("wgmma.fence.sync.aligned;" ::: "memory");', np.zeros(64, np.float32))


def test_inline_assembly_becomes_a_call_with_its_operands():
    code = _kernel('__asm__ __volatile__("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32" "{%0}, {%1}, {%2};\\n"'
                   ' : "=f"(d[f(1, 2)]) : "r"(((unsigned*)(a + 1))[0]), "f"(c[0]));')  # fmt: skip
    call = "ptx_mma_sync_aligned_m16n8k8_row_col_f32_f16_f16_f32((d[f(1, 2)]), (((ptr<unsigned>)(a + 1))[0]), (c[0]))"
    assert call in to_cpp(code)
