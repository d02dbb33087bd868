"""`graphopt new-pass`: what it writes passes the checks it comes with."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import graphopt as package
from graphopt.errors import UsageError
from graphopt.pipeline import registry
from graphopt.scaffold import new_pass

ROOT = Path(package.__file__).parents[1]


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder / "src")])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def _no_plugins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_plugins", {})


@pytest.fixture
def folder(tmp_path: Path, graphopt) -> Path:
    done = graphopt("new-pass", "merge-relus", "-o", tmp_path / "mine")
    assert done.code == 0, done.err
    return tmp_path / "mine"


def test_it_passes_ruff_and_its_own_tests(folder: Path):
    run(folder, sys.executable, "-m", "ruff", "check", ".")
    run(folder, sys.executable, "-m", "ruff", "format", "--check", ".")
    assert "5 passed" in run(folder, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def test_it_passes_pyright(folder: Path):
    run(folder, sys.executable, "-m", "pyright", "--pythonpath", sys.executable)


def test_its_entry_point_leads_to_the_pass(folder: Path):
    entries = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]["graphopt.passes"]
    module, _, name = entries["merge-relus"].partition(":")
    code = f"import {module}; print({module}.{name}().name)"
    assert run(folder, sys.executable, "-c", code).strip() == "merge-relus"


def test_it_runs_as_a_plugin(folder: Path, graphopt, model: Path):
    plugin = folder / "src" / "merge_relus" / "rewrite.py"
    done = graphopt("opt", model, "--plugin", plugin, "-p", "merge-relus", "-o", folder / "out.onnx", "--json")
    assert done.code == 0, done.err
    assert done.json["passes"][0]["pass"] == "merge-relus"


@pytest.mark.parametrize("name", ["Merge-Relus", "merge_relus", "-x", "", "a--b", "../evil"])
def test_names_that_are_none(name: str, tmp_path: Path):
    with pytest.raises(UsageError, match="kebab-case"):
        new_pass(name, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_names_and_folders_that_are_taken(folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="a pass 'fold-batch-norm' already"):
        new_pass("fold-batch-norm", tmp_path / "p")
    with pytest.raises(UsageError, match="not an empty folder"):
        new_pass("merge-relus", folder)
    with pytest.raises(UsageError, match="keyword"):
        new_pass("class", tmp_path / "p")


def test_the_next_step_can_be_pasted(tmp_path: Path, graphopt):
    done = graphopt("new-pass", "merge-relus", "-o", tmp_path / "my passes")
    assert f"next: cd '{tmp_path / 'my passes'}' && pip install" in done.out
