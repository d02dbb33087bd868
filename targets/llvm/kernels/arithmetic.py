"""What one step of a register tile does: float32 multiply-adds, or integer products summed in fours or twos.

An integer step multiplies `depth` neighbouring uint8 inputs with as many int8 weights for each of the lanes, and adds
the sums to int32 accumulators::

    acc[l] += sum over d < depth of x[d] * w[l][d]

=========  =====  ==========================================================================================
vpdpbusd   4      AVX-VNNI, AVX512-VNNI: one instruction
maddubs    4      vpmaddubsw and vpmaddwd by ones: pairs are summed in int16, which must not saturate
maddwd     2      vpmaddwd on inputs and weights widened to int16
usdot      4      NEON with i8mm
sdot       4      NEON with dotprod: inputs less 128, and a zero point less 128
widen      1      any CPU: both sides widened to int32
=========  =====  ==========================================================================================
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Protocol

import numpy as np
from tvm import tirx

from graphopt.targets.llvm.kernels.emit import Expr, Isa, load, splat

Name = Literal["vpdpbusd", "maddubs", "maddwd", "usdot", "sdot", "widen"]


class Arithmetic(Protocol):
    """The type of the accumulators, and the two halves of a step."""

    @property
    def dtype(self) -> str:
        """Of the accumulators."""
        ...

    def spread(self, a: Expr, lanes: int) -> Expr:
        """The input of a row for all lanes."""
        ...

    def add(self, acc: Expr, a: Expr, w: Expr, lanes: int) -> Expr:
        """``acc + a * w`` for a spread input and a vector of weights."""
        ...


@dataclasses.dataclass(frozen=True)
class Float:
    """float32 multiply-adds."""

    dtype: str = "float32"

    def spread(self, a: Expr, lanes: int) -> Expr:
        """A vector of equal elements."""
        return splat(a, lanes)

    def add(self, acc: Expr, a: Expr, w: Expr, lanes: int) -> Expr:
        """One multiply-add."""
        return acc + a * w


FLOAT = Float()


@dataclasses.dataclass(frozen=True)
class Dot:
    """Integer steps. `depth`: inputs of a step. `extra`: registers that its temporaries take.

    `staged`: the type that inputs must be copied to, or "uint8" if they can be read as they are.
    """

    name: Name
    depth: int
    staged: Literal["uint8", "int8", "int16"] = "uint8"
    extra: int = 0
    dtype: str = "int32"

    def input(self, x: Any, indices: list[Expr]) -> Expr:
        """`depth` staged inputs from `indices` on, as one int32."""
        values = load(x, indices, self.depth)
        return tirx.Cast("int32", values) if self.depth == 1 else tirx.reinterpret("int32", values)

    def weights(self, w: Any, indices: list[Expr], lanes: int) -> Expr:
        """The weights of a step for all lanes: ``lanes * depth`` int8, in the type that `add` takes."""
        values = load(w, indices, lanes * self.depth)
        match self.name:
            case "maddwd":
                return tirx.Cast(f"int16x{2 * lanes}", values)
            case "widen":
                return tirx.Cast(_vector("int32", lanes), values)
            case _:
                return values

    def spread(self, a: Expr, lanes: int) -> Expr:
        """The inputs of a step for all lanes."""
        every = splat(a, lanes)
        match self.name:
            case "widen":
                return every
            case "maddwd":
                return tirx.reinterpret(f"int16x{2 * lanes}", every)
            case _:
                return tirx.reinterpret(f"int8x{4 * lanes}", every)

    def add(self, acc: Expr, a: Expr, w: Expr, lanes: int) -> Expr:
        """The step."""
        wide = f"int32x{lanes}"
        bits = 32 * lanes
        match self.name:
            case "vpdpbusd":
                return _call(wide, f"llvm.x86.avx512.vpdpbusd.{bits}", acc, a, w)
            case "maddwd":
                return _in_order(acc + _call(wide, MADDWD[lanes], a, w), lanes)
            case "maddubs":
                pairs = _call(f"int16x{2 * lanes}", MADDUBS[lanes], a, w)
                ones = splat(1, 2 * lanes, "int16")
                return _in_order(acc + _call(wide, MADDWD[lanes], pairs, ones), lanes)
            case "usdot" | "sdot":
                return _call(wide, f"llvm.aarch64.neon.{self.name}.v4i32.v16i8", acc, a, w)
            case "widen":
                return acc + a * w

    def stage(self, x: Expr, lanes: int) -> Expr:
        """`lanes` uint8 inputs in the staged type."""
        match self.staged:
            case "uint8":
                return x
            case "int16":
                return tirx.Cast(_vector("int16", lanes), x)
            case "int8":
                return tirx.reinterpret(_vector("int8", lanes), x ^ splat(128, lanes, "uint8"))


MADDWD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
MADDUBS = {
    4: "llvm.x86.ssse3.pmadd.ub.sw.128", 8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512",
}  # fmt: skip


def _vector(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def _call(dtype: str, name: str, *arguments: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin(dtype, name, *arguments)


def _in_order(total: Expr, lanes: int) -> Expr:
    """`total`, which LLVM must not add up in another order: it does so for the sake of parallelism, and then spills."""
    kept = _call(f"float32x{lanes}", "llvm.arithmetic.fence", tirx.reinterpret(f"float32x{lanes}", total))
    return tirx.reinterpret(f"int32x{lanes}", kept)


def choose(isa: Isa, weight: np.ndarray[Any, Any]) -> Dot:
    """The fastest exact arithmetic of a CPU for an int8 `weight`, [..., inner] along which `maddubs` makes pairs."""
    features, lanes = isa.features, isa.lanes
    if _has_vnni(lanes, features):
        return Dot("vpdpbusd", 4)
    if lanes == 4 and "i8mm" in features:
        return Dot("usdot", 4)
    if lanes == 4 and "dotprod" in features:
        return Dot("sdot", 4, staged="int8")
    if saturates(lanes, features) and fits_maddubs(weight):
        return Dot("maddubs", 4, extra=2)
    if {4: "sse2", 8: "avx2", 16: "avx512bw"}.get(lanes) in features:
        return Dot("maddwd", 2, staged="int16", extra=1)
    return Dot("widen", 1, extra=1)


def _has_vnni(lanes: int, features: frozenset[str]) -> bool:
    return (lanes == 16 and "avx512vnni" in features) or (lanes == 8 and bool(features & {"avxvnni", "avx512vnni"}))


def saturates(lanes: int, features: frozenset[str]) -> bool:
    """Whether `maddubs`, in which weights of 8 bits can saturate, is the fastest arithmetic of a CPU."""
    instruction = {4: "ssse3", 8: "avx2", 16: "avx512bw"}.get(lanes)
    return instruction in features and not _has_vnni(lanes, features)


def fits_maddubs(weight: np.ndarray[Any, Any]) -> bool:
    """Whether no pair of neighbours along the last axis can saturate int16: ``255 * (|w0| + |w1|) <= 32767``.

    Pairs go by even places; so does the padding to an even length.
    """
    size = np.abs(weight.astype(np.int32))
    odd = np.pad(size, [(0, 0)] * (size.ndim - 1) + [(0, size.shape[-1] % 2)])
    return bool((odd.reshape(*odd.shape[:-1], -1, 2).sum(axis=-1) * 255 <= 32767).all())
