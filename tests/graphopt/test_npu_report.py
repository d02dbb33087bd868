"""Reports, timelines, disassembly and sweeps: every cycle, byte and joule is accounted for once."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from graphopt.errors import ArtifactError, UsageError
from graphopt.graph import save
from graphopt.npu.report import of_streams
from graphopt.npu.streams import Streams, of_file
from graphopt.npu.sweep import OBJECTIVES, parse_setting, sweep, vary
from graphopt.npu.timeline import trace
from graphopt.targets.npu.asm import assemble
from graphopt.targets.npu.isa import queue_of
from graphopt.targets.npu.machine import load_machine
from graphopt.targets.npu.profile import stretches
from graphopt.targets.npu.timing import schedule
from graphopt.testing import from_text

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,8,20,20] x, float[32,8,3,3] w1, float[32,1,3,3] w2, float[32,32,1,1] w3, float[10,32] w4)
    => (float[N,10] y)
{
   c = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (x, w1)
   r = Relu (c)
   d = Conv <kernel_shape = [3,3], pads = [1,1,1,1], group = 32> (r, w2)
   e = Conv (d, w3)
   s = Add (r, e)
   p = GlobalAveragePool (s)
   f = Flatten (p)
   y = Gemm <transB = 1> (f, w4)
}
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"w1": (32, 8, 3, 3), "w2": (32, 1, 3, 3), "w3": (32, 32, 1, 1), "w4": (10, 32)}
    arrays = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    path = tmp_path_factory.mktemp("npu") / "net.onnx"
    save(from_text(NET, **arrays), path)
    return path


@pytest.fixture(scope="module")
def streams(net: Path) -> Streams:
    return of_file(net, "edge")


def test_every_cycle_has_one_owner(streams: Streams) -> None:
    for stream in streams.streams:
        now = 0
        for stretch in stretches(stream, streams.machine):
            assert stretch.start == now
            assert stretch.end > now
            now = stretch.end
        assert now == schedule(stream, streams.machine).cycles


def test_the_report_adds_up(streams: Streams) -> None:
    machine, found = streams.machine, of_streams(streams)
    nodes = found["nodes"]
    assert found["cycles"] == sum(schedule(stream, machine).cycles for stream in streams.streams)
    assert found["cycles"] == sum(node["cycles"] for node in nodes) == sum(found["stalls"].values())
    assert found["energy_uj"] == pytest.approx(sum(found["energy"].values()))
    assert found["dram_bytes"] == sum(found["bytes"].values())
    for node in nodes:
        assert sum(node["stalls"].values()) == node["cycles"]
        assert node["stalls"][node["bound"]] == max(node["stalls"].values())
        assert node["stalls"]["compute"] == node["busy"]["exec"]
        assert node["busy"]["exec"] * machine.array.macs_per_cycle >= node["macs"]
        assert 0 < node["attainable"] <= machine.array.macs_per_cycle or not node["macs"]
    for memory in machine.memories:
        assert found["cycles"] >= found["bytes"][memory.name] / memory.bytes_per_cycle
    assert {node["op"] for node in nodes} >= {"Conv", "Add"}


def test_occupancy_stays_inside_the_scratchpad(streams: Streams) -> None:
    used = of_streams(streams)["occupancy"]
    assert [cycle for cycle, _ in used] == sorted(cycle for cycle, _ in used)
    assert all(0 <= size <= streams.machine.scratchpad_bytes for _, size in used)
    assert max(size for _, size in used) >= 32 * 400  # a whole activation rests there


def test_the_timeline_is_a_chrome_trace(net: Path, streams: Streams, tmp_path: Path, graphopt) -> None:
    done = graphopt("npu", "report", net, "--machine", "edge", "--trace", tmp_path / "t.json", "--json")
    assert done.code == 0, done.err
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    work = [event for event in events if event["ph"] == "X"]
    assert {event["args"]["name"] for event in events if event["name"] == "thread_name"} >= {"exec", "vector", "store"}
    ends = max(event["ts"] + event["dur"] for event in work)
    assert ends == pytest.approx(done.json["ms"] * 1e3)
    array = sorted((e["ts"], e["ts"] + e["dur"]) for e in work if e["cat"] == "exec")
    assert all(before[1] <= after[0] + 1e-9 for before, after in itertools.pairwise(array))
    made = trace(streams.streams, streams.machine)["traceEvents"]
    words = [word for stream in streams.streams for word in stream.instructions if queue_of(word) is not None]
    assert sum(event["ph"] == "X" for event in made) == len(words)


def test_an_artifact_reports_what_was_compiled(net: Path, tmp_path: Path, graphopt) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).normal(size=(4, 8, 20, 20)).astype(np.float32))
    done = graphopt(
        *("compile", net, "-p", "insert-qdq{target=npu}", "--dim", "N=1", "--calibration", tmp_path / "data.npz"),
        *("--target", "npu{machine=gemmini-16}", "-o", tmp_path / "net.gopt", "--json"),
    )
    assert done.code == 0, done.err
    built = done.json["report"]["npu"]
    done = graphopt("npu", "report", tmp_path / "net.gopt", "--json")
    assert done.code == 0, done.err
    assert done.json["machine"] == "gemmini-16"
    assert (done.json["cycles"], done.json["macs"]) == (built["cycles"], built["macs"])
    assert graphopt("npu", "report", tmp_path / "net.gopt").code == 0
    text = graphopt("npu", "disasm", tmp_path / "net.gopt").out
    (stream,) = of_file(tmp_path / "net.gopt").streams
    assert assemble(text) == stream
    done = graphopt("npu", "report", tmp_path / "net.gopt", "--machine", "edge")
    assert done.code == 2
    assert "its own machine" in done.err


MIXED = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1,8,20,20] x, float[8,8,3,3] w1, float[8,8,3,3] w2) => (float[1,8,20,20] y)
{
   c = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (x, w1)
   d = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (c, w2)
   s = Softmax <axis = 1> (d)
   y = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (s, w2)
}
"""


def test_the_timeline_of_an_artifact_has_the_cpu_between_the_streams(tmp_path: Path, graphopt) -> None:
    """Softmax stays on the CPU between two regions: measured kernels and simulated words, one after the other."""
    rng = np.random.default_rng(0)
    save(
        from_text(MIXED, **{name: rng.normal(0, 0.2, (8, 8, 3, 3)).astype(np.float32) for name in ("w1", "w2")}),
        tmp_path / "m.onnx",
    )
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(4, 8, 20, 20)).astype(np.float32))
    done = graphopt(
        *("compile", tmp_path / "m.onnx", "-p", "insert-qdq{target=npu}", "--calibration", tmp_path / "data.npz"),
        *("--target", "npu{cpu_gmacs=0.01}", "-o", tmp_path / "m.gopt"),
    )
    assert done.code == 0, done.err
    done = graphopt("npu", "report", tmp_path / "m.gopt", "--trace", tmp_path / "t.json", "--json")
    assert done.code == 0, done.err
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    on_npu = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X" and e["pid"] == 0)
    on_cpu = sorted(
        (e["ts"], e["ts"] + e["dur"], e["args"]["nodes"]) for e in events if e["ph"] == "X" and e["pid"] == 1
    )
    ms = done.json["cpu"]["ms"]
    assert sum(end - start for start, end, _ in on_cpu) == pytest.approx(1e3 * ms)
    assert max(end for _, end, *_ in (*on_cpu, *on_npu)) == pytest.approx(1e3 * (ms + done.json["ms"]))
    softmax = [start for start, _, nodes in on_cpu if nodes == ["node_2"]]
    assert softmax
    assert on_npu[0][1] < min(softmax)
    assert max(softmax) < on_npu[-1][0]
    for start, end, _ in on_cpu:
        assert not any(a < end - 1e-6 and start < b - 1e-6 for a, b in on_npu)
    told = graphopt("npu", "report", tmp_path / "m.gopt", "--trace", tmp_path / "t.json").out
    assert "measured on this machine" in told


def test_an_artifact_without_a_program_is_refused(net: Path, tmp_path: Path, graphopt) -> None:
    assert graphopt("compile", net, "-O1", "-o", tmp_path / "cpu.gopt").code == 0
    with pytest.raises(ArtifactError, match="holds no NPU program"):
        of_file(tmp_path / "cpu.gopt")
    done = graphopt("npu", "disasm", tmp_path / "cpu.gopt")
    assert done.code == 7
    assert "Traceback" not in done.err


def test_a_sweep_finds_the_front(net: Path, graphopt) -> None:
    done = graphopt(
        *("npu", "sweep", net, "--machine", "gemmini-16", "--set", "array.rows=8,16", "--jobs", 1, "--json"),
        *("--set", "memories.dram.bytes_per_cycle=4,16"),
    )
    assert done.code == 0, done.err
    points = done.json["points"]
    assert [tuple(point["set"].values()) for point in points] == [(8, 4), (8, 16), (16, 4), (16, 16)]
    slow, fast = points[2], points[3]
    assert fast["ms"] < slow["ms"]
    assert fast["area_mm2"] == slow["area_mm2"] > points[0]["area_mm2"]
    for point in points:
        mine = [point[name] for name in OBJECTIVES]
        beaten = any(
            all(other[name] <= value for name, value in zip(OBJECTIVES, mine, strict=True))
            and [other[name] for name in OBJECTIVES] != mine
            for other in points
        )
        assert point["pareto"] == (not beaten)


def test_processes_find_the_same(net: Path) -> None:
    settings = {"scratchpad_bytes": [16384, 65536]}
    assert sweep([net], "edge", settings, jobs=2) == sweep([net], "edge", settings)


def test_a_machine_too_small_is_a_point_with_the_reason(net: Path) -> None:
    (point,) = sweep([net], "gemmini-16", {"accumulator_bytes": [256]})["points"]
    assert "error" in point or point["cycles"] > 0


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"array.rowz": 8}, "rowz"),
        ({"memories.flash.bytes_per_cycle": 8}, "flash"),
        ({"clock_mhz.x": 8}, "clock_mhz.x"),
        ({"array.rows": -8}, "array.systolic.rows"),
    ],
)
def test_a_wrong_setting_names_the_key(settings: dict, culprit: str) -> None:
    with pytest.raises(UsageError, match=culprit):
        vary(load_machine("gemmini-16"), settings)


def test_settings_are_toml_values() -> None:
    assert parse_setting("array.rows=8,16") == ("array.rows", [8, 16])
    assert parse_setting('requantise="fixed31"') == ("requantise", ["fixed31"])
    for text in ("array.rows", "array.rows=", "=8", "array.rows=eight"):
        with pytest.raises(UsageError, match="--set takes"):
            parse_setting(text)
