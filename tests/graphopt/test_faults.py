"""Faults from outside: a killed process, a full disk, a read-only folder, two writers, a damaged cache."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt.artifact import load

DIGITS = Path(__file__).parents[2] / "models" / "digits.onnx"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*words: str, limit: int | None = None, **more) -> subprocess.Popen[str]:
    """graphopt in a process, whose files may not grow beyond `limit` bytes: what a full disk looks like to it."""
    start = [sys.executable, "-m", "graphopt"]
    if limit is not None:
        code = (
            "import resource, signal\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            "import sys; sys.argv[0] = 'graphopt'\n"
            "from graphopt.cli import main; main()\n"
        )
        start = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    return subprocess.Popen([*start, *words], stdout=pipe, stderr=pipe, text=True, **{"env": ENVIRONMENT, **more})


def one_paragraph(said: str) -> bool:
    return said.startswith("graphopt: error: ") and said.count("\n") == 1 and "Traceback" not in said


@pytest.mark.parametrize(
    ("verb", "suffix", "room"), [("opt", ".onnx", 5_000), ("compile", ".gopt", 0), ("compile", ".gopt", 1 << 20)]
)
def test_a_full_disk_leaves_what_was_there(verb: str, suffix: str, room: int, tmp_path: Path):
    place = tmp_path / f"o{suffix}"
    place.write_bytes(b"what was there")
    process = command(verb, str(DIGITS), "-O1", "--no-verify", "-o", str(place), limit=room)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 9, err
    assert one_paragraph(err), err
    assert "File too large" in err or "temporary" in err, err
    assert place.read_bytes() == b"what was there"
    assert [p.name for p in tmp_path.iterdir()] == [place.name]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"PATH": "/nowhere"}, r"No linker for .* was found: install g\+\+ or clang"),
        ({"CXX": "/nowhere/g++"}, "/nowhere/g.. could not link the compiled model"),
        ({"CXX": "/bin/false"}, "/bin/false could not link the compiled model"),
    ],
)
@pytest.mark.parametrize("target", ["llvm", pytest.param("cuda{compiler=source}", marks=pytest.mark.slow)])
def test_what_the_machine_lacks_is_told_and_not_left_to_onnxruntime(
    environment: dict[str, str], said: str, target: str, tmp_path: Path
):
    """Nothing of the model is at fault: no part of it goes elsewhere, and the exit code is one of its own."""
    place = tmp_path / "o.gopt"
    words = ["compile", str(DIGITS), "-O0", "--target", target, "-o", str(place)]
    bare = {key: value for key, value in ENVIRONMENT.items() if key not in ("CXX", "CC")}
    process = command(*words, env={**bare, **environment})
    _, err = process.communicate(timeout=120)
    assert (process.returncode, one_paragraph(err)) == (9, True), err
    assert re.search(said, err) or (target != "llvm" and "link" in err), err
    assert not place.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("verb", ["opt", "compile"])
def test_a_read_only_folder_is_told_before_the_work(verb: str, tmp_path: Path):
    tmp_path.chmod(0o500)
    try:
        start = time.monotonic()
        process = command(verb, str(DIGITS), "-o", str(tmp_path / ("o.onnx" if verb == "opt" else "o.gopt")))
        _, err = process.communicate(timeout=60)
        assert (process.returncode, one_paragraph(err)) == (2, True), err
        assert "read-only" in err
        assert time.monotonic() - start < 30
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.slow
def test_a_killed_process_leaves_the_old_file_and_the_next_one_is_not_disturbed(tmp_path: Path):
    place = tmp_path / "o.gopt"
    place.write_bytes(b"what was there")
    process = command("compile", str(DIGITS), "-O1", "-o", str(place), start_new_session=True)
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert place.read_bytes() == b"what was there" or load(place).inputs
    process = command("compile", str(DIGITS), "-O1", "-o", str(place))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert load(place).inputs


def test_killed_while_it_writes_the_scratch_file_is_all_that_is_left(tmp_path: Path):
    """At the worst moment: all is written and nothing renamed."""
    place = tmp_path / "o.onnx"
    place.write_bytes(b"what was there")
    code = (
        "import os, signal\n"
        "import graphopt.atomic as atomic\n"
        "atomic._sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "import graphopt; from graphopt.graph import save\n"
        f"save(graphopt.optimize({str(DIGITS)!r}), {str(place)!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert place.read_bytes() == b"what was there"
    left = {p.name for p in tmp_path.iterdir()} - {place.name}
    assert all(name.startswith(".o.") and name.endswith(".onnx") for name in left)


@pytest.mark.parametrize("names", ["ab", pytest.param("abb", marks=pytest.mark.slow)])
def test_compilers_at_once_give_the_same_bytes_and_leave_whole_files(names: str, tmp_path: Path):
    """In processes of their own; where two write one place, one of their files is there whole."""
    places = [tmp_path / f"{name}.gopt" for name in names]
    at_once = [command("compile", str(DIGITS), "-O1", "--no-verify", "-o", str(place)) for place in places]
    for process in at_once:
        _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
    assert places[0].read_bytes() == places[1].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gopt", "b.gopt"]


def test_two_processes_with_one_cache_of_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writers that race leave one of their entries whole, and a damaged entry is told and replaced."""
    from graphopt.targets.llvm import tuned

    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path))
    code = (
        "import sys\n"
        "from graphopt.targets.llvm import tuned\n"
        "for k in range(100):\n"
        "    tuned.write({KEY}, {'a': float(k + 1), 'b': 2.0})\n"
        "    found = tuned.read({KEY}, {'a', 'b'})\n"
        "    assert found is not None and found['b'] == 2.0\n"
    )
    key = {"problem": "a problem", "threads": 1}
    code = code.replace("{KEY}", repr(key))
    writers = [subprocess.Popen([sys.executable, "-W", "error", "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        _, err = writer.communicate(timeout=60)
        assert writer.returncode == 0, err.decode()
    found = tuned.read(key, {"a", "b"})
    assert found is not None
    assert found["b"] == 2.0
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


@pytest.mark.slow
def test_damaged_two_hundred_ways_a_real_artifact_is_refused(tmp_path: Path):
    """Half of them a bit flipped anywhere, half cut anywhere: what ends before a library is loaded can't crash."""
    from graphopt.errors import ArtifactError

    graphopt.compile(DIGITS, pipeline="", verify=False).save(tmp_path / "sound.gopt")
    sound = (tmp_path / "sound.gopt").read_bytes()
    rng = np.random.default_rng(0)
    place = tmp_path / "damaged.gopt"
    for k in range(200):
        damaged = bytearray(sound)
        at = int(rng.integers(len(sound)))
        if k % 2:
            damaged[at] ^= 1 << int(rng.integers(8))
        else:
            del damaged[at:]
        place.write_bytes(damaged)
        with pytest.raises(ArtifactError) as caught:
            load(place)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


@pytest.mark.slow
def test_eight_compilers_at_once_give_the_same_bytes(tmp_path: Path):
    places = [tmp_path / f"{k}.gopt" for k in range(8)]
    at_once = [command("compile", str(DIGITS), "-O3", "--no-verify", "-o", str(place)) for place in places]
    for process in at_once:
        _, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
    assert len({place.read_bytes() for place in places}) == 1


@pytest.mark.slow
def test_a_thousand_runs_from_eight_threads_are_identical_and_ten_thousand_leave_no_memory(tmp_path: Path):
    code = """
import gc, json, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from graphopt.artifact import load

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096

model = load(sys.argv[1], threads=1)
spec = model.inputs[0]
rng = np.random.default_rng(0)
rest = [d if isinstance(d, int) else 1 for d in spec.shape[1:]]
feeds = [rng.standard_normal((1 + k % 3, *rest)).astype(np.float32) for k in range(8)]
wanted = [model(one).tobytes() for one in feeds]
with ThreadPoolExecutor(8) as pool:
    same = list(pool.map(lambda k: model(feeds[k % 8]).tobytes() == wanted[k % 8], range(1000)))
for k in range(1000):
    model(feeds[k % 8])
before = resident()
for k in range(10_000):
    model(feeds[k % 8])
print(json.dumps([all(same), resident() - before]))
"""
    graphopt.compile(DIGITS, pipeline="", verify=False).save(tmp_path / "m.gopt")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.gopt")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    same, grown = json.loads(done.stdout)
    assert same
    assert grown < 1_000_000, grown
