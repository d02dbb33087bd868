"""What passes would do with a model, and what they would leave alone and why: they are asked, on a copy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.base import Change, Skip

ASKED = ("eliminate-identity", "eliminate-common-subexpressions", "remove-unused", "fold-constants", "fold-batch-norm")
"""Passes that need no data and keep the outputs; each gets the model as it is."""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """One pass: `found` is where it would apply and what it would do, `missed` what it looked at and would leave.

    `failed`: what it said instead, None when all went well.
    """

    pass_name: str
    found: list[Change]
    missed: list[Skip]
    failed: str | None = None


def patterns(model: ir.Model, names: Sequence[str] = ASKED) -> list[Pattern]:
    """Run each of the passes `names` over a copy of `model`, which must be in normal form."""
    from graphopt.base import Context
    from graphopt.pipeline import parse_pipeline

    found: list[Pattern] = []
    for name in names:
        (pass_,) = parse_pipeline(name)
        try:
            report = pass_.apply(model.clone(), Context())
        except GraphoptError as error:
            found.append(Pattern(name, [], [], str(error)))
            continue
        found.append(Pattern(name, report.changes, report.skipped))
    return found
