# pyright: basic, reportInvalidTypeForm=false, reportCallIssue=false, reportIndexIssue=false, reportMissingModuleSource=false
# ruff: noqa: N806, N812
"""Products of 16 x 16 x 16 on tensor cores as tensor intrinsics: what each computes, and CUDA's wmma call for it.

Operands are in shared memory, the right one by rows or by columns. TVM has such a set, whose import alone takes half a
minute: it parses more than a hundred. These are written once for all types, and parsed for those that a model has.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

SUMS: Mapping[str, str] = {"float16": "float32", "bfloat16": "float32", "int8": "int32", "uint8": "int32"}
"""Type of both operands -> type of the sums (NVIDIA, "CUDA C++ Programming Guide", wmma, element types and sizes)."""
ROWS, COLUMNS = "row_major", "col_major"


@dataclasses.dataclass(frozen=True)
class Intrinsics:
    """Names of the registered tensor intrinsics for one type of operands and one order of the right one."""

    init: str
    load_a: str
    load_b: str
    compute: str
    store: str


@functools.cache
def intrinsics(operand: str, right: str) -> Intrinsics:
    """Those for operands of type `operand`; the right one is [k, j] (`right` is ROWS) or [j, k] (COLUMNS)."""
    names = Intrinsics(*(f"graphopt.wmma.{field.name}.{operand}.{right}" for field in dataclasses.fields(Intrinsics)))
    sums = SUMS[operand]
    TensorIntrin.register(names.init, *_init(sums))
    TensorIntrin.register(names.load_a, *_load("wmma.matrix_a", ROWS, operand))
    TensorIntrin.register(names.load_b, *_load("wmma.matrix_b", right, operand))
    TensorIntrin.register(names.compute, *_compute(operand, sums, right == COLUMNS))
    TensorIntrin.register(names.store, *_store(sums))
    return names


def _fragment(buffer: Any, stride: Any) -> Any:
    """Which fragment of its buffer it is, in rows of fragments."""
    return buffer.elem_offset // stride // 16 * (stride // 16) + buffer.elem_offset % stride // 16


def _load(scope: str, layout: str, dtype: str) -> tuple[Any, Any]:
    @T.prim_func(s_tir=True)
    def computes(a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (16, 16), dtype, align=64, offset_factor=16, scope="shared")
        C = T.match_buffer(c, (16, 16), dtype, align=64, offset_factor=16, scope=scope)
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
        A = T.match_buffer(a, (16, 16), dtype, align=64, offset_factor=16, scope="shared", strides=[a1, a0])
        C = T.match_buffer(c, (16, 16), dtype, align=64, offset_factor=16, scope=scope, strides=[c1, c0])
        with T.sblock("root"):
            T.reads(A[0:16, 0:16])
            T.writes(C[0:16, 0:16])
            T.evaluate(
                T.tvm_load_matrix_sync(
                    C.data, 16, 16, 16, _fragment(C, c1), A.access_ptr("r", ptr_type=dtype), a1, layout, dtype="void"
                )
            )

    return computes, calls


def _init(dtype: str) -> tuple[Any, Any]:
    zero = tirx.const(0, dtype)

    @T.prim_func(s_tir=True)
    def computes(c: T.handle) -> None:
        C = T.match_buffer(c, (16, 16), dtype, align=64, offset_factor=16, scope="wmma.accumulator")
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:16, 0:16])
            for i, j in T.grid(16, 16):
                with T.sblock("init"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    C[vi, vj] = zero

    @T.prim_func(s_tir=True)
    def calls(c: T.handle) -> None:
        c1 = T.int32()
        c0 = T.int32()
        C = T.match_buffer(c, (16, 16), dtype, align=64, offset_factor=16, scope="wmma.accumulator", strides=[c1, c0])
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:16, 0:16])
            T.evaluate(T.tvm_fill_fragment(C.data, 16, 16, 16, _fragment(C, c1), zero, dtype="void"))

    return computes, calls


def _compute(operand: str, sums: str, by_columns: bool) -> tuple[Any, Any]:
    def right(k: Any, j: Any) -> list[Any]:
        return [j, k] if by_columns else [k, j]

    @T.prim_func(s_tir=True)
    def computes(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (16, 16), operand, align=64, offset_factor=16, scope="wmma.matrix_a")
        B = T.match_buffer(b, (16, 16), operand, align=64, offset_factor=16, scope="wmma.matrix_b")
        C = T.match_buffer(c, (16, 16), sums, align=64, offset_factor=16, scope="wmma.accumulator")
        with T.sblock("root"):
            T.reads(C[0:16, 0:16], A[0:16, 0:16], B[0:16, 0:16])
            T.writes(C[0:16, 0:16])
            for i, j, k in T.grid(16, 16, 16):
                with T.sblock(""):
                    vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                    C[vi, vj] = C[vi, vj] + T.Cast(sums, A[vi, vk]) * T.Cast(sums, B[right(vk, vj)])

    @T.prim_func(s_tir=True)
    def calls(a: T.handle, b: T.handle, c: T.handle) -> None:
        a1 = T.int32()
        a0 = T.int32()
        b1 = T.int32()
        b0 = T.int32()
        c1 = T.int32()
        c0 = T.int32()
        A = T.match_buffer(a, (16, 16), operand, align=64, offset_factor=16, scope="wmma.matrix_a", strides=[a1, a0])
        B = T.match_buffer(b, (16, 16), operand, align=64, offset_factor=16, scope="wmma.matrix_b", strides=[b1, b0])
        C = T.match_buffer(c, (16, 16), sums, align=64, offset_factor=16, scope="wmma.accumulator", strides=[c1, c0])
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


def _store(dtype: str) -> tuple[Any, Any]:
    @T.prim_func(s_tir=True)
    def computes(a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (16, 16), dtype, align=64, offset_factor=16, scope="wmma.accumulator")
        C = T.match_buffer(c, (16, 16), dtype, align=64, offset_factor=16, scope="shared")
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
        A = T.match_buffer(a, (16, 16), dtype, align=64, offset_factor=16, scope="wmma.accumulator", strides=[a1, a0])
        C = T.match_buffer(c, (16, 16), dtype, align=64, offset_factor=16, scope="shared", strides=[c1, c0])
        with T.sblock("root"):
            T.reads(A[0:16, 0:16])
            T.writes(C[0:16, 0:16])
            T.evaluate(
                T.tvm_store_matrix_sync(
                    A.data, 16, 16, 16, _fragment(A, a1), C.access_ptr("w", ptr_type=dtype), c1, ROWS, dtype="void"
                )
            )

    return computes, calls
