"""Did a pass keep what it declared? Outputs before and after, through onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.base import Preserves
from graphopt.errors import PassError

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]


WAYS_OUT = " graphopt bisect finds the change that does it; --reproducer DIR keeps the graph that the pass was given."
NUMBERS = "fiubV"
"""Kinds of dtypes that are numbers; V is ml_dtypes'. Others (strings, objects) are equal or not."""


def worst_error(want: Array, got: Array, rtol: float, atol: float) -> tuple[float, float]:
    """``max|want - got|`` and the bound ``atol + rtol * max|want|``, both over finite entries, in float64.

    A different shape or dtype, or NaN or infinity in other places or of other sign, is an infinite error.
    """
    if want.shape != got.shape or want.dtype != got.dtype:
        return np.inf, 0.0
    if want.dtype.kind not in NUMBERS or want.size == 0:
        return (0.0 if np.array_equal(want, got) else np.inf), 0.0
    a, b = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return np.inf, 0.0
    if not finite.any():
        return 0.0, atol
    a, b = a[finite], b[finite]
    least = float(want.dtype.kind in "iu" and not np.array_equal(want, got))  # float64 has 53 bits
    return max(float(np.abs(a - b).max()), least), atol + rtol * float(np.abs(a).max())


def check_preserved(
    who: str, preserves: Preserves, before: Mapping[str, Array], after: Mapping[str, Array]
) -> float | None:
    """The largest relative error over all outputs, ``max|a-b| / max|a|``.

    Raises:
        PassError: an output is missing, or off by more than `preserves` allows (lossy allows any finite values
            of the same shape).
    """
    if list(before) != list(after):
        raise PassError(f"{who} changed the model's outputs from {list(before)} to {list(after)}.")
    wanted, given = tensors(before), tensors(after)
    if list(wanted) != list(given):
        raise PassError(f"{who} changed the length of a sequence: from {list(wanted)} to {list(given)}.")
    worst = 0.0
    for name, want in wanted.items():
        got, is_number = given[name], want.dtype.kind in NUMBERS
        error, bound = worst_error(want, got, allowed_rtol(preserves, want.dtype), preserves.atol)
        if preserves.kind == "lossy":
            bound = np.finfo(np.float64).max if is_number else np.inf
        if error > bound:
            raise PassError(f"{who} declares {preserves} and {_moved(name, want, got, error, bound)}.{WAYS_OUT}")
        if is_number:
            scale = float(np.abs(want.astype(np.float64)[np.isfinite(want.astype(np.float64))]).max(initial=0.0))
            worst = max(worst, error / scale if scale else error)
    return worst


def tensors(outputs: Mapping[str, Any]) -> dict[str, Array]:
    """Outputs as arrays; those of a sequence one by one, maps and absent optionals as arrays of one object."""
    arrays: dict[str, Array] = {}
    for name, output in outputs.items():
        if isinstance(output, list):
            arrays |= {f"{name}[{k}]": np.asarray(item) for k, item in enumerate(output)}  # pyright: ignore[reportUnknownVariableType]
        else:
            arrays[name] = np.asarray(output)
    return arrays


def _moved(name: str, want: Array, got: Array, error: float, bound: float) -> str:
    if (want.shape, want.dtype) != (got.shape, got.dtype):
        return f"turned output {name!r} from {want.dtype}{list(want.shape)} into {got.dtype}{list(got.shape)}"
    if np.isfinite(error):
        return f"moved output {name!r} by {error:.3g} where {bound:.3g} is allowed"
    if want.dtype.kind in NUMBERS:
        return f"output {name!r} has NaN or infinity where it had numbers, or the other way round"
    return f"output {name!r} has other values than before"


def allowed_rtol(preserves: Preserves, dtype: np.dtype[Any]) -> float:
    """The declared tolerance, but in 16-bit floats at least eight roundings: no rewrite keeps less there."""
    if preserves.kind != "tolerance" or dtype.kind not in "fV" or dtype.itemsize > 2:
        return preserves.rtol
    import ml_dtypes

    return max(preserves.rtol, 8 * float(ml_dtypes.finfo(dtype).eps))
