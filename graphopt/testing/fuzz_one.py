"""One graph of the fuzzer, in the process that judges it: drawn or read, put through its ways, kept when it fails."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.testing.fuzz_ways import judge

if TYPE_CHECKING:
    import onnx_ir as ir

Row = dict[str, Any]
Item = int | str
"""A seed, or the path of a model."""
REDUCE = 60
"""Seconds that shrinking a failure may take."""


def serve(connection: Connection, ways: list[str], found: str, steps: int) -> None:
    """In a process of its own: an item comes in, its rows go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what native libraries print about models that they refuse
    from graphopt.errors import GraphoptError

    while True:
        item: Item = connection.recv()
        try:
            model = _drawn(item, steps)
        except GraphoptError as error:
            unread = named(item) | {"result": "not read", "message": str(error)}
            rows = [unread | {"way": way, "again": again(Path(str(item)), way, 0)} for way in ways]
        else:
            rows = [_row(connection, model, way, item, Path(found)) for way in ways]
        connection.send(("done", rows))


def _drawn(item: Item, steps: int) -> ir.Model:
    """The random graph of a seed, or the model at a path."""
    from graphopt.graph import load
    from graphopt.testing.random_graphs import random_graph

    return random_graph(item, steps) if isinstance(item, int) else load(item)


def _row(connection: Connection, model: ir.Model, way: str, item: Item, found: Path) -> Row:
    connection.send(("begun", way))
    start = time.perf_counter()
    verdict = judge(model, way, seed_of(item))
    row = named(item) | {"way": way, "result": result(verdict.bad, verdict.how)}
    row |= {"nodes": len(model.graph), "seconds": round(time.perf_counter() - start, 3)}
    if verdict.bad is not False:
        row["message"] = verdict.message
    if row["result"] == "wrong":
        connection.send(("reducing", way))
        row |= _keep(model, way, item, found, REDUCE)
    return row


def result(bad: bool | None, how: str) -> str:
    """What a verdict is counted as."""
    if bad is None:
        return "not run by onnxruntime"
    return ("refused" if how == "refused" else "wrong") if bad else "passes"


def seed_of(item: Item) -> int:
    """Of the random inputs."""
    return item if isinstance(item, int) else 0


def named(item: Item) -> Row:
    """The row's entries that say which graph it is about."""
    return {"seed": item} if isinstance(item, int) else {"model": item, "seed": 0}


def label(item: Item) -> str:
    """What files about `item` are called by."""
    return str(item) if isinstance(item, int) else Path(item).stem


def _keep(model: ir.Model, way: str, item: Item, folder: Path, seconds: float) -> Row:
    """Write the graph, and reduced; the row's entries that say so."""
    from graphopt.debug import reduce
    from graphopt.errors import GraphoptError
    from graphopt.graph import save

    seed, name = seed_of(item), label(item)
    folder.mkdir(parents=True, exist_ok=True)
    place = save(model, folder / f"{name}-{way}-whole.onnx")
    try:
        reduced = reduce(model, lambda some: judge(some, way, seed), seconds=seconds)
        place = save(reduced.model, folder / f"{name}-{way}.onnx")
    except GraphoptError as error:
        return {"file": str(place), "again": again(place, way, seed), "not_reduced": str(error)}
    return {"file": str(place), "again": again(place, way, seed), "reduced_to": reduced.nodes}


def again(place: Path, way: str, seed: int) -> str:
    """The command that judges a file again."""
    return f"python -m graphopt.testing.fuzz {place} --ways {way} --seed {seed}"


def whole(item: Item, way: str, folder: Path, steps: int) -> Row:
    """A graph that ended its process, as it was drawn."""
    from graphopt.graph import save
    from graphopt.testing.random_graphs import random_graph

    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(item, int):
        place = save(random_graph(item, steps), folder / f"{item}-{way}-whole.onnx")
    else:
        place = Path(item)
    seed, check = seed_of(item), again(Path("{model}"), way, seed_of(item))
    command = f"graphopt reduce {place} -o {folder}/{label(item)}-{way}.onnx --check '{check}'"
    return {"file": str(place), "again": again(place, way, seed), "reduce": command}
