"""Casts to bfloat16 and back as arithmetic: TVM computes bfloat16 in float32, so that in a kernel they do nothing."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, te, tirx


def round_in_float32(module: tvm.IRModule) -> tvm.IRModule:
    """float32 values that are cast to bfloat16 for nothing but a cast back are rounded without leaving float32."""
    main: Any = module["main"]
    bindings = [binding for block in main.body.blocks for binding in block.bindings]
    narrow = {binding.var: binding.value.args[0] for binding in bindings if _is_cast(binding, "float32", "bfloat16")}
    if not narrow:
        return module
    for binding in bindings:
        if not _is_cast(binding, "bfloat16", "float32"):
            for variable in relax.analysis.free_vars(binding.value):
                narrow.pop(variable, None)
    for variable in relax.analysis.free_vars(main.body.body):
        narrow.pop(variable, None)
    mutator: Any = _Rounding(module)
    mutator.narrow = narrow
    mutator.builder_.update_func(module.get_global_var("main"), mutator.visit_expr(main))
    return relax.transform.DeadCodeElimination()(mutator.builder_.get())


def _is_cast(binding: Any, from_: str, to: str) -> bool:
    if getattr(getattr(binding.value, "op", None), "name", "") != "relax.astype":
        return False
    return str(binding.value.args[0].ty.dtype) == from_ and str(binding.value.attrs.dtype) == to


@relax.expr_functor.mutator
class _Rounding(relax.PyExprMutator):
    narrow: dict[Any, Any]

    def visit_call_(self, op: Any) -> Any:
        name = getattr(op.op, "name", "")
        source = self.narrow.get(op.args[0]) if name == "relax.astype" else None
        if source is None:
            return self.visit_expr_post_order(op)
        return self.builder_.call_te(_rounded, self.visit_expr(source), primfunc_name_hint="round_bfloat16")


def _rounded(x: Any) -> Any:
    """To the nearest number of 8 significant bits, of two as near the even one; NaN stays NaN."""

    def element(*at: Any) -> Any:
        bits: Any = tirx.reinterpret("uint32", x(*at))
        up = tirx.const(0x7FFF, "uint32") + ((bits >> tirx.const(16, "uint32")) & tirx.const(1, "uint32"))
        number = tirx.Select(x(*at) != x(*at), bits | tirx.const(0x400000, "uint32"), bits + up)
        return tirx.reinterpret("float32", number & tirx.const(0xFFFF0000, "uint32"))

    return te.compute(x.shape, element, name="round_bfloat16")
