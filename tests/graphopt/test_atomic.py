from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from graphopt.atomic import atomic_write
from graphopt.errors import UsageError


def test_the_file_appears_whole(tmp_path):
    place = tmp_path / "a.npz"
    with atomic_write(place) as scratch:
        np.savez(scratch, x=np.ones(3))
        assert not place.exists()
    assert np.load(place)["x"].sum() == 3
    assert os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_was_there_stays_when_the_block_fails(tmp_path, error):
    place = tmp_path / "a.txt"
    place.write_text("old")

    def fail():
        with atomic_write(place) as scratch:
            scratch.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert place.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_ctrl_c_leaves_nothing(tmp_path):
    code = f"""
import time
from graphopt.atomic import atomic_write
with atomic_write({str(tmp_path / "a.bin")!r}) as scratch:
    scratch.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert process.wait(timeout=30) != 0
    assert time.monotonic() - started < 20
    assert os.listdir(tmp_path) == []


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    with atomic_write(tmp_path / "link.txt") as scratch:
        scratch.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_places_that_can_not_be_written(tmp_path):
    for place, said in (
        (tmp_path, "not a regular file"),
        (tmp_path / "no" / "a", "no folder"),
        (Path("/dev/null"), "regular"),
    ):
        with pytest.raises(UsageError, match=said), atomic_write(place) as scratch:
            scratch.write_text("x")


def test_another_files_error_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a") as _:
        (tmp_path / "missing").read_text()
