"""Progress bars for long work: on stderr, only when it is a terminal, gone when done."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` while a bar shows `description`; `total` when `items` has no length of its own."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description=description, total=total, console=Console(stderr=True), transient=True)


@contextlib.contextmanager
def status(description: str) -> Generator[Callable[[str], None], None, None]:
    """A line with a spinner, where there is no telling how long it takes; yields what changes its text."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(description)) as line:
        yield lambda text: line.update(escape(text))


@contextlib.contextmanager
def meter(description: str, total: int) -> Generator[Callable[[int, str], None], None, None]:
    """A bar for work that tells how it goes; yields what advances it by so many steps and changes its text."""
    if not sys.stderr.isatty():
        yield lambda steps, text: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(description, total=total, text="")
        yield lambda steps, text: bars.update(bar, advance=steps, text=escape(text))
