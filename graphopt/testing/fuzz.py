"""Random graphs through every pass and target, beside onnxruntime; what is found is reduced and kept.

    python -m graphopt.testing.fuzz --graphs 5000                    # -O3 and each pass: an hour or two of one core
    python -m graphopt.testing.fuzz --graphs 500 --ways llvm,int8    # compiled
    python -m graphopt.testing.fuzz --seed 1200 --graphs 3800        # go on: a graph is made from its seed alone
    python -m graphopt.testing.fuzz found/417-llvm.onnx --ways llvm  # a graph that was found, again

Graphs run in processes of their own, so that a crash or a hang is one graph's. A failure is written to the folder
`--found`, as it was drawn and reduced (as `graphopt reduce` does), with the command that shows it again. Exit code: 0
nothing found, 1 something, 130 interrupted (the summary says where to go on).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from graphopt.testing.fuzz_ways import WAYS, judge

Row = dict[str, Any]
DEFAULT = "O3,passes"
SECONDS = 120
"""A graph may take this long, all its ways together."""
REDUCE = 60
"""Seconds that shrinking a failure may take."""
GRAPHS_A_PROCESS = 200
"""TVM keeps memory of each compilation: a fresh process now and then."""


def _serve(connection: Connection, ways: list[str], found: str) -> None:
    """In a process of its own: a seed comes in, its rows go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what native libraries print about models that they refuse
    from graphopt.testing.random_graphs import random_graph

    while True:
        seed: int = connection.recv()
        rows: list[Row] = []
        model = random_graph(seed)
        for way in ways:
            connection.send(("begun", way))
            start = time.perf_counter()
            verdict = judge(model, way, seed)
            row: Row = {"seed": seed, "way": way, "result": _result(verdict.bad, verdict.how)}
            row |= {"nodes": len(model.graph), "seconds": round(time.perf_counter() - start, 3)}
            if verdict.bad is not False:
                row["message"] = verdict.message
            if row["result"] == "wrong":
                connection.send(("reducing", way))
                row |= _keep(model, way, seed, Path(found), REDUCE)
            rows.append(row)
        connection.send(("done", rows))


def _result(bad: bool | None, how: str) -> str:
    if bad is None:
        return "not run by onnxruntime"
    return ("refused" if how == "refused" else "wrong") if bad else "passes"


def _keep(model: Any, way: str, seed: int, folder: Path, seconds: float) -> Row:
    """Write the graph, and reduced; the row's entries that say so."""
    from graphopt.debug import reduce
    from graphopt.errors import GraphoptError
    from graphopt.graph import save

    folder.mkdir(parents=True, exist_ok=True)
    place = save(model, folder / f"{seed}-{way}-whole.onnx")
    try:
        reduced = reduce(model, lambda some: judge(some, way, seed), seconds=seconds)
        place = save(reduced.model, folder / f"{seed}-{way}.onnx")
    except GraphoptError as error:
        return {"file": str(place), "again": _again(place, way, seed), "not_reduced": str(error)}
    return {"file": str(place), "again": _again(place, way, seed), "reduced_to": reduced.nodes}


def _again(place: Path, way: str, seed: int) -> str:
    return f"python -m graphopt.testing.fuzz {place} --ways {way} --seed {seed}"


class _Worker:
    """A process, and the seed that it is at."""

    def __init__(self, ways: list[str], found: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, ways, str(found)), daemon=True)
        self.process.start()
        theirs.close()
        self.seed, self.way, self.until, self.done = -1, ways[0], 0.0, 0

    def begin(self, seed: int) -> None:
        self.seed, self.until = seed, time.monotonic() + SECONDS
        self.connection.send(seed)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def answer(self) -> list[Row] | None:
        """The rows of its seed, one of a crash among them; None while it is at work."""
        if not self.connection.poll():
            return [self._lost("out of time")] if time.monotonic() > self.until else None
        try:
            kind, said = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return [self._lost(f"crashed ({self.process.exitcode})")]
        if kind == "done":
            return said
        self.way = said
        if kind == "reducing":
            self.until = time.monotonic() + SECONDS + REDUCE
        return None

    def _lost(self, what: str) -> Row:
        return {"seed": self.seed, "way": self.way, "result": what, "message": f"{what} at {self.way}"}


def run(seeds: Iterable[int], ways: list[str], found: Path, jobs: int, done: Callable[[int, list[Row]], None]) -> None:
    """Run the graphs of `seeds` in `jobs` processes; `done(seed, rows)` is called after each."""
    waiting: Iterator[int] = iter(seeds)
    at_work: list[_Worker] = []
    try:
        idle: list[_Worker | None] = [None] * jobs
        while True:
            while idle and (seed := next(waiting, None)) is not None:
                worker = idle.pop() or _Worker(ways, found)
                at_work.append(worker)
                worker.begin(seed)
            if not at_work:
                break
            wait([worker.connection for worker in at_work], timeout=1)
            for worker in list(at_work):
                rows = worker.answer()
                if rows is None:
                    continue
                at_work.remove(worker)
                worker.done += 1
                lost = any(row["result"].startswith(("crashed", "out of time")) for row in rows)
                if lost or worker.done >= GRAPHS_A_PROCESS:
                    worker.end()
                    idle.append(None)
                else:
                    idle.append(worker)
                if lost:
                    rows[-1] |= _whole(worker.seed, worker.way, found)
                done(worker.seed, rows)
        for worker in idle:
            if worker is not None:
                worker.end()
    finally:
        for worker in at_work:
            worker.end()


def _whole(seed: int, way: str, folder: Path) -> Row:
    """A graph that ended its process, as it was drawn."""
    from graphopt.graph import save
    from graphopt.testing.random_graphs import random_graph

    folder.mkdir(parents=True, exist_ok=True)
    place = save(random_graph(seed), folder / f"{seed}-{way}-whole.onnx")
    check = _again(Path("{model}"), way, seed)
    command = f"graphopt reduce {place} -o {folder}/{seed}-{way}.onnx --check '{check}'"
    return {"file": str(place), "again": _again(place, way, seed), "reduce": command}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m graphopt.testing.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, help="an ONNX file, instead of random graphs")
    parser.add_argument("--graphs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first graph; the others follow it")
    parser.add_argument("--ways", default=DEFAULT, help=f"some of {', '.join(WAYS)}; default {DEFAULT}")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--found", type=Path, default=Path("found"), help="folder for what fails")
    parser.add_argument("--json", action="store_true", help="one document on standard output")
    asked = parser.parse_args()
    ways: list[str] = asked.ways.split(",")
    if unknown := [way for way in ways if way not in WAYS]:
        parser.error(f"there is no way {unknown[0]!r}; the ways are {', '.join(WAYS)}.")
    if asked.model is not None:
        return _one(asked.model, ways, asked.seed)
    return _many(range(asked.seed, asked.seed + asked.graphs), ways, asked.found, asked.jobs, asked.json)


def _one(path: Path, ways: list[str], seed: int) -> int:
    from graphopt.errors import GraphoptError
    from graphopt.graph import load

    try:
        model = load(path)
    except GraphoptError as error:
        print(f"graphopt: error: {error}", file=sys.stderr)
        return error.exit_code
    verdicts = {way: judge(model, way, seed) for way in ways}
    for way, verdict in verdicts.items():
        print(f"{way}: {_result(verdict.bad, verdict.how)} {verdict.message}".strip())
    return int(any(_result(v.bad, v.how) == "wrong" for v in verdicts.values()))


def _many(seeds: range, ways: list[str], found: Path, jobs: int, as_json: bool) -> int:
    from graphopt.progress import meter

    counts = {way: Counter[str]() for way in ways}
    failures: list[Row] = []
    left = dict.fromkeys(seeds)
    start, stopped = time.monotonic(), False
    with meter("graphs", len(seeds)) as show:

        def done(seed: int, rows: list[Row]) -> None:
            del left[seed]
            for row in rows:
                counts[row["way"]][row["result"]] += 1
                if row["result"] not in ("passes", "refused", "not run by onnxruntime"):
                    failures.append(row)
                    print(f"{row['result']}: {row['message']}\n  {row['again']}", file=sys.stderr, flush=True)
            show(1, f"{len(failures)} found")

        try:
            run(seeds, ways, found, jobs, done)
        except KeyboardInterrupt:
            stopped = True
    seconds = time.monotonic() - start
    summary: Row = {
        "first_seed": seeds.start, "graphs": len(seeds) - len(left), "seconds": round(seconds, 1),
        "graphs_per_hour": round((len(seeds) - len(left)) / seconds * 3600), "jobs": jobs,
        "ways": {way: dict(counts[way]) for way in ways}, "found": failures,
        "go_on": f"--seed {min(left)} --graphs {max(left) - min(left) + 1}" if left else None,
    }  # fmt: skip
    if as_json:
        print(json.dumps(summary, indent=1))
    else:
        print(f"{summary['graphs']} graphs from seed {seeds.start} in {seconds:.0f} s")
        for way in ways:
            print(f"  {way}: " + ", ".join(f"{n} {what}" for what, n in counts[way].most_common()))
        if left:
            print(f"stopped; go on with {summary['go_on']}")
    return 130 if stopped else int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
