"""Products that are rounded before they are added, where a kernel's result is 8-bit integers.

CUDA's compiler makes one fused multiply-add of a product and a sum, which rounds once; where the result is rounded to
integers next, it may come out as another one than `targets.integer.reference` says.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import register_op_attr
from tvm.ir.op import Op

PRODUCT = "tirx.graphopt_rounded_product"
EIGHT_BITS = frozenset({"int8", "uint8"})


def _register() -> None:
    register_op_attr(PRODUCT, "TCallEffectKind", tirx.CallEffectKind.Pure.value)
    register_op_attr(PRODUCT, "TVectorizable", True)
    register_op_attr(PRODUCT, "TScriptPrinterName", PRODUCT.removeprefix("tirx."), level=20)
    tirx.register_intrin_lowering(PRODUCT, target="cuda", f=_on_gpu)
    tirx.register_intrin_lowering(PRODUCT, target="llvm", f=_on_cpu)
    tirx.register_intrin_lowering(PRODUCT, target="default", f=_elsewhere)


def _on_gpu(call: Any) -> Any:
    return tirx.call_pure_extern(str(call.ty.dtype), "__fmul_rn", *call.args)


def _on_cpu(call: Any) -> Any:
    return tirx.call_llvm_pure_intrin(str(call.ty.dtype), "llvm.arithmetic.fence", call.args[0] * call.args[1])


def _elsewhere(call: Any) -> Any:
    return call.args[0] * call.args[1]


_register()


def round_products(module: tvm.IRModule) -> tvm.IRModule:
    """`module` with float32 products rounded, but for those within sums, in functions that write 8-bit integers."""
    made = {
        variable: tvm_ffi.structural_map(function, (s_tir.SBlock, _block))
        for variable, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc) and _writes_integers(function)
    }
    for variable, function in made.items():
        module[variable] = function
    return module


def _writes_integers(function: Any) -> bool:
    found: list[bool] = []

    def block(one: Any) -> None:
        found.extend(str(region.source.dtype) in EIGHT_BITS for region in one.writes)

    tvm_ffi.structural_walk(function.body, (s_tir.SBlock, block))
    return any(found)


def _block(block: Any) -> Any:
    """A block that is no sum, and holds no others."""
    sums = any(axis.iter_type == tirx.IterVar.CommReduce for axis in block.iter_vars)
    if sums or not isinstance(block.body, tirx.BufferStore):
        return block
    return tvm_ffi.structural_map(block, (tirx.Mul, _product))


def _product(product: Any) -> Any:
    if str(product.ty.dtype) != "float32":
        return product
    return tirx.call_intrin("float32", Op.get(PRODUCT), product.a, product.b)
