"""Products of operands that were rounded to bfloat16 read them as bfloat16: half the bytes, and tensor cores.

A model that `convert-bfloat16` made multiplies float32 numbers that have been cast to bfloat16 and back, and weights
stored in bfloat16, which lowering has widened. The product of the bfloat16 numbers, summed in float32, is the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import tvm
from tvm import relax

from graphopt.targets.cuda.lowering.half import CONVOLUTIONS, summed_in_float32
from graphopt.targets.lowering import Lowered

Array = np.ndarray[Any, Any]
BRAIN = "bfloat16"
MOVES = frozenset(f"relax.{name}" for name in ("expand_dims", "flatten", "permute_dims", "reshape", "squeeze"))
"""Operators through which a cast can be taken."""


def read_bfloat16(lowered: Lowered) -> Lowered:
    """Each product of two operands whose values bfloat16 has becomes one of bfloat16, summed in float32.

    Values are such where they come from a cast, or are weights of which none needs more than 8 significant bits.
    """
    bindings = [binding for block in lowered.module["main"].body.blocks for binding in block.bindings]
    if not any(str(getattr(binding.var.ty, "dtype", "")) == BRAIN for binding in bindings):
        return lowered
    main: Any = lowered.module["main"]
    inputs = main.params[: len(lowered.inputs)]
    mutator: Any = _Narrow(lowered.module)
    mutator.weights = dict(zip(main.params[len(inputs) :], lowered.weights.items(), strict=True))
    mutator.narrow = {}
    body = mutator.visit_expr(main.body)
    weights = {**mutator.weights, **{var: pair for var, pair in mutator.narrow.values() if pair is not None}}
    function = relax.Function([*inputs, *weights], body, main.ret_ty, is_pure=main.is_pure, attrs=main.attrs)
    variable = lowered.module.get_global_var("main")
    module = relax.transform.DeadCodeElimination()(
        tvm.IRModule({**dict(lowered.module.functions_items()), variable: function})
    )
    used = set(relax.analysis.free_vars(module["main"].body))
    kept = {var: pair for var, pair in weights.items() if var in used}
    body: Any = module["main"].body
    function = relax.Function([*inputs, *kept], body, main.ret_ty, is_pure=main.is_pure, attrs=main.attrs)
    module = tvm.IRModule({**dict(module.functions_items()), module.get_global_var("main"): function})
    return dataclasses.replace(lowered, module=module, weights=dict(kept.values()))


@relax.expr_functor.mutator
class _Narrow(relax.PyExprMutator):
    """`weights`: parameters with name and array. `narrow`: variable -> the same as bfloat16, a weight with its pair."""

    weights: dict[Any, tuple[str, Array]]
    narrow: dict[Any, tuple[Any, tuple[str, Array] | None]]

    def visit_call_(self, op: Any) -> Any:
        call: Any = self.visit_expr_post_order(op)
        name = getattr(call.op, "name", "")
        if name != "relax.matmul" and name not in CONVOLUTIONS:
            return call
        operands = [self._narrowed(argument) for argument in call.args]
        return call if None in operands else summed_in_float32(call, operands)

    def _narrowed(self, value: Any) -> Any:
        """A bfloat16 variable whose numbers are those of `value`, None where there is no such."""
        if value not in self.narrow:
            made = self._weight(value) if value in self.weights else (self._computed(value), None)
            if made[0] is None:
                return None
            self.narrow[value] = made
        return self.narrow[value][0]

    def _weight(self, value: Any) -> tuple[Any, tuple[str, Array] | None]:
        name, array = self.weights[value]
        if array.dtype != np.float32 or (array.view(np.uint32) & 0xFFFF).any():
            return None, None
        variable = relax.Var(f"{value.name}_{BRAIN}", relax.TensorType(array.shape, BRAIN))  # pyright: ignore[reportArgumentType]
        return variable, (f"{name}_as_{BRAIN}", array.astype(ml_dtypes.bfloat16))

    def _computed(self, value: Any) -> Any:
        binding: Any = self.lookup_binding(value) if isinstance(value, relax.Var) else None
        name = getattr(getattr(binding, "op", None), "name", "")
        if name == "relax.astype":
            return binding.args[0] if str(binding.args[0].ty.dtype) == BRAIN else None
        before = self._narrowed(binding.args[0]) if name in MOVES else None
        if before is None:
            return None
        return self.builder_.emit(relax.Call(binding.op, [before, *binding.args[1:]], binding.attrs))
