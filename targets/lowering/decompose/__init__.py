"""Operators that TVM's importer lacks or gets wrong, and that have no ONNX definition, in operators that it has."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common

from graphopt.graph import infer_shapes
from graphopt.targets.lowering.decompose import elementwise, indexed, loops, reductions, transforms
from graphopt.targets.lowering.nodes import take_place

Results = list[ir.Value | None] | None
REWRITES: dict[str, Callable[[ir.Node], Results]] = {
    **elementwise.REWRITES,
    **indexed.REWRITES,
    **loops.REWRITES,
    **reductions.REWRITES,
    **transforms.REWRITES,
}
"""Operator -> what stands for each of its outputs (None for one that is not there), or None to leave the node."""
ROUNDS = 4
"""Bodies of loops may have operators that are to be rewritten in turn."""


def decompose(model: ir.Model) -> ir.Model:
    """Rewrite the main graph of `model` in place; returns it."""
    for _ in range(ROUNDS):
        changed = False
        for node in list(model.graph):
            rewrite = REWRITES.get(node.op_type) if node.domain == "" else None
            results = rewrite(node) if rewrite is not None else None
            if results is None:
                continue
            for index, result in enumerate(results):
                if result is not None:
                    take_place(node, result, index)
            model.graph.remove(node, safe=True)
            changed = True
        if not changed:
            return model
        common.RemoveUnusedNodesPass()(model)
        infer_shapes(model)
    return model
