"""Weights as a machine with a decoder keeps them in DRAM: a lossless Golomb-Rice code, one parameter per block.

A weight w is ``u = 2*d - 1`` for d > 0 and ``-2*d`` else, of the 8-bit difference d = w - centre. Of u, the low ``k``
bits are written as they are, the rest in unary (Golomb 1966, Rice 1979: near the entropy where small differences are
likelier, so pruned and heavy-tailed weights shrink most). A block of n weights is::

    k (1 byte), centre (1 byte)
    for every 64 weights, zeros after the last: for each of the k low bits, lowest first, 8 bytes: one bit per weight
    for every weight: u >> k zero bits and a one bit

Bits fill bytes from the lowest up. The first part has a length known beforehand, so a decoder reads two streams.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LARGEST_K = 7
GROUP = 64
HEAD = 2
_DIFFERENCE = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int64)
FOLDED = np.where(_DIFFERENCE > 0, 2 * _DIFFERENCE - 1, -2 * _DIFFERENCE).astype(np.uint16)
"""u of each byte of a difference; 256 values from 0 to 256 (-128 is 256)."""
UNFOLDED = np.zeros(257, np.uint8)
UNFOLDED[FOLDED] = np.arange(256, dtype=np.uint8)
LENGTHS = (
    1 + np.arange(LARGEST_K + 1)[:, None] + (FOLDED[None, :].astype(np.int64) >> np.arange(LARGEST_K + 1)[:, None])
)
"""Bits that each byte of a difference takes, by k."""


def encode(weights: Array, centre: int) -> Array | None:
    """The code of a block of weights (bytes, uint8) around the byte `centre`; None where it would not be shorter."""
    differences = weights - np.uint8(centre)
    counts = np.bincount(differences, minlength=256)
    totals = LENGTHS @ counts
    k = int(totals.argmin())
    if HEAD + totals[k] // 8 + GROUP // 8 * k >= weights.size:
        return None
    folded = FOLDED[differences]
    planes = np.zeros((-(-weights.size // GROUP), k, GROUP // 8), np.uint8)
    low = np.zeros(len(planes) * GROUP, np.uint8)
    low[: weights.size] = folded & ((1 << k) - 1)
    low = low.reshape(-1, GROUP)
    for bit in range(k):
        planes[:, bit] = np.packbits(low >> bit & 1, axis=1, bitorder="little")
    ends = np.cumsum((folded >> k) + np.uint16(1), dtype=np.int64) - 1
    unary = np.zeros(int(ends[-1]) + 1, np.uint8)
    unary[ends] = 1
    head = np.array([k, centre], np.uint8)
    return np.concatenate([head, planes.reshape(-1), np.packbits(unary, bitorder="little")])


def decode(code: Array, size: int) -> Array:
    """The `size` weights (uint8) of a block. Raises `ValueError` when `code` holds no such block."""
    k, centre = int(code[0]), code[1]
    groups = -(-size // GROUP)
    rest = HEAD + groups * k * (GROUP // 8)
    if k > LARGEST_K or rest > code.size:
        raise ValueError("no block of coded weights")
    bits = np.unpackbits(code[HEAD:rest].reshape(groups, k, GROUP // 8), axis=2, bitorder="little")
    low = np.zeros((groups, GROUP), np.uint8)
    for bit in range(k):
        low |= bits[:, bit] << bit
    folded = _unary(code[rest:], size) << k | low.reshape(-1)[:size]
    if int(folded.max(initial=0)) >= UNFOLDED.size:
        raise ValueError("no block of coded weights")
    return UNFOLDED.take(folded) + centre


def _unary(code: Array, size: int) -> Array:
    """How many zeros stand before each of the first `size` ones (int64)."""
    ends = np.flatnonzero(np.unpackbits(code, bitorder="little").view(np.bool_))[:size]
    if ends.size < size:
        raise ValueError("a block of coded weights is cut short")
    counts = ends.copy()
    counts[1:] -= ends[:-1] + 1
    return counts


def least_bytes(weights: Array, centre: int) -> int:
    """What no cut into blocks and no choice of k goes below: every weight with the k that is best for it alone."""
    differences = np.ascontiguousarray(weights).reshape(-1).view(np.uint8) - np.uint8(centre & 255)
    shortest = np.minimum(LENGTHS.min(axis=0), 8)
    return int(shortest @ np.bincount(differences, minlength=256)) // 8
