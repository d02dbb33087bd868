"""Open sizes in an order that is the same in every process, where TVM goes by addresses of its own objects.

- A kernel takes the open dimensions that are no size of its operands as numbers. TVM's `emit_te` gathers them in a
  Python set of its variables; `keep_order` has such sets keep the order of insertion.
- FuseOps gathers those of the operators it fuses by address again; `numbers_in_order` sorts them by name.
- VMShapeLower gathers the sizes that can be computed at one place in one function, which stores each at its own place
  of the heap of sizes; `sizes_in_order` sorts those stores.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx


class _Ordered(dict[Hashable, None]):
    """What `tvm.relax.utils` needs of a set."""

    def add(self, item: Hashable) -> None:
        self[item] = None

    def update(self, items: Iterable[Hashable]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().update(dict.fromkeys(items))

    def __sub__(self, other: _Ordered) -> list[Hashable]:
        return [item for item in self if item not in other]


def keep_order() -> None:
    """From now on TVM's `emit_te` and LegalizeOps name open dimensions in the order in which they meet them."""
    names: dict[str, Any] = relax.utils.__dict__
    names["set"] = _Ordered


@tvm.transform.module_pass(opt_level=0)
def numbers_in_order(module: tvm.IRModule, _: tvm.transform.PassContext | None = None) -> tvm.IRModule:
    """Let each kernel take its numbers in the order of their names, if all its calls give them among its operands."""
    kernels: dict[Any, Any] = {v: f for v, f in module.functions_items() if isinstance(f, tirx.PrimFunc)}
    callers: dict[Any, Any] = {v: f for v, f in module.functions_items() if isinstance(f, relax.Function)}
    orders = {v.name_hint: _by_names(f.params) for v, f in kernels.items()}
    orders = {name: order for name, order in orders.items() if order != sorted(order)}

    def keep(found: Any) -> None:
        for called in (found.op, *found.args[:1]):
            name = getattr(called, "name_hint", "")
            if name in orders and not _gives(found, max(i for i, place in enumerate(orders[name]) if i != place)):
                del orders[name]

    def call(found: Any) -> Any:
        order = orders.get(getattr(found.args[0], "name_hint", "")) if len(found.args) == 2 else None
        if order is None:
            return found
        callee, given = found.args
        moved = relax.Tuple([given[place] for place in order[: len(given)]])
        return relax.Call(found.op, [callee, moved], found.attrs, found.ty_args, ret_ty=found.ty)

    for caller in callers.values():
        tvm_ffi.structural_walk(caller, (tvm.ir.Call, keep))
    if not orders:
        return module
    functions: dict[Any, Any] = dict(module.functions_items())
    for variable, kernel in kernels.items():
        if variable.name_hint in orders:
            params = [kernel.params[place] for place in orders[variable.name_hint]]
            functions[variable] = tirx.PrimFunc(params, kernel.body, kernel.ret_type, attrs=kernel.attrs)
    functions |= {v: tvm_ffi.structural_map(f, [(tvm.ir.Call, call)]) for v, f in callers.items()}
    return tvm.IRModule(functions, attrs=module.attrs)  # pyright: ignore[reportAttributeAccessIssue]


def _gives(call: Any, place: int) -> bool:
    """Whether a call's operands are a tuple that has one at `place`."""
    return len(call.args) == 2 and isinstance(call.args[1], relax.Tuple) and place < len(call.args[1])


def _by_names(params: Any) -> list[int]:
    """Places of parameters, those of numbers sorted by name among themselves."""
    places = [place for place, param in enumerate(params) if not hasattr(param, "shape")]
    order = list(range(len(params)))
    for place, other in zip(places, sorted(places, key=lambda at: str(params[at].name)), strict=True):
        order[place] = other
    return order


@tvm.transform.module_pass(opt_level=0)
def sizes_in_order(module: tvm.IRModule, _: tvm.transform.PassContext | None = None) -> tvm.IRModule:
    """Let each function that stores sizes store them in the order of their places."""
    functions = {variable: _sorted(function) for variable, function in module.functions_items()}
    return tvm.IRModule(functions, attrs=module.attrs)  # pyright: ignore[reportAttributeAccessIssue]


def _sorted(function: Any) -> Any:
    """`function` with its stores sorted, if it is nothing but stores to places that it does not read."""
    body: Any = getattr(function, "body", None) if isinstance(function, tirx.PrimFunc) else None
    stores: list[Any] = list(body.seq) if isinstance(body, tirx.SeqStmt) else []
    if not stores or not all(map(_is_place, stores)):
        return function
    places = {int(store.indices[0]): store for store in stores}
    if len(places) < len(stores) or places.keys() & _read(stores):
        return function
    return function.with_body(tirx.SeqStmt([places[place] for place in sorted(places)]))


def _read(stores: list[Any]) -> set[int]:
    found: set[int] = set()

    def add(load: Any) -> None:
        found.update(int(index) for index in load.indices if isinstance(index, tirx.IntImm))

    for store in stores:
        tvm_ffi.structural_walk(store, (tvm.ir.TensorLoad, add))
    return found


def _is_place(statement: Any) -> bool:
    """Whether it stores to one known place."""
    indices: list[Any] = list(getattr(statement, "indices", []))
    return isinstance(statement, tirx.BufferStore) and len(indices) == 1 and isinstance(indices[0], tirx.IntImm)
