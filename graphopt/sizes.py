"""Which sizes an open dimension may have: ``1:64``, ``16:512:16``, ``1,8,*``.

A list of sizes, each of which gets a program of its own, and a range for all others: ``LOW:HIGH``, with both ends, or
``LOW:HIGH:MULTIPLE``; either end may be left out. ``*`` is any size. A size alone (``8``) is no open dimension.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from graphopt.errors import UsageError

GRAMMAR = (
    "it takes a size (8), a range (1:64), multiples in a range (16:512:16), any size (*), "
    "or sizes with programs of their own and one of these for the rest (1,8,* or 1,8,1:64)"
)
LARGEST = 1 << 31
_SIZE = re.compile(r"\d{1,10}")
_RANGE = re.compile(r"(\d{0,10}):(\d{0,10})(?::(\d{1,10}))?")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Those `listed`, and where `rest` the multiples of `multiple` from `low` to `high` (None: without end)."""

    listed: tuple[int, ...] = ()
    rest: bool = True
    low: int = 0
    high: int | None = None
    multiple: int = 1

    def allows(self, size: int) -> bool:
        """Whether a dimension may have this size."""
        return size in self.listed or (
            self.rest and self.low <= size <= (LARGEST if self.high is None else self.high) and not size % self.multiple
        )

    def first(self, wanted: int) -> int:
        """`wanted` where it is allowed, else one that is: the first of the range, or the first one listed."""
        if self.allows(wanted):
            return wanted
        return max(-(-self.low // self.multiple), 1) * self.multiple if self.rest else self.listed[0]

    def described(self) -> str:
        """For messages: ``1, 8 or a multiple of 16 from 16 to 512``."""
        said = [str(size) for size in self.listed]
        if self.rest:
            what = f"a multiple of {self.multiple}" if self.multiple > 1 else ""
            span = f"from {self.low} to {self.high}" if self.high is not None else f"{self.low} or more"
            said.append(f"{what} {span if self.high is not None or not what else f'from {self.low} on'}".strip())
        return " or ".join(filter(None, (", ".join(said[:-1]), said[-1])))

    def __str__(self) -> str:
        """The text that `parse` reads."""
        said = [str(size) for size in self.listed]
        if self.rest and (self.low, self.high, self.multiple) == (0, None, 1):
            said.append("*")
        elif self.rest:
            ends = f"{self.low}:{'' if self.high is None else self.high}"
            said.append(ends if self.multiple == 1 else f"{ends}:{self.multiple}")
        return ",".join(said)


Given = int | str | tuple[int, int] | tuple[int, int, int] | Sequence["int | str | tuple[int, ...]"] | Sizes
"""What Python callers may say: a size, a range as a tuple, a list of both, or text."""


def parse(name: str, given: object) -> int | Sizes:
    """What is said of the dimension `name`: its size, or which sizes it may have.

    Raises:
        UsageError: it is none of what `GRAMMAR` says, or no size fits.
    """
    if isinstance(given, Sizes):
        return given
    items = _items(given)
    if items is None or not items:
        raise UsageError(f"dimension {name!r} can't be {given!r}: {GRAMMAR}.")
    sizes = [int(item) for item in items if _SIZE.fullmatch(item)]
    others = [item for item in items if not _SIZE.fullmatch(item)]
    if any(not 1 <= size < LARGEST for size in sizes):
        raise UsageError(f"dimension {name!r} can't be {given!r}: sizes start at 1.")
    if len(sizes) == 1 and not others:
        return sizes[0]
    listed = tuple(dict.fromkeys(sizes))
    if not others:
        return Sizes(listed, rest=False)
    ranged = None if others == ["*"] else _RANGE.fullmatch(others[0])
    if len(others) > 1 or (ranged is None and others != ["*"]):
        raise UsageError(f"dimension {name!r} can't be {given!r}: {GRAMMAR}.")
    if ranged is None:
        return Sizes(listed)
    low, high, multiple = ranged.groups()
    found = Sizes(listed, True, int(low or 1), int(high) if high else None, int(multiple or 1))
    if found.multiple == 0 or not found.allows(found.first(0)):
        raise UsageError(f"dimension {name!r} can't be {given!r}: no size is in that range.")
    return found


def _items(given: object) -> list[str] | None:
    """`given` as the parts of its text; None for what can't be meant."""
    if isinstance(given, str):
        return [part.strip() for part in given.split(",")]
    if isinstance(given, tuple):
        return [":".join(map(str, given))] if 2 <= len(given) <= 3 else None  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(given, list):
        parts = [_items(part) for part in given]  # pyright: ignore[reportUnknownVariableType]
        return None if any(part is None for part in parts) else [text for part in parts for text in part or ()]
    return None if isinstance(given, bool) or not hasattr(given, "__index__") else [str(given)]
