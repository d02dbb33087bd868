"""`eliminate-identity`: nodes that pass their input on unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass

from graphopt.base import EXACT, Context, Pass, Preserves, Report
from graphopt.passes.random_ops import is_inference_dropout

if TYPE_CHECKING:
    import onnx_ir as ir


def eliminate_identity(model: ir.Model) -> Report:
    """Remove Identity and its like: ``y = x`` bit for bit, every reader of y reads x. In place.

    A y that a graph returns goes only where x can take its name: x is computed in the same graph, and is not
    itself returned.
    """
    report = Report()
    roots = [model.graph, *(f.graph for f in model.functions.values())]
    for node in [n for root in roots for n in root.all_nodes() if _is_identity(n)]:
        reason = _why_needed(node)
        if reason:
            report.skip(node.name, reason)
            continue
        _remove(node)
        report.change(node.name, f"removed {node.op_type}")
    return report


def _is_identity(node: ir.Node) -> bool:
    """Identity; Dropout in inference; Cast to the type it has; Transpose that moves nothing; Concat and sums of one."""
    if node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None:
        return False
    match node.op_type:
        case "Identity":
            return True
        case "Dropout":
            mask = [v for v in node.outputs[1:] if v.uses() or v.is_graph_output()]
            return not mask and is_inference_dropout(node)
        case "Cast":
            to = node.attributes.get("to")
            dtype = node.inputs[0].dtype
            return dtype is not None and to is not None and not to.is_ref() and to.as_int() == dtype.value
        case "Transpose":
            perm = node.attributes.get("perm")
            return perm is not None and not perm.is_ref() and list(perm.as_ints()) == list(range(len(perm.as_ints())))
        case "Concat" | "Sum" | "Max" | "Min" | "Mean":
            return len(node.inputs) == 1
        case _:
            return False


def _why_needed(node: ir.Node) -> str | None:
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    if not y.is_graph_output():
        return None
    producer = x.producer()
    if producer is None:
        return f"it returns '{x.name}', an input or a constant, as output '{y.name}'"
    if producer.graph is not node.graph:
        return f"it returns '{x.name}' of an outer graph from a subgraph"
    if x.is_graph_output():
        return f"it returns '{x.name}' a second time, as '{y.name}'"
    return None


def _remove(node: ir.Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    assert node.graph is not None
    was_returned = y.is_graph_output()
    y.replace_all_uses_with(x, replace_graph_outputs=True)
    if was_returned:
        x.name, x.shape, x.type = y.name, y.shape or x.shape, y.type or x.type
    node.graph.remove(node, safe=True)


@dataclass(frozen=True)
class EliminateIdentity(Pass):
    """Remove nodes that pass their input on: Identity, inference Dropout, Cast and Transpose that change nothing."""

    name: ClassVar[str] = "eliminate-identity"
    preserves: ClassVar[Preserves] = EXACT

    def apply(self, model: ir.Model, context: Context) -> Report:
        """See `eliminate_identity`."""
        return eliminate_identity(model)
