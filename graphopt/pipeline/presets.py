"""Named pipelines, each the text a user could type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.base import Pass

_CLEAN = "fold-constants,eliminate-identity,eliminate-common-subexpressions,remove-unused"

PRESETS: dict[str, str] = {
    "O0": "",
    "O1": _CLEAN,
    "O2": f"{_CLEAN},fold-batch-norm",
    "O3": f"{_CLEAN},fold-batch-norm,{_CLEAN}",
    "int8": f"{_CLEAN},fold-batch-norm,insert-qdq,quantize-weights{{include=[Gather]}}",
    "int8-dynamic": f"{_CLEAN},fold-batch-norm,quantize-dynamic,quantize-weights{{include=[Gather]}}",
    "int4-weights": f"{_CLEAN},fold-batch-norm,quantize-weights{{bits=4}}",
    "float16": f"{_CLEAN},fold-batch-norm,convert-float16,{_CLEAN}",
    "bfloat16": f"{_CLEAN},fold-batch-norm,convert-bfloat16,{_CLEAN}",
}
"""O0 nothing; O1 clean-up; O2 and batch-norm folding; O3 and clean-up of what folding left; int8: O2, static QDQ
(needs calibration data) and 8-bit embedding tables; int8-dynamic: the same by run-time ranges, without calibration;
int4-weights: O2 and weights in blocks of 4 bits; float16 and bfloat16: O2 and products of such numbers, for GPUs.
"""


def preset(name: str) -> list[Pass]:
    """The passes of a preset. Raises `UsageError` for an unknown name."""
    from graphopt.pipeline.registry import parse_pipeline

    if name not in PRESETS:
        raise UsageError(f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    return parse_pipeline(PRESETS[name])
