"""Compiling twice, in two processes, gives the same bytes: open sizes, listed sizes, parts on onnxruntime, targets."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "compile_many.py"


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders of the same artifacts, made by processes in which sets, and addresses, are in other orders."""
    folders = [tmp_path_factory.mktemp(f"process{k}") for k in range(2)]
    at_once = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(k + 1)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for k, folder in enumerate(folders)
    ]
    for process in at_once:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return folders


@pytest.mark.parametrize("way", ["open", "listed", "int8", "parts", "listed-parts", "cuda", "npu-parts"])
def test_two_processes_give_the_same_bytes(way: str, twice: list[Path]):
    first, second = (folder / f"{way}.gopt" for folder in twice)
    with zipfile.ZipFile(first) as made:
        members = made.namelist()
    assert any(name.startswith("parts/") for name in members) == ("parts" in way), members
    assert first.read_bytes() == second.read_bytes()
