"""More than two hundred malformed files: each is refused in one paragraph or handled, none crashes or hangs graphopt.

Each case runs in a process that others share until one ends it; the next case starts a new one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpus import SECRET, write

LIMIT = 20
"""Seconds that a case may take."""
CODES = {0, *range(2, 10)}
"""Documented exit codes: never 1, and never 70, a bug."""

CHILD = """
import contextlib, io, json, sys
sys.argv[0] = "graphopt"
from graphopt.cli import main
for line in sys.stdin:
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        sys.argv[1:] = json.loads(line)
        try:
            code = main() or 0
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, said.getvalue()[-3000:]]), flush=True)
"""


class Runner:
    """Runs command lines of graphopt one after another in one process, and in another where one ends it."""

    def __init__(self, *before: str) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._before = before

    def run(self, *arguments: str) -> tuple[int, str, float]:
        """The exit code (negative: the signal that ended the process), what was printed, and the seconds."""
        if self._process is None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                [*self._before, sys.executable, "-c", CHILD], stdin=pipe, stdout=pipe, text=True
            )
        start = time.perf_counter()
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        seconds = time.perf_counter() - start
        if not answer:
            code, self._process = self._process.wait(), None
            return code, "", seconds
        code, said = json.loads(answer)
        return code, said, seconds

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(tmp_path_factory.mktemp("corpus"))


def swept(corpus: dict[str, Path], *command: str, before: tuple[str, ...] = ()) -> dict[str, tuple[int, str]]:
    runner, found = Runner(*before), {}
    for name, path in corpus.items():
        arguments = [word.format(path=path, folder=path.parent) for word in command]
        code, said, seconds = runner.run(*arguments)
        assert code in CODES, f"{name}: {command[0]} ended with {code}\n{said}"
        assert "Traceback" not in said, f"{name}\n{said}"
        assert seconds < LIMIT, f"{name}: {seconds:.0f} s"
        if code:
            assert said.strip(), f"{name}: refused without a word"
            assert len(said.strip()) < 1500, f"{name}: {said}"
        found[name] = (code, said)
    runner.close()
    return found


def test_every_malformed_file_is_refused_or_handled(corpus: dict[str, Path]):
    assert len(corpus) > 200
    found = swept(corpus, "opt", "{path}", "-O2", "--no-verify", "-o", "{folder}/out.onnx")
    refused = [name for name, (code, _) in found.items() if code]
    assert len(refused) > 150
    for name, path in corpus.items():
        out = path.with_name("out.onnx")
        assert out.exists() == (name not in refused), name
        if out.exists():
            assert SECRET not in out.read_bytes(), name
        assert {p.name for p in path.parent.iterdir()} <= {
            "inner", "link", "hard", "short", "long", "model.onnx", "out.onnx"
        }, name  # fmt: skip


@pytest.mark.parametrize("culprit", ["an output twice", "external weights above the folder", "an unknown operator"])
def test_a_refusal_names_the_culprit(culprit: str, corpus: dict[str, Path]):
    words = {
        "an output twice": "'y'",
        "external weights above the folder": "../secret",
        "an unknown operator": "Convolve",
    }
    (found,) = swept({culprit: corpus[culprit]}, "opt", "{path}", "-o", "{folder}/o.onnx").values()
    assert found[0] == 3
    assert words[culprit] in found[1]


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
def test_nothing_outside_the_models_folder_is_opened(corpus: dict[str, Path], tmp_path: Path):
    """Every file that graphopt and its processes open while they look at models with external data, by the kernel."""
    cases = {name: path for name, path in corpus.items() if name.startswith("external")}
    assert len(cases) > 10
    log = tmp_path / "opened"
    tracer = ("strace", "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", str(log))
    swept(cases, "opt", "{path}", "-O0", "--no-verify", "-o", "{folder}/traced.onnx", before=tracer)
    opened = re.findall(r'open\w*\((?:AT_FDCWD, )?"([^"]*)", (?!.*O_WRONLY)\S.* = \d+$', log.read_text(), re.MULTILINE)
    root = next(iter(cases.values())).parents[1]
    ours = {Path(os.path.realpath(name)) for name in opened if name.startswith(str(root))}
    assert len({path for path in ours if path.name == "model.onnx"}) == len(cases)
    assert root / "secret" not in ours
    assert not [path for path in ours if path.name == "hard"]
    assert not {"/etc/passwd", "/dev/zero"} & {os.path.realpath(name) for name in opened}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["opt", "{path}", "-O3", "-o", "{folder}/out.onnx"],
        ["compile", "{path}", "--no-verify", "-o", "{folder}/out.gopt"],
        ["inspect", "{path}"],
        ["explain", "{path}"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_survives_every_malformed_file(command: list[str], corpus: dict[str, Path]):
    swept(corpus, *command)
