"""Tensor-core instructions and asynchronous copies on the emulated device."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest

from graphopt.testing.cuda_emulation import EmulationError, run_kernel

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")

WMMA = """
#include <mma.h>
extern "C" __global__ void __launch_bounds__(32) product(%(t)s* __restrict__ a_ptr, %(t)s* __restrict__ b_ptr, %(acc)s* __restrict__ c_ptr) {
  __shared__ alignas(64) %(t)s a_shared_ptr[256];
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, %(t)s, nvcuda::wmma::row_major> a_wmma[1];
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, %(t)s, nvcuda::wmma::col_major> b_wmma[1];
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, %(acc)s> c_wmma[1];
  nvcuda::wmma::fill_fragment(c_wmma[0], 0);
  for (int k = 0; k < 2; ++k) {
    __syncthreads();
    for (int i = 0; i < 8; ++i) a_shared_ptr[i * 32 + threadIdx.x] = a_ptr[(i * 2 + threadIdx.x / 16) * 32 + k * 16 + threadIdx.x %% 16];
    __syncthreads();
    nvcuda::wmma::load_matrix_sync(a_wmma[0], (&(a_shared_ptr[0])), 16);
    nvcuda::wmma::load_matrix_sync(b_wmma[0], (&(b_ptr[k * 16])), 32);
    nvcuda::wmma::mma_sync(c_wmma[0], a_wmma[0], b_wmma[0], c_wmma[0]);
  }
  nvcuda::wmma::store_matrix_sync((&(c_ptr[0])), c_wmma[0], 16, nvcuda::wmma::mem_row_major);
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("name", "accumulator", "dtype", "result"),
    [("half", "float", np.float16, np.float32), ("signed char", "int", np.int8, np.int32)],
)
def test_wmma_fragments_multiply(name, accumulator, dtype, result):
    """16 x 32 by 32 x 16 in two steps, the right matrix by columns."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-9, 9, size=(16, 32)).astype(dtype) for _ in range(2))
    source = WMMA % {"t": name, "acc": accumulator}
    c = run_kernel(source, "product", (1, 1, 1), (32, 1, 1), [a, b, np.zeros((16, 16), result)])[2]
    np.testing.assert_array_equal(c, a.astype(result) @ b.astype(result).T)


def _mma(shape: str, types: str, na: int, nb: int, d: int, kind: str, constraint: str) -> str:
    """A kernel of one warp whose threads are given their registers of A, B and C in order."""
    registers = [f"%{i}" for i in range(2 * d + na + nb)]
    groups = [registers[:d], registers[d : d + na], registers[d + na : d + na + nb], registers[d + na + nb :]]
    text = ", ".join("{" + ", ".join(group) + "}" for group in groups)
    outputs = ", ".join(f'"={constraint}"((({kind}*)(c))[{i}])' for i in range(d))
    inputs = [f'"r"(((unsigned *)(a))[{i}])' for i in range(na)] + [f'"r"(((unsigned *)(b))[{i}])' for i in range(nb)]
    inputs += [f'"{constraint}"((({kind} *)(c))[{i}])' for i in range(d)]
    return f"""
extern "C" __global__ void k(unsigned* __restrict__ a_ptr, unsigned* __restrict__ b_ptr, {kind}* __restrict__ c_ptr) {{
  unsigned a[{na}]; unsigned b[{nb}]; {kind} c[{d}];
  for (int i = 0; i < {na}; i++) a[i] = a_ptr[threadIdx.x * {na} + i];
  for (int i = 0; i < {nb}; i++) b[i] = b_ptr[threadIdx.x * {nb} + i];
  for (int i = 0; i < {d}; i++) c[i] = c_ptr[threadIdx.x * {d} + i];
  {{
    __asm__ __volatile__("mma.sync.aligned.{shape}.row.col.{types} "
      "{text};\\n"
      : {outputs}
      : {", ".join(inputs)});
  }}
  for (int i = 0; i < {d}; i++) c_ptr[threadIdx.x * {d} + i] = c[i];
}}"""


# (mnemonic's shape and types), elements' dtype, k; registers follow from them
PRODUCTS = {
    ("m16n8k16", "f32.f16.f16.f32"): (np.float16, np.float32, 16),
    ("m16n8k8", "f32.f16.f16.f32"): (np.float16, np.float32, 8),
    ("m16n8k32", "s32.s8.s8.s32"): (np.int8, np.int32, 32),
    ("m16n8k8", "f32.tf32.tf32.f32"): (np.float32, np.float32, 8),
    ("m16n8k16", "f16.f16.f16.f16"): (np.float16, np.float16, 16),
}


@pytest.mark.parametrize("which", PRODUCTS, ids="-".join)
def test_mma_sync_multiplies_by_the_registers_of_the_isa(which):
    """Registers dealt out element by element as the figures of the PTX ISA have it, apart from how the shim does."""
    dtype, result, k = PRODUCTS[which]
    rng = np.random.default_rng(1)
    a, b = rng.integers(-5, 5, (16, k)).astype(dtype), rng.integers(-5, 5, (k, 8)).astype(dtype)
    c = rng.integers(-5, 5, (16, 8)).astype(result)
    p = 4 // np.dtype(dtype).itemsize
    na, nb = 16 * k // 32 // p, 8 * k // 32 // p
    held_a, held_b, held_c = np.zeros((32, na, p), dtype), np.zeros((32, nb, p), dtype), np.zeros((32, 4), result)
    for lane in range(32):
        group, thread = divmod(lane, 4)
        for i in range(na * p):  # element i, as the ISA counts them
            lower = (i // p) % 2 == 1
            held_a[lane, i // p, i % p] = a[group + 8 * lower, thread * p + i % p + (4 * p if i >= 2 * p else 0)]
        for i in range(nb * p):
            held_b[lane, i // p, i % p] = b[thread * p + i % p + (4 * p if i >= p else 0), group]
        for i in range(4):
            held_c[lane, i] = c[group + (8 if i >= 2 else 0), thread * 2 + i % 2]
    half = np.dtype(result).itemsize == 2
    kind, constraint, d = (
        ("unsigned", "r", 2) if half else (("int", "r", 4) if result == np.int32 else ("float", "f", 4))
    )
    arguments = [held_a.view(np.uint32), held_b.view(np.uint32), held_c.view(np.uint32) if half else held_c]
    left = run_kernel(_mma(*which, na, nb, d, kind, constraint), "k", (1, 1, 1), (32, 1, 1), arguments)[2]
    expected = a.astype(np.float64) @ b.astype(np.float64) + c
    got = np.zeros_like(expected)
    for lane, values in enumerate(left.view(result).reshape(32, 4)):
        for i in range(4):
            got[lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + i % 2] = values[i]
    np.testing.assert_array_equal(got, expected)


LDMATRIX = """
extern "C" __global__ void k(half* __restrict__ x_ptr, unsigned* __restrict__ y_ptr) {
  __shared__ alignas(64) half s[256];
  for (int i = 0; i < 8; i++) s[i * 32 + threadIdx.x] = x_ptr[i * 32 + threadIdx.x];
  __syncthreads();
  unsigned r[4];
  {
    unsigned int addr = __cvta_generic_to_shared((half *)(&(s[0])) + (threadIdx.x * 8));
    __asm__ __volatile__(
      "ldmatrix.sync.aligned.m8n8.x4%(trans)s.shared.b16"
      "{%%0, %%1, %%2, %%3}, [%%4];\\n"
      : "=r"(((unsigned *)(r))[0]), "=r"(((unsigned *)(r))[1]), "=r"(((unsigned *)(r))[2]), "=r"(((unsigned *)(r))[3])
      : "r"(addr)
    );
  }
  for (int i = 0; i < 4; i++) y_ptr[threadIdx.x * 4 + i] = r[i];
}"""


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix_gives_each_lane_two_neighbours(trans):
    x = np.arange(256, dtype=np.float16).reshape(4, 8, 8)
    y = run_kernel(LDMATRIX % {"trans": trans}, "k", (1, 1, 1), (32, 1, 1), [x, np.zeros((32, 4), np.uint32)])[1]
    pairs = y.view(np.float16).reshape(32, 4, 2)
    matrices = x.transpose(0, 2, 1) if trans else x
    for lane in range(32):
        np.testing.assert_array_equal(pairs[lane], matrices[:, lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2])


CP_ASYNC = """
extern "C" __global__ void k(float* __restrict__ x_ptr, float* __restrict__ y_ptr) {
  __shared__ alignas(64) float s[256];
  for (int stage = 0; stage < 2; stage++) {
    unsigned int addr = __cvta_generic_to_shared(s + stage * 128 + threadIdx.x * 4);
    __asm__ __volatile__(
      #if TVM_ENABLE_L2_PREFETCH
        "cp.async.cg.shared.global.L2::128B [%%0], [%%1], %%2;"
      #else
        "cp.async.cg.shared.global [%%0], [%%1], %%2;"
      #endif
        :: "r"(addr), "l"((void*)(x_ptr + stage * 128 + threadIdx.x * 4)), "n"(16)
    );
    __asm__ __volatile__("cp.async.commit_group;");
  }
  __asm__ __volatile__("cp.async.wait_group %(pending)d;");
  __syncthreads();
  for (int i = 0; i < 4; i++) y_ptr[threadIdx.x * 4 + i] = s[%(stage)d * 128 + 127 - threadIdx.x * 4 - i];
}"""


def _copies(pending: int, stage: int) -> np.ndarray:
    x = np.arange(256, dtype=np.float32)
    source = CP_ASYNC % {"pending": pending, "stage": stage}
    return run_kernel(source, "k", (1, 1, 1), (32, 1, 1), [x, np.zeros(128, np.float32)])[1]


def test_asynchronous_copies_arrive_when_they_are_waited_for():
    """All but one group done: the first is there, and using the second is a fault."""
    np.testing.assert_array_equal(_copies(1, 0), np.arange(127, -1, -1))
    np.testing.assert_array_equal(_copies(0, 1), np.arange(255, 127, -1))
    with pytest.raises(
        EmulationError, match="reads byte 1020 of shared s while an asynchronous copy to it is under way"
    ):
        _copies(1, 1)


RING = """
extern "C" __global__ void k(float* __restrict__ x_ptr, float* __restrict__ y_ptr) {
  __shared__ alignas(64) float ring[%(size)d];
  for (int k = 0; k < 12; ++k) {
    if (k >= 2) {
      __asm__ __volatile__("cp.async.wait_group 1;");
      __syncthreads();
      for (int i = 0; i < 4; ++i) y_ptr[(k - 2) * 128 + threadIdx.x * 4 + i] = ring[(k - 2) %% %(stages)d * 128 + 127 - threadIdx.x * 4 - i];
      %(barrier)s
    }
    if (k < 10) {
      unsigned int addr = __cvta_generic_to_shared(ring + k %% %(stages)d * 128 + threadIdx.x * 4 + %(shift)d);
      __asm__ __volatile__("cp.async.cg.shared.global [%%0], [%%1], %%2;"
        :: "r"(addr), "l"((void*)(x_ptr + k * 128 + threadIdx.x * 4)), "n"(16));
    }
    __asm__ __volatile__("cp.async.commit_group;");
  }
}"""  # noqa: E501


def _ring(stages: int, barrier: str = "__syncthreads();", shift: int = 0) -> np.ndarray:
    x = np.arange(1280, dtype=np.float32)
    source = RING % {"stages": stages, "size": stages * 128, "barrier": barrier, "shift": shift}
    return run_kernel(source, "k", (1, 1, 1), (32, 1, 1), [x, np.zeros(1280, np.float32)])[1]


def test_a_ring_of_copies_is_touched_by_nobody_while_they_run():
    """As `test_cuda_check_copies.test_a_ring_of_copies` has it for the static check."""
    expected = np.arange(1280, dtype=np.float32).reshape(10, 128)[:, ::-1].ravel()
    np.testing.assert_array_equal(_ring(2), expected)
    np.testing.assert_array_equal(_ring(3, ""), expected)
    for stages, barrier in ((2, ""), (1, "__syncthreads();")):
        with pytest.raises(EmulationError, match="shared ring while an asynchronous copy to it is under way"):
            _ring(stages, barrier)
    with pytest.raises(EmulationError, match="writes 16 bytes at byte 8 of ring, which is no multiple of 16"):
        _ring(3, shift=2)


def test_what_must_be_aligned_is():
    """Vectors to their size, 16 bytes of an asynchronous copy to 16, matrices to 32 and their rows to 16."""
    source = """extern "C" __global__ void k(float* __restrict__ x_ptr, float* __restrict__ y_ptr) {
      *(float4*)(y_ptr + %d) = *(float4*)(x_ptr + %d);
    }"""
    x = np.arange(8, dtype=np.float32)
    assert run_kernel(source % (4, 0), "k", (1, 1, 1), (1, 1, 1), [x, x * 0])[1][4:].tolist() == [0, 1, 2, 3]
    for places, said in (((4, 2), "reads 16 bytes at byte 8 of x_ptr"), ((2, 4), "writes 16 bytes at byte 8 of y_ptr")):
        with pytest.raises(EmulationError, match=f"{said}, which is no multiple of 16"):
            run_kernel(source % places, "k", (1, 1, 1), (1, 1, 1), [x, x * 0])
    a = np.zeros((32, 32), np.float16)
    made = WMMA % {"t": "half", "acc": "float"}
    for change, said in (
        (("(a_shared_ptr[0])), 16", "(a_shared_ptr[8])), 16"), "address that is no multiple of 32 bytes"),
        (("(b_ptr[k * 16])), 32", "(b_ptr[k * 16])), 36"), "36 elements apart, no multiple of 16 bytes"),
    ):
        assert made != made.replace(*change)
        with pytest.raises(EmulationError, match=said):
            run_kernel(made.replace(*change), "product", (1, 1, 1), (32, 1, 1), [a, a, np.zeros((16, 16), np.float32)])
