"""How results look: JSON for machines, tables for people."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer


def print_json(data: Any) -> None:
    """One JSON document on stdout; numpy numbers become plain ones."""
    typer.echo(json.dumps(data, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    return str(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """A table on stdout: the first column to the left, the others to the right."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=title and escape(title), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), show_edge=False
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
    console.print()


def print_entries(entries: Iterable[tuple[str, str, Sequence[str]]]) -> None:
    """Per entry: its name and a word on it, then paragraphs, indented and wrapped to the terminal."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    for name, aside, paragraphs in entries:
        typer.echo(f"{typer.style(name, bold=True)}  {aside}".rstrip())
        for text in filter(None, paragraphs):
            for line in textwrap.wrap(text, width - 4, break_on_hyphens=False):
                typer.echo(f"    {line}")


def options_line(options: Mapping[str, Mapping[str, Any]]) -> str:
    """Options with their defaults, as `describe` gives them, in the grammar that ``-p`` and ``--target`` read."""
    from graphopt.pipeline.spec import format_item

    shown = [
        format_item("", {name: option["default"]})[1:-1] if option.get("default") is not None else name
        for name, option in options.items()
    ]
    return f"options: {', '.join(shown)}" if shown else ""


def count(number: float) -> str:
    """1234567 as ``1.23M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def size(nbytes: float) -> str:
    """Bytes as ``1.2 MB`` (powers of 1000)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.3g} {unit}"
    return f"{nbytes:.0f} B"
