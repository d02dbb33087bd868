"""8-bit values that are read once are dequantized where they are read: TVM would do so in the kernel that writes them.

Four bytes would go through memory then where one does: a residual that a projection yields, an image that is pooled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, te, topi

STEPS = ("relax.multiply", "relax.subtract")


def store_integers(module: tvm.IRModule) -> tvm.IRModule:
    """Additions and sums of such values in `module` read the 8-bit value."""
    main: Any = module["main"]
    bindings = {binding.var: binding.value for block in main.body.blocks for binding in block.bindings}
    mutator: Any = _Readers(module)
    mutator.values = bindings
    pure = [block for block in main.body.blocks if isinstance(block, relax.DataflowBlock)]
    every = [binding.var for block in pure for binding in block.bindings]
    mutator.outputs = {variable for variable in every if not isinstance(variable, relax.DataflowVar)}
    mutator.uses = Counter(argument for value in bindings.values() for argument in getattr(value, "args", ()))
    mutator.builder_.update_func(module.get_global_var("main"), mutator.visit_expr(main))
    return mutator.builder_.get()


@relax.expr_functor.mutator
class _Readers(relax.PyExprMutator):
    """`values`: of variables. `uses`: how often each is read. `outputs`: what blocks of dataflow give out."""

    values: dict[Any, Any]
    outputs: set[Any]
    uses: Counter[Any]

    def visit_var_binding_(self, binding: Any) -> None:
        made = {"relax.add": self._add, "relax.sum": self._sum}.get(_name(binding.value))
        call = None if made is None else made(binding.value)
        if call is None:
            super().visit_var_binding_(binding)
        else:
            emit = self.builder_.emit_output if binding.var in self.outputs else self.builder_.emit
            self.set_var_remap(binding.var, emit(call, name_hint=str(binding.var.name)))

    def _add(self, call: Any) -> Any:
        """Either operand may be such a value, or both: one of them is fused with what makes it after all."""
        if not tvm_ffi.structural_equal(call.args[0].ty.shape, call.args[1].ty.shape):
            return None
        found = [self._dequantized(operand) for operand in call.args]
        if not any(found):
            return None
        left, right = (one or (operand, []) for one, operand in zip(found, call.args, strict=True))

        def add(a: Any, b: Any, *numbers: Any) -> Any:
            of_a, of_b = numbers[: len(left[1])], numbers[len(left[1]) :]

            def element(*at: Any) -> Any:
                return _real(a(*at), left[1], of_a) + _real(b(*at), right[1], of_b)

            return te.compute(a.shape, element, name="add")

        return self._call(add, [left[0], right[0]], [*left[1], *right[1]])

    def _sum(self, call: Any) -> Any:
        found, attributes = self._dequantized(call.args[0]), call.attrs
        if found is None:
            return None
        q, steps = found

        def total(q: Any, *numbers: Any) -> Any:
            def element(*at: Any) -> Any:
                return _real(q(*at), steps, numbers)

            real = te.compute(q.shape, element, name="dequantized")
            return topi.sum(real, [int(axis) for axis in attributes.axis], bool(attributes.keepdims))

        return self._call(total, [q], steps)

    def _call(self, function: Any, tensors: Sequence[Any], steps: Sequence[tuple[str, Any]]) -> Any:
        arguments = map(self.visit_expr, [*tensors, *(number for _, number in steps)])
        return self.builder_.call_te(function, *arguments, primfunc_name_hint=str(function.__name__))

    def _dequantized(self, value: Any) -> tuple[Any, list[tuple[str, Any]]] | None:
        """The 8-bit variable that only `value` is made of, and what is done to it, each step with its number."""
        steps: list[tuple[str, Any]] = []
        call: Any = self.values.get(value)
        while _name(call) in STEPS and self.uses[value] == 1:
            if len(call.args[1].ty.shape) > 0:
                return None
            steps.insert(0, (_name(call), call.args[1]))
            value = call.args[0]
            call = self.values.get(value)
        if _name(call) != "relax.astype" or self.uses[value] != 1 or str(call.args[0].ty.dtype) != "int8":
            return None
        q = call.args[0]
        return (q, steps) if self.uses[q] == 1 and str(call.attrs.dtype) == "float32" else None


def _name(value: Any) -> str:
    return str(getattr(getattr(value, "op", None), "name", ""))


def _real(value: Any, steps: Sequence[tuple[str, Any]], numbers: Sequence[Any]) -> Any:
    """What `steps` make of a value, in float32."""
    value = value.astype("float32")
    for (name, _), number in zip(steps, numbers, strict=True):
        value = value * number() if name == "relax.multiply" else value - number()
    return value
