# pyright: basic, reportInvalidTypeForm=false, reportCallIssue=false, reportIndexIssue=false, reportMissingModuleSource=false
# ruff: noqa: N806, N812
"""Products of 16 x 16 x 16 on tensor cores as tensor intrinsics: what each computes, and CUDA's wmma call for it.

TVM has such a set, whose import alone takes half a minute: it parses more than a hundred. These are the ones that
`tensor_cores` uses, for float16 operands in shared memory and sums in float32.
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

INIT, COMPUTE, STORE = "graphopt.wmma.init", "graphopt.wmma.compute", "graphopt.wmma.store"
LOAD = ("graphopt.wmma.load_a", "graphopt.wmma.load_b")
"""Of the left operand, [i, k]; of the right one, [k, j]."""


def _fragment(buffer: Any, stride: Any) -> Any:
    """Which fragment of its buffer it is, in rows of fragments."""
    return buffer.elem_offset // stride // 16 * (stride // 16) + buffer.elem_offset % stride // 16


def _load(scope: str, layout: str) -> tuple[Any, Any]:
    @T.prim_func(s_tir=True)
    def computes(a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (16, 16), "float16", align=64, offset_factor=16, scope="shared")
        C = T.match_buffer(c, (16, 16), "float16", align=64, offset_factor=16, scope=scope)
        with T.sblock("root"):
            T.reads(A[0:16, 0:16])
            T.writes(C[0:16, 0:16])
            for i, j in T.grid(16, 16):
                with T.sblock("load"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    C[vi, vj] = A[vi, vj]

    @T.prim_func(s_tir=True)
    def calls(a: T.handle, c: T.handle) -> None:
        a1 = T.int32()
        a0 = T.int32()
        c1 = T.int32()
        c0 = T.int32()
        A = T.match_buffer(a, (16, 16), "float16", align=64, offset_factor=16, scope="shared", strides=[a1, a0])
        C = T.match_buffer(c, (16, 16), "float16", align=64, offset_factor=16, scope=scope, strides=[c1, c0])
        with T.sblock("root"):
            T.reads(A[0:16, 0:16])
            T.writes(C[0:16, 0:16])
            T.evaluate(
                T.tvm_load_matrix_sync(
                    C.data, 16, 16, 16, _fragment(C, c1), A.access_ptr("r", ptr_type="float16"), a1, layout,
                    dtype="void",
                )
            )  # fmt: skip

    return computes, calls


def _init() -> tuple[Any, Any]:
    @T.prim_func(s_tir=True)
    def computes(c: T.handle) -> None:
        C = T.match_buffer(c, (16, 16), "float32", align=64, offset_factor=16, scope="wmma.accumulator")
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:16, 0:16])
            for i, j in T.grid(16, 16):
                with T.sblock("init"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    C[vi, vj] = T.float32(0)

    @T.prim_func(s_tir=True)
    def calls(c: T.handle) -> None:
        c1 = T.int32()
        c0 = T.int32()
        C = T.match_buffer(
            c, (16, 16), "float32", align=64, offset_factor=16, scope="wmma.accumulator", strides=[c1, c0]
        )
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:16, 0:16])
            T.evaluate(T.tvm_fill_fragment(C.data, 16, 16, 16, _fragment(C, c1), T.float32(0), dtype="void"))

    return computes, calls


def _compute() -> tuple[Any, Any]:
    @T.prim_func(s_tir=True)
    def computes(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (16, 16), "float16", align=64, offset_factor=16, scope="wmma.matrix_a")
        B = T.match_buffer(b, (16, 16), "float16", align=64, offset_factor=16, scope="wmma.matrix_b")
        C = T.match_buffer(c, (16, 16), "float32", align=64, offset_factor=16, scope="wmma.accumulator")
        with T.sblock("root"):
            T.reads(C[0:16, 0:16], A[0:16, 0:16], B[0:16, 0:16])
            T.writes(C[0:16, 0:16])
            for i, j, k in T.grid(16, 16, 16):
                with T.sblock(""):
                    vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                    C[vi, vj] = C[vi, vj] + T.Cast("float32", A[vi, vk]) * T.Cast("float32", B[vk, vj])

    @T.prim_func(s_tir=True)
    def calls(a: T.handle, b: T.handle, c: T.handle) -> None:
        a1 = T.int32()
        a0 = T.int32()
        b1 = T.int32()
        b0 = T.int32()
        c1 = T.int32()
        c0 = T.int32()
        A = T.match_buffer(a, (16, 16), "float16", align=64, offset_factor=16, scope="wmma.matrix_a", strides=[a1, a0])
        B = T.match_buffer(b, (16, 16), "float16", align=64, offset_factor=16, scope="wmma.matrix_b", strides=[b1, b0])
        C = T.match_buffer(
            c, (16, 16), "float32", align=64, offset_factor=16, scope="wmma.accumulator", strides=[c1, c0]
        )
        with T.sblock("root"):
            T.reads(C[0:16, 0:16], A[0:16, 0:16], B[0:16, 0:16])
            T.writes(C[0:16, 0:16])
            T.evaluate(
                T.tvm_mma_sync(
                    C.data, _fragment(C, c1), A.data, _fragment(A, a1), B.data, _fragment(B, b1), C.data,
                    _fragment(C, c1), dtype="void",
                )
            )  # fmt: skip

    return computes, calls


def _store() -> tuple[Any, Any]:
    @T.prim_func(s_tir=True)
    def computes(a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (16, 16), "float32", align=64, offset_factor=16, scope="wmma.accumulator")
        C = T.match_buffer(c, (16, 16), "float32", align=64, offset_factor=16, scope="shared")
        with T.sblock("root"):
            T.reads(A[0:16, 0:16])
            T.writes(C[0:16, 0:16])
            for i, j in T.grid(16, 16):
                with T.sblock("store"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    C[vi, vj] = A[vi, vj]

    @T.prim_func(s_tir=True)
    def calls(a: T.handle, c: T.handle) -> None:
        a1 = T.int32()
        a0 = T.int32()
        c1 = T.int32()
        c0 = T.int32()
        A = T.match_buffer(
            a, (16, 16), "float32", align=64, offset_factor=16, scope="wmma.accumulator", strides=[a1, a0]
        )
        C = T.match_buffer(c, (16, 16), "float32", align=64, offset_factor=16, scope="shared", strides=[c1, c0])
        with T.sblock("root"):
            T.reads(A[0:16, 0:16])
            T.writes(C[0:16, 0:16])
            T.evaluate(
                T.tvm_store_matrix_sync(
                    A.data, 16, 16, 16, _fragment(A, a1), C.access_ptr("w", ptr_type="float32"), c1, "row_major",
                    dtype="void",
                )
            )  # fmt: skip

    return computes, calls


TensorIntrin.register(INIT, *_init())
TensorIntrin.register(COMPUTE, *_compute())
TensorIntrin.register(STORE, *_store())
TensorIntrin.register(LOAD[0], *_load("wmma.matrix_a", "row_major"))
TensorIntrin.register(LOAD[1], *_load("wmma.matrix_b", "row_major"))
