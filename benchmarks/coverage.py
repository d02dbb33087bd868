"""How much of ONNX's backend suite compiles and is right: graphopt alone, and with onnxruntime for the rest.

    python benchmarks/coverage.py                           # all cases anew: about half an hour on two cores
    python benchmarks/coverage.py --resume                  # only those that the results file lacks
    python benchmarks/coverage.py --only 'test_lstm*'       # some, against the results file, which is left alone
    python benchmarks/coverage.py --check 'test_lstm*'      # the same, and fail where a case is worse than in the file

Every case of the suites node, simple, pytorch-converted and pytorch-operator of the installed onnx package goes
through `graphopt.compile(model, "llvm")`, the artifact is run, and its outputs are compared with the suite's. A case
passes, is refused (a `GraphoptError`), wrong (it ran, and something differs), failed (any other error), crashed (the
process died) or out of time. The same for onnxruntime, its limits on IR version and opset lifted.

Results go to benchmarks/results/coverage.json, the table by operator into docs/coverage.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import coverage_table

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "coverage.json"
WORKER = Path(__file__).with_name("one_case.py")
SECONDS = 300
WAYS = ("onnxruntime", "alone", "given", "fallback")
CASES_A_PROCESS = 200
"""TVM keeps memory of each compilation: a fresh process now and then."""


class Worker:
    """A process that runs cases, started anew when it dies or hangs."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.done = 0

    def run(self, name: str) -> Row:
        """The row of the case `name`."""
        if self.process is None or self.process.poll() is not None or self.done >= CASES_A_PROCESS:
            self.stop()
            self.process = subprocess.Popen(
                [sys.executable, str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self.done = 0
        self.done += 1
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        late = threading.Timer(SECONDS, self.process.kill)
        late.start()
        try:
            self.process.stdin.write(name + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        hung = late.finished.is_set()
        late.cancel()
        if line:
            return json.loads(line)
        what = ["out of time", f"after {SECONDS} s"] if hung else ["crashed", f"status {self.process.wait()}"]
        return {"name": name, "suite": "", "ops": [], **dict.fromkeys(WAYS, what)}

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def run(names: Sequence[str], jobs: int, done: Any) -> None:
    """Run the cases in `jobs` processes; `done(row)` is called with each row, by one thread at a time."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)
    lock = threading.Lock()

    def work() -> None:
        worker = Worker()
        try:
            while True:
                row = worker.run(waiting.get_nowait())
                with lock:
                    done(row)
        except queue.Empty:
            worker.stop()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def chosen(patterns: str, names: Iterable[str]) -> list[str]:
    """The names that match one of the comma-separated patterns."""
    return [name for name in names if any(fnmatch.fnmatch(name, p) for p in patterns.split(","))]


def worse(row: Row, before: Row) -> list[str]:
    """What passed in `before` and does not in `row`, and whatever is wrong now."""
    return [
        f"{row['name']}, {way}: {row[way][0]} ({row[way][1]}), was {before[way][0]}"
        for way in ("alone", "given", "fallback")
        if row[way][0] != before[way][0] and (before[way][0] == "passes" or row[way][0] != "passes")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", action="store_true", help="keep the rows of the results file")
    parser.add_argument("--only", help="patterns of case names; nothing is written but the rows on standard output")
    parser.add_argument("--check", help="as --only, and fail where the results file has better")
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    known: dict[str, Row] = coverage_table.read(RESULTS) if RESULTS.exists() else {}
    patterns = asked.only or asked.check
    from onnx_cases import load

    names = chosen(patterns, load()) if patterns else [n for n in load() if not (asked.resume and n in known)]
    rows: dict[str, Row] = {} if patterns or not asked.resume else dict(known)

    def done(row: Row) -> None:
        rows[row["name"]] = row
        if patterns:
            print(json.dumps(row), flush=True)
        elif len(rows) % 50 == 0:
            coverage_table.write(RESULTS, rows)
            print(f"{len(rows)} cases", file=sys.stderr)

    run(names, asked.jobs, done)
    if not patterns:
        coverage_table.write(RESULTS, rows)
        coverage_table.publish(rows)
    if asked.check:
        found = [line for name, row in rows.items() if name in known for line in worse(row, known[name])]
        sys.exit("\n".join(found) if found else 0)


if __name__ == "__main__":
    main()
