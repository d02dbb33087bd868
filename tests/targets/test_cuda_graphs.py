"""CUDA graphs: what is captured is legal, and right at every call; the emulated device knows what capture forbids."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import artifact, oracle
from graphopt.base import Context
from graphopt.errors import ArtifactError
from graphopt.pipeline.registry import make_target
from graphopt.targets.cuda import Cuda, arch, kernels
from graphopt.testing import from_text
from graphopt.testing.cuda_emulation import EmulationError, build, emulate

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _net(n: int | str = 2) -> ir.Model:
    """The 1x1-channel convolution becomes two kernels with an intermediate in global memory."""
    text = f"""<ir_version: 10, opset_import: ["": 18]>
    net (float[{n}, 16, 5, 5] x, float[1, 16, 3, 3] w, float[1] b, float[8, 1, 3, 3] v, float[8, 8, 3, 3] u)
        => (float[{n}, 8, 5, 5] y, float[{n}, 8, 5, 5] z) {{
        a = Relu(x)
        c = Conv<pads = [1, 1, 1, 1]>(a, w, b)
        d = Sigmoid(c)
        e = Conv<pads = [1, 1, 1, 1]>(d, v)
        y = Tanh(e)
        z = Conv<pads = [1, 1, 1, 1]>(y, u)
    }}"""
    weights = {"w": _normal(1, 16, 3, 3), "b": _normal(1), "v": _normal(8, 1, 3, 3), "u": _normal(8, 8, 3, 3)}
    return from_text(text, **weights)


@pytest.fixture(scope="module")
def net() -> ir.Model:
    return _net()


def _feeds(calls: int = 3) -> list[dict[str, np.ndarray]]:
    return [{"x": _normal(2, 16, 5, 5, seed=call)} for call in range(calls)]


def _saved(model: ir.Model, folder: Path, **options) -> tuple[Path, dict]:
    program = Cuda(compiler="source", **options).build(model, Context())
    place = folder / "net.gopt"
    artifact.write(place, program, target="cuda{arch=sm_80}", before=model, after=model, report={})
    return place, program.report["cuda_graphs"]


@pytest.fixture(scope="module")
def saved(net, tmp_path_factory) -> tuple[Path, dict]:
    return _saved(net, tmp_path_factory.mktemp("graphs"))


def _matches(model: ir.Model, feeds: list[dict], results: list[dict]) -> bool:
    expected = [oracle.run(model, given) for given in feeds]
    pairs = ((got[name], one[name]) for got, one in zip(results, expected, strict=True) for name in one)
    return all(np.allclose(got, value, rtol=1e-4, atol=1e-4) for got, value in pairs)


def test_every_call_with_inputs_elsewhere_is_right(net, saved):
    """The device gives no address twice: a graph that kept an input's or an output's is seen at the second call."""
    path, graphs = saved
    assert graphs == {"graphs": 1, "kernels": 2, "of": 5, "left_out": ""}
    feeds = _feeds()
    assert _matches(net, feeds, emulate(path, feeds))
    assert _matches(net, feeds, emulate(path, feeds, sample=1)), "two libraries of kernels, checked and plain"


def test_what_is_launched_is_what_the_report_says(saved):
    """The first call launches each kernel by itself and captures; later ones launch the graph and the rest; one that is
    watched launches and tells each kernel again."""
    path, graphs = saved
    script = f"""
import ctypes, numpy as np
from graphopt.testing.cuda_emulation import worker
worker.start({str(build.driver())!r})
worker.cuda_runtime._compile = lambda source: bytes(5000)
program = worker.load({str(path)!r})
run = program.run
for _ in range(4):
    print("call", flush=True)
    run({{"x": np.ones((2, 16, 5, 5), np.float32)}})
    ctypes.CDLL(None).fflush(None)
    if _ == 2:
        seen = []
        program.instrument(lambda function, name, before, *_: seen.append(name) if before else None)
print("call seen", *[name for name in seen if not name.startswith("vm.")])
"""
    *calls, watched = _python(script).split("call\n")[1:]
    launches = [len(re.findall("^launch", call, re.MULTILINE)) for call in calls]
    assert launches == [graphs["of"]] * 3
    assert [re.findall(r"^graph (\d+)", call, re.MULTILINE) for call in calls] == [[], *[[str(graphs["kernels"])]] * 2]
    assert len(re.findall("^launch", watched, re.MULTILINE)) == graphs["of"]
    assert "graph " not in watched
    assert len(watched.rpartition("call seen ")[2].split()) == 4, "one function has two kernels"


def _python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(bool(arch.devices()), reason="there is a CUDA device")
def test_without_a_driver_loading_says_so_in_one_sentence(saved):
    with pytest.raises(ArtifactError, match=r"^this artifact runs on an NVIDIA GPU, and .* --target llvm\.$"):
        artifact.load(saved[0])


def test_open_sizes_and_the_option_mean_no_graphs(net):
    found = [Cuda(compiler="source").build(_net("N"), Context()).report["cuda_graphs"]]
    target = make_target("cuda{graphs=false, compiler=source}")
    found.append(target.build(net, Context()).report["cuda_graphs"])
    said = ["open sizes: N (--dim NAME=SIZE closes one)", "switched off"]
    assert found == [{"graphs": 0, "kernels": 0, "of": 5, "left_out": text} for text in said]


def test_a_graph_that_keeps_the_address_of_an_input_is_seen(net, tmp_path, monkeypatch):
    """The mutant takes inputs for weights: its graph reads what was freed after the first call."""
    captured = kernels.captured

    def mutant(module):
        module["main"] = module["main"].with_attr("num_input", 0)
        return captured(module)

    monkeypatch.setattr(kernels, "captured", mutant)
    path, graphs = _saved(net, tmp_path)
    assert graphs["kernels"] == 3
    feeds = _feeds(2)
    assert _matches(net, feeds[:1], emulate(path, feeds[:1]))
    with pytest.raises(EmulationError, match=r"relu_kernel.* reads bytes .* of x\w*, which has 0"):
        emulate(path, feeds)


def test_kernels_that_take_memory_of_their_own_are_not_captured(net, tmp_path, monkeypatch):
    """TVM's pool for the calling thread may free it while a graph has its address."""
    monkeypatch.setattr(kernels, "with_planned_workspaces", lambda module: module)
    _, graphs = _saved(net, tmp_path)
    assert (graphs["kernels"], graphs["of"]) == (0, 5)
    assert re.fullmatch(r"\w*conv2d\w* can't be captured", graphs["left_out"])


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("driver.c", "memcpy(value, arguments[i - 1], sizes[i])", "memset(value, 0, sizes[i])"),
        ("driver.c", "memcpy(value, arguments[i - 1], sizes[i])", "memcpy(value, arguments[0], sizes[i])"),
        ("streams.h", "w = w->next) w->run(w);\n", "w = NULL) w->run(w);\n"),
        (
            "streams.h",
            "for (Work *w = graph->first; w; w = w->next) w->run(w)",
            "for (Work *w = graph->first; w; w = w->next) graph->first->run(graph->first)",
        ),
    ],
)
def test_a_device_that_records_wrongly_is_seen(net, saved, tmp_path, monkeypatch, file, old, new):
    """No argument's value, another's, only the first kernel replayed, or it again and again."""
    folder = _mutant(tmp_path, monkeypatch, file, old, new)
    monkeypatch.setattr("graphopt.testing.cuda_emulation.run.driver", lambda: folder)
    feeds = _feeds(2)
    try:
        right = _matches(net, feeds, emulate(saved[0], feeds))
    except EmulationError:
        right = False
    assert not right


def _mutant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str) -> Path:
    """A folder with the driver whose source differs in one place."""
    native = tmp_path / "native"
    shutil.copytree(build._NATIVE, native)
    text = (native / file).read_text()
    assert text.count(old) == 1
    (native / file).write_text(text.replace(old, new))
    (tmp_path / "driver").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(build, "_NATIVE", native)
        patch.setattr(build, "_scratch", lambda: type("Folder", (), {"name": str(tmp_path / "driver")}))
        return build.driver.__wrapped__()


FORBIDDEN = {
    "malloc": ("cuda.cudaMalloc(ctypes.byref(pointer), 64)", 900),
    "free": ("cuda.cudaFree(held)", 900),
    "malloc in another thread": ("elsewhere(lambda: cuda.cudaMalloc(ctypes.byref(pointer), 64))", 900),
    "synchronise": ("cuda.cudaStreamSynchronize(stream)", 900),
    "synchronise the default stream": ("elsewhere(lambda: cuda.cudaStreamSynchronize(None))", 906),
    "copy on the default stream": ("cuda.cudaMemcpyAsync(held, held, 4, 3, None)", 906),
    "graph": ("cuda.cudaGraphLaunch(before, stream)", 900),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_device_knows_what_capture_forbids(name):
    """As CUDA defines it: an error at once, and the capture is spoilt."""
    call, error = FORBIDDEN[name]
    said = _device(f"begin(), {call}, record(), end(), graph.value")
    assert said.split() == ["0", str(error), "901", "901", "None"]


def test_the_device_records_copies_and_ends_a_capture_in_its_own_thread():
    said = _device(
        "begin(), begin(), record(), value(), elsewhere(end), end(),"
        " cuda.cudaGraphLaunch(instance(), None), value(), end()"
    )
    assert said.split()[2:] == ["0", "401", "0", "1", "908", "0", "0", "7", "401"], "after the line 'graph 1'"


def _device(call: str) -> str:
    return _python(f"{DEVICE.format(build.driver())}\nprint({call})")


DEVICE = """
import ctypes, threading
cuda = ctypes.CDLL("{}/libcudart.so.13")
stream, graph, pointer, held, before = (ctypes.c_void_p() for _ in range(5))
cuda.cudaMalloc(ctypes.byref(held), ctypes.c_size_t(64))
one, seven = ctypes.c_int(1), ctypes.c_int(7)
ctypes.memmove(held, ctypes.byref(one), 4)
cuda.cudaStreamCreate(ctypes.byref(stream))
def begin(): return cuda.cudaStreamBeginCapture(stream, 0)
def end(): return cuda.cudaStreamEndCapture(stream, ctypes.byref(graph))
def record(): return cuda.cudaMemcpyAsync(held, ctypes.byref(seven), ctypes.c_size_t(4), 3, stream)
def value(): return ctypes.c_int.from_address(held.value).value
def instance():
    made = ctypes.c_void_p()
    cuda.cudaGraphInstantiate(ctypes.byref(made), graph, None, None, 0)
    return made
def elsewhere(call):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start(); thread.join()
    return found[0]
begin(), end()
before = instance()
"""


BEGUN = "s->by = pthread_self();\n  return done();"
SLOW = BEGUN.replace("return done();", "done();\n  extern int usleep(unsigned);\n  return usleep(20000);")


@pytest.mark.parametrize("turns", [True, False])
def test_first_calls_of_threads_do_not_spoil_each_others_capture(net, saved, tmp_path, monkeypatch, turns):
    """CUDA refuses any thread's work on the default stream while a graph is captured; calls on a GPU take turns.

    The device begins a capture slowly: without turns another thread's call then falls into it.
    """
    folder, feeds = _mutant(tmp_path, monkeypatch, "streams.h", BEGUN, SLOW), _feeds(4)
    np.savez(tmp_path / "feeds.npz", *[one["x"] for one in feeds])
    script = f"""
import contextlib, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from graphopt.testing.cuda_emulation import worker
worker.start({str(folder)!r})
worker.runtime._GPU = worker.runtime._GPU if {turns} else contextlib.nullcontext()
xs = list(np.load({str(tmp_path / "feeds.npz")!r}).values())
programs = [worker.load({str(saved[0])!r}) for _ in range(3)]
together = threading.Barrier(len(xs))
def work(index):
    together.wait()
    return [programs[(index + turn) % 3].run({{"x": xs[index]}}) for turn in range(3)]
with ThreadPoolExecutor(len(xs)) as pool:
    found = list(pool.map(work, range(len(xs))))
np.savez({str(tmp_path / "found.npz")!r}, *[run[name] for runs in found for run in runs for name in ("y", "z")])
"""
    environment = {**os.environ, **build.settings(_source(saved[0]), "sm_80", False, None)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    if not turns:
        assert "cudaErrorStreamCapture" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    found = list(np.load(tmp_path / "found.npz").values())
    results = [dict(zip(("y", "z"), found[i : i + 2], strict=True)) for i in range(0, len(found), 2)]
    assert _matches(net, [one for one in feeds for _ in range(3)], results)


def _source(path: Path) -> str:
    return artifact.read(path).read_file("kernels.cu").decode()
