"""Values that a rewrite gave other numbers on purpose: a scale moved past them into what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from graphopt.compare.pairing import Twin, computed_from

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.compare.report import NodeError

OTHERWISE = "it holds other numbers on purpose: only with these does what follows agree"
CLEARLY = 20.0
"""Decibels by which one error has to be above another to count as more."""


def rescaled(pairs: Sequence[Twin], nodes: Mapping[ir.Value, NodeError]) -> set[ir.Value]:
    """The values of the second model whose numbers are not the first model's by intention.

    A node that agrees when it reads the second model's values, and does not when it is given the first model's, was
    changed together with what it reads (a BatchNormalization folded forwards, channels equalized). What it reads and
    does not agree itself is so meant, and before that what was only passed on.
    """
    known = {twin.new for twin in pairs if twin.firm and twin.new in nodes}
    found: set[ir.Value] = set()
    for twin in reversed(pairs):
        node = nodes.get(twin.new)
        if node is None:
            continue
        if twin.new in found:
            good = node.alone.db
        elif node.alone.db + CLEARLY < node.accumulated.db:
            good = node.accumulated.db
        else:
            continue
        _, sources = computed_from(twin.new, known)
        found.update(source for source in sources if nodes[source].accumulated.db + CLEARLY < good)
    return found
