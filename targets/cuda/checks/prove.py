"""Proofs of ``0 <= index < size`` where sizes are products of open dimensions, which TVM's analyzer alone can't do.

With d >= 1::

    a // d < b    if  a < b * d
    a % d  < b    if  d <= b,  or  a < b
    a      < b    if  some condition l < r holds with  a - b <= l - r
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tvm import tirx
from tvm.sym.analyzer import ProofStrength
from tvm.tirx import expr as tir

from graphopt.targets.cuda.checks.numbers import is_a

_DEEPEST = 6


def within(analyzer: Any, index: Any, size: Any, conditions: Sequence[Any]) -> bool:
    """Whether ``0 <= index < size`` is proved where `conditions` hold; `analyzer` knows them too."""
    if isinstance(size, tirx.IntImm):
        size = tirx.IntImm(_type(index), int(size))
    return _not_negative(analyzer, index) and less(analyzer, index, size, list(_atoms(conditions)))


def _not_negative(analyzer: Any, index: Any) -> bool:
    if _proved(analyzer, index >= 0):
        return True
    if is_a(index, tir.FloorDiv):
        return _proved(analyzer, index.b > 0) and _not_negative(analyzer, index.a)
    return is_a(index, tir.FloorMod) and _proved(analyzer, index.b > 0)


def less(analyzer: Any, a: Any, b: Any, conditions: list[Any], depth: int = 0) -> bool:
    """Whether ``a < b`` is proved. `conditions`: each ``l < r``, as pairs."""
    if _can_prove(analyzer, a < b):
        return True
    if depth > _DEEPEST:
        return False
    if is_a(a, tir.FloorDiv) and _proved(analyzer, a.b > 0):
        return less(analyzer, a.a, b * a.b, conditions, depth + 1)
    if (
        is_a(a, tir.FloorMod)
        and _proved(analyzer, a.b > 0)
        and (_at_most(analyzer, a.b, b) or less(analyzer, a.a, b, conditions, depth + 1))
    ):
        return True
    same = [(left, right) for left, right in conditions if _type(left) == _type(right) == _type(a) == _type(b)]
    if any(_at_most(analyzer, a - b, left - right) for left, right in same):
        return True
    return _can_prove(analyzer, a < b, ProofStrength.SYMBOLIC_BOUND)


def _type(expression: Any) -> str:
    return str(expression.ty.dtype)


def _at_most(analyzer: Any, a: Any, b: Any) -> bool:
    return _can_prove(analyzer, a <= b) or _can_prove(analyzer, analyzer.simplify(a - b) <= 0)


def _proved(analyzer: Any, condition: Any) -> bool:
    return _can_prove(analyzer, condition) or _can_prove(analyzer, condition, ProofStrength.SYMBOLIC_BOUND)


def _can_prove(analyzer: Any, condition: Any, strength: ProofStrength = ProofStrength.DEFAULT) -> bool:
    try:
        return bool(analyzer.can_prove(condition, strength))
    except TypeError:  # TVM's simplifier mixes up integers of 32 and 64 bits
        return False


def _atoms(conditions: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Those of the form ``l < r``."""
    for condition in conditions:
        if is_a(condition, tir.And):
            yield from _atoms([condition.a, condition.b])
        elif is_a(condition, tir.LT):
            yield condition.a, condition.b
        elif is_a(condition, tir.GT):
            yield condition.b, condition.a
        elif is_a(condition, tir.LE):
            yield condition.a, condition.b + tirx.IntImm(str(condition.b.ty.dtype), 1)
