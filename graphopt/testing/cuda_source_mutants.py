"""CUDA C with one fault each: a barrier or a wait gone, a wait too short, an index off by one access.

For `emulate`, whose `edit` takes such a change; `cuda_mutants` has the same faults in the loops before, for the static
checks. An index is off by as much as is accessed there at once: a vector, a copy, the side of a fragment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_KERNELS = 'extern "C" __global__'
_PLACE = re.compile(
    r"(?P<copy>ptx_cp_async\w*?_(?P<bytes>\d+)_(?P<item>\d+)_\d+\((?P<args>\w+_ptr, ))"
    r"|(?P<vector>\((?:float|half|nv_bfloat16|char|uchar|short|int|uint)(?P<width>[248])\*\)\(\w+_ptr \+ )"
    r"|(?P<fragment>&\(\w+_ptr\[)"
    r"|(?P<scalar>\b\w+_ptr\[)"
)
_SOURCE = re.compile(r", (\w+_ptr), ")


def source_mutants(source: str) -> Iterator[tuple[str, str, str]]:
    """Kind, the line as it is now, and the whole source, of each mutant of the kernels in CUDA C."""
    start = source.index(_KERNELS)
    head, code = source[:start], source[start:]
    for kind, begin, end, made in _changes(code):
        line = code[code.rfind("\n", 0, begin) + 1 : begin] + made + code[end:].partition("\n")[0]
        yield kind, line.strip(), head + code[:begin] + made + code[end:]


def _changes(code: str) -> Iterator[tuple[str, int, int, str]]:
    for found in re.finditer(r"__syncthreads\(\);", code):
        yield "barrier", found.start(), found.end(), ";"
    for found in re.finditer(r"\w*wait_group\w*?_(\d+)\(\);", code):
        yield "wait", found.start(), found.end(), ";"
        text = found[0].replace(f"_{found[1]}()", f"_{int(found[1]) + 1}()")
        if text.partition("(")[0] + "(" in code:
            yield "short wait", found.start(), found.end(), text
    for found in _PLACE.finditer(code):
        line = code[code.rfind("\n", 0, found.start()) + 1 : found.start()]
        if "__shared__" in line or "fragment<" in line:
            continue
        if found["copy"]:
            step = int(found["bytes"]) // int(found["item"])
            yield "index", found.end(), found.end(), f"{step} + "
            other = _SOURCE.search(code, found.end())
            if other is not None:
                yield "index", other.end(), other.end(), f"{step} + "
        else:
            step = found["width"] or ("16" if found["fragment"] else "1")
            yield "index", found.end(), found.end(), f"{step} + "
