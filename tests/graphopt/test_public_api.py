"""The stability promise of docs/writing-passes.md: what was pinned is still there, with the same signature.

Additions are free (of parameters and fields: those with a default); pin them with ``--update-golden``.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from graphopt.testing import assert_golden

GOLDEN = Path(__file__).parents[1] / "golden" / "public_api.txt"
MODULES = ("graphopt", "graphopt.graph", "graphopt.testing")
MORE = ("graphopt.base:Change", "graphopt.base:Skip")  # what the fields of a Report hold


def describe(name: str, thing: object) -> Iterator[str]:
    """A line for the thing, and one for each of its parameters, fields and public methods."""
    if not callable(thing):
        yield f"{name}: {type(thing).__name__}"
    elif not isinstance(thing, type):
        yield from signature(name, thing)
    else:
        yield name
        if dataclasses.is_dataclass(thing):
            yield from (f"{name}({f.name}: {f.type}{default(f)})" for f in dataclasses.fields(thing))
        else:
            yield from (f"{name}.{key}" for key in inspect.get_annotations(thing) if not key.startswith("_"))
        for key, member in sorted(vars(thing).items()):
            if key.startswith("_"):
                continue
            if inspect.isfunction(member) or isinstance(member, (classmethod, staticmethod)):
                yield from signature(f"{name}.{key}", getattr(thing, key))
            elif isinstance(member, property):
                yield f"{name}.{key}"


def signature(name: str, function: Callable[..., object]) -> Iterator[str]:
    """A line for the result, and one for each parameter: positional ones with their place."""
    found = inspect.signature(function)
    yield f"{name}() -> {found.return_annotation}"
    for place, parameter in enumerate(found.parameters.values()):
        where = "" if parameter.kind is parameter.KEYWORD_ONLY else f"{place}: "
        yield f"{name}({where}{parameter})"


def default(field: dataclasses.Field) -> str:
    return "" if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING else " = ..."


def public() -> list[str]:
    lines: list[str] = []
    for module in MODULES:
        loaded = importlib.import_module(module)
        for name in sorted(loaded.__all__):
            lines.extend(describe(f"{module}.{name}", getattr(loaded, name)))
    for path in MORE:
        module, _, name = path.partition(":")
        lines.extend(describe(f"{module}.{name}", getattr(importlib.import_module(module), name)))
    return lines


def test_what_was_promised_is_kept(update_golden: bool):
    now = public()
    if update_golden:
        assert_golden("\n".join(now) + "\n", GOLDEN, update=True)
    pinned = GOLDEN.read_text(encoding="utf-8").splitlines()
    assert len(pinned) > 100
    broken = [line for line in pinned if line not in now]
    known = {line.partition("(")[0] for line in pinned}
    added = [line for line in now if line not in pinned and "(" in line and line.partition("(")[0] in known]
    broken += [f"{line}, which has no default" for line in added if " = " not in line and "() ->" not in line]
    assert not broken, f"the public API is promised: see docs/writing-passes.md. No longer so: {broken}"


def test_signatures_hold_no_addresses_and_no_paths():
    assert not [line for line in GOLDEN.read_text().splitlines() if " at 0x" in line or "/" in line]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_thing_says_what_it_is(module: str):
    loaded = importlib.import_module(module)
    bare = [n for n in loaded.__all__ if callable(getattr(loaded, n)) and not inspect.getdoc(getattr(loaded, n))]
    assert not bare
