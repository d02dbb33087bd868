"""Where zeros may lie: anywhere, N of every M, or in blocks. From scores to a mask."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

import numpy as np

from graphopt.passes.magnitude import smallest, smallest_of_groups

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Pattern:
    """`keep` of every `group` neighbours along the input channels, or blocks of `inputs` x `outputs` channels."""

    keep: int = 0
    group: int = 0
    inputs: int = 1
    outputs: int = 1

    @property
    def fixes(self) -> bool:
        """Whether the pattern itself says how many weights stay."""
        return self.group > 0

    @property
    def is_blocks(self) -> bool:
        """Whether weights go together."""
        return self.inputs * self.outputs > 1


def parse(text: str) -> Pattern | None:
    """The pattern that `text` names: unstructured, N:M, or RxC; None where it names none."""
    if text == "unstructured":
        return Pattern()
    match = re.fullmatch(r"(\d+)([:x])(\d+)", text)
    if match is None:
        return None
    first, second = int(match[1]), int(match[3])
    if match[2] == ":":
        return Pattern(first, second) if 0 < first < second else None
    return Pattern(inputs=first, outputs=second) if min(first, second) > 0 and first * second > 1 else None


def objection(pattern: Pattern, shape: tuple[int, ...], inputs: int | None, outputs: int | None) -> str | None:
    """Why a weight of `shape` with these axes can't have the pattern; None where it can."""
    if pattern.fixes:
        if inputs is None:
            return "has no one input axis"
        if shape[inputs] % pattern.group:
            return f"has {shape[inputs]} input channels, no multiple of {pattern.group}"
    if pattern.is_blocks and (inputs is None or outputs is None):
        return "has no one axis of input and of output channels"
    return None


def zeros(
    scores: Array,
    pattern: Pattern,
    sparsity: float,
    axes: tuple[int | None, int | None],
    norm: Literal["l1", "l2"] = "l2",
) -> Array:
    """True where weights go: those of least score, `sparsity` of them where the pattern doesn't fix it.

    `axes`: of input and output channels. Blocks at the end of an axis may be smaller; a block's score is the mean of
    its weights' (l1), or of their squares (l2), so that they compare. Never all of a weight goes.
    """
    inputs, outputs = axes
    if pattern.fixes:
        assert inputs is not None
        return smallest_of_groups(scores, inputs, pattern.keep, pattern.group)
    if not pattern.is_blocks:
        return smallest([scores], sparsity)[0]
    assert inputs is not None
    assert outputs is not None
    sizes = [1] * scores.ndim
    sizes[inputs], sizes[outputs] = pattern.inputs, pattern.outputs
    (mask,) = smallest([block_scores(scores, sizes, norm)], sparsity)
    for axis, size in enumerate(sizes):
        mask = np.repeat(mask, size, axis)
    return mask[tuple(slice(0, n) for n in scores.shape)]


def block_scores(scores: Array, sizes: list[int], norm: Literal["l1", "l2"]) -> Array:
    """The mean score of each block, or the root of that of squares."""
    total = np.abs(scores.astype(np.float64))
    total, count = (np.square(total) if norm == "l2" else total), np.ones(scores.shape)
    for axis, size in enumerate(sizes):
        starts = np.arange(0, scores.shape[axis], size)
        total, count = np.add.reduceat(total, starts, axis), np.add.reduceat(count, starts, axis)
    mean = total / count
    return (np.sqrt(mean) if norm == "l2" else mean).astype(np.float32)
