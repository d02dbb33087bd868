"""Random graphs through every pass and target, beside onnxruntime; what is found is reduced and kept.

    python -m graphopt.testing.fuzz --graphs 5000                    # -O3 and each pass: an hour or two of one core
    python -m graphopt.testing.fuzz --graphs 500 --ways llvm,int8    # compiled
    python -m graphopt.testing.fuzz --seed 1200 --graphs 3800        # go on: a graph is made from its seed alone
    python -m graphopt.testing.fuzz --models FOLDER --ways O3,llvm   # the .onnx files of a folder, not random graphs
    python -m graphopt.testing.fuzz found/417-llvm.onnx --ways llvm  # a graph that was found, again

Graphs run in processes of their own, so that a crash or a hang is one graph's. A failure is written to the folder
`--found`, as it was drawn and reduced (as `graphopt reduce` does), with the command that shows it again. Exit code: 0
nothing found, 1 something, 130 interrupted (the summary says where to go on).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from pathlib import Path

from graphopt.testing.fuzz_one import REDUCE, Item, Row, named, result, serve, whole
from graphopt.testing.fuzz_ways import WAYS, judge

DEFAULT = "O3,passes"
SECONDS = 120
"""A graph may take this long, all its ways together."""
GRAPHS_A_PROCESS = 200
"""TVM keeps memory of each compilation: a fresh process now and then."""


class _Worker:
    """A process, and the seed or model that it is at."""

    def __init__(self, ways: list[str], found: Path, steps: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, ways, str(found), steps), daemon=True)
        self.process.start()
        theirs.close()
        self.item: Item = -1
        self.way, self.until, self.done = ways[0], 0.0, 0

    def begin(self, item: Item) -> None:
        self.item, self.until = item, time.monotonic() + SECONDS
        self.connection.send(item)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def answer(self) -> list[Row] | None:
        """The rows of its item, one of a crash among them; None while it is at work."""
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
        return named(self.item) | {"way": self.way, "result": what, "message": f"{what} at {self.way}"}


def run(
    items: Iterable[Item], ways: list[str], found: Path, jobs: int, steps: int, done: Callable[[Item, list[Row]], None]
) -> None:
    """Run the graphs of `items` in `jobs` processes; `done(item, rows)` is called after each."""
    waiting: Iterator[Item] = iter(items)
    at_work: list[_Worker] = []
    try:
        idle: list[_Worker | None] = [None] * jobs
        while True:
            while idle and (item := next(waiting, None)) is not None:
                worker = idle.pop() or _Worker(ways, found, steps)
                at_work.append(worker)
                worker.begin(item)
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
                    rows[-1] |= whole(worker.item, worker.way, found, steps)
                done(worker.item, rows)
        for worker in idle:
            if worker is not None:
                worker.end()
    finally:
        for worker in at_work:
            worker.end()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m graphopt.testing.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, help="an ONNX file, instead of random graphs")
    parser.add_argument("--graphs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first graph; the others follow it")
    parser.add_argument("--ways", default=DEFAULT, help=f"some of {', '.join(WAYS)}; default {DEFAULT}")
    parser.add_argument("--models", type=Path, help="a folder: its .onnx files instead of random graphs")
    parser.add_argument("--steps", type=int, default=40, help="of a random graph, at most; one is 1 to 12 nodes")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--found", type=Path, default=Path("found"), help="folder for what fails")
    parser.add_argument("--json", action="store_true", help="one document on standard output")
    asked = parser.parse_args()
    ways: list[str] = asked.ways.split(",")
    if unknown := [way for way in ways if way not in WAYS]:
        parser.error(f"there is no way {unknown[0]!r}; the ways are {', '.join(WAYS)}.")
    if asked.model is not None:
        return _one(asked.model, ways, asked.seed)
    items: list[Item] = [*range(asked.seed, asked.seed + asked.graphs)]
    if asked.models is not None:
        items = sorted(map(str, asked.models.glob("*.onnx")))
        if not items:
            parser.error(f"there are no .onnx files in {asked.models}.")
    return _many(items, ways, asked)


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
        print(f"{way}: {result(verdict.bad, verdict.how)} {verdict.message}".strip())
    return int(any(result(v.bad, v.how) == "wrong" for v in verdicts.values()))


def _many(items: list[Item], ways: list[str], asked: argparse.Namespace) -> int:
    from graphopt.progress import meter

    counts = {way: Counter[str]() for way in ways}
    failures: list[Row] = []
    left = dict.fromkeys(items)
    start, stopped = time.monotonic(), False
    with meter("graphs", len(items)) as show:

        def done(item: Item, rows: list[Row]) -> None:
            del left[item]
            for row in rows:
                counts[row["way"]][row["result"]] += 1
                if row["result"] not in ("passes", "refused", "not run by onnxruntime"):
                    failures.append(row)
                    print(f"{row['result']}: {row['message']}\n  {row['again']}", file=sys.stderr, flush=True)
            show(1, f"{len(failures)} found")

        try:
            run(items, ways, asked.found, asked.jobs, asked.steps, done)
        except KeyboardInterrupt:
            stopped = True
    seconds = time.monotonic() - start
    count, first = len(items) - len(left), items[0]
    seeds = [item for item in left if isinstance(item, int)]
    summary: Row = {
        "first_seed": first if isinstance(first, int) else None, "graphs": count, "seconds": round(seconds, 1),
        "graphs_per_hour": round(count / seconds * 3600), "jobs": asked.jobs, "steps": asked.steps,
        "ways": {way: dict(counts[way]) for way in ways}, "found": failures,
        "go_on": f"--seed {min(seeds)} --graphs {max(seeds) - min(seeds) + 1}" if seeds else None,
    }  # fmt: skip
    if asked.json:
        print(json.dumps(summary, indent=1))
    else:
        print(f"{count} graphs from {f'seed {first}' if isinstance(first, int) else asked.models} in {seconds:.0f} s")
        for way in ways:
            print(f"  {way}: " + ", ".join(f"{n} {what}" for what, n in counts[way].most_common()))
        if seeds:
            print(f"stopped; go on with {summary['go_on']}")
    return 130 if stopped else int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
