"""Channels last for convolutions of 16-bit floats and int8: what one product reads then lies together in memory.

An implicit matrix product over (kernel row, kernel column, input channel) reads runs of input channels, so that 8 of
them are one 16-byte copy into shared memory. TVM's ConvertLayout carries the layout through what stands between
convolutions; what it does to weights is done here, once, and not at each run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from graphopt.targets.cuda.lowering.pixels import whole_pixels
from graphopt.targets.lowering import Lowered

Array = np.ndarray[Any, Any]
LAYOUTS = {
    "relax.nn.conv1d": ["NWC", "WIO"],
    "relax.nn.conv1d_transpose": ["NCW", "IOW"],
    "relax.nn.conv2d": ["NHWC", "HWIO"],
    "relax.nn.conv2d_transpose": ["NCHW", "IOHW"],
}
"""TVM has no transposed convolutions of channels last."""
ALONG_SUM = {"relax.nn.conv2d": ["NHWC", "OHWI"]}
"""What tensor cores load fastest of int8."""
NARROW = ("float16", "bfloat16", "int8")


def channels_last(lowered: Lowered) -> Lowered:
    """1-D and 2-D convolutions channels last, if one is of a 16-bit float or int8 and TVM can carry that through."""
    bindings = [binding for block in lowered.module["main"].body.blocks for binding in block.bindings]
    if not any(_is_for_tensor_cores(binding.value) for binding in bindings):
        return lowered
    try:
        module = relax.transform.ConvertLayout({}, _layouts)(lowered.module)
    except tvm.error.InternalError:  # a layout it does not know, such as that of five dimensions
        return lowered
    return fold_weights(dataclasses.replace(lowered, module=whole_pixels(module)))


def _is_for_tensor_cores(value: Any) -> bool:
    return getattr(getattr(value, "op", None), "name", "") in LAYOUTS and str(value.args[0].ty.dtype) in NARROW


def _layouts(call: Any) -> Mapping[str, list[str]]:
    if call.op.name in ALONG_SUM and str(call.args[0].ty.dtype) == "int8" and int(call.attrs.groups) == 1:
        return ALONG_SUM
    return LAYOUTS


def fold_weights(lowered: Lowered) -> Lowered:
    """Permuted and reshaped weights become weights."""
    main: Any = lowered.module["main"]
    inputs = main.params[: len(lowered.inputs)]
    folder: Any = _Folder(lowered.module)
    folder.named = lowered.sources
    folder.weights = dict(zip(main.params[len(inputs) :], lowered.weights.items(), strict=True))
    body = folder.visit_expr(main.body)
    used = set(relax.analysis.free_vars(body))
    weights = {variable: weight for variable, weight in folder.weights.items() if variable in used}
    function = relax.Function([*inputs, *weights], body, main.ret_ty, is_pure=main.is_pure, attrs=main.attrs)
    functions = {**dict(lowered.module.functions_items()), lowered.module.get_global_var("main"): function}
    return dataclasses.replace(lowered, module=tvm.IRModule(functions), weights=dict(weights.values()))


@relax.expr_functor.mutator
class _Folder(relax.PyExprMutator):
    """`weights`: variables that are weights, those made here as well, with name and array."""

    weights: dict[Any, tuple[str, Array]]
    named: Container[str] = ()
    count = 0

    def visit_var_binding_(self, binding: Any) -> None:
        value = binding.value
        operator = getattr(getattr(value, "op", None), "name", "")
        source: Any = self.visit_expr(value.args[0]) if operator in _FOLDED else None
        shape = binding.var.ty.shape if source in self.weights else None
        if shape is None or not all(isinstance(dim, tirx.IntImm) for dim in shape):
            self._keep(binding)
            return
        name, array = self.weights[source]
        made = _FOLDED[operator](array, value, [int(dim) for dim in shape])
        variable: Any = relax.Var(str(binding.var.name), relax.TensorType(made.shape, str(made.dtype)))  # pyright: ignore[reportArgumentType]
        self.weights[variable] = (
            _fresh(f"{name}_as_{variable.name}", {known for known, _ in self.weights.values()}),
            made,
        )
        self.set_var_remap(binding.var, variable)

    def _keep(self, binding: Any) -> None:
        """ConvertLayout gives variables names that others have: those of no ONNX node get new ones here."""
        if not isinstance(binding.var, relax.DataflowVar) or str(binding.var.name) in self.named:
            super().visit_var_binding_(binding)
            return
        self.count += 1
        kept: Any = self.builder_.emit(self.visit_expr(binding.value), name_hint=f"step{self.count}")
        self.set_var_remap(binding.var, kept)


def _fresh(name: str, taken: set[str]) -> str:
    return name if name not in taken else _fresh(f"{name}_", taken)


def _permuted(array: Array, call: Any, shape: list[int]) -> Array:
    return np.ascontiguousarray(array.transpose([int(axis) for axis in call.attrs.axes]))


def _padded(array: Array, call: Any, shape: list[int]) -> Array:
    width = [int(size) for size in call.attrs.pad_width]
    return np.pad(array, list(zip(width[::2], width[1::2], strict=True)))


def _reshaped(array: Array, call: Any, shape: list[int]) -> Array:
    return array.reshape(shape)


_FOLDED: Mapping[str, Callable[[Array, Any, list[int]], Array]] = {
    "relax.permute_dims": _permuted,
    "relax.nn.pad": _padded,
    "relax.reshape": _reshaped,
}
