"""Names of nodes are whatever a file says: on a terminal they must not move the cursor or end a line."""

from __future__ import annotations


def printable(line: str) -> str:
    """`line` with characters that are not printable, line ends included, spelled as in Python: ``\\x1b``."""
    return line if line.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
