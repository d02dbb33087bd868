"""Estimates: the command's form, the formulas of bare arrays, bounds that no schedule may beat, mistakes of users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.targets.npu.machine as machine_module
from graphopt import models, npu
from graphopt.errors import UsageError
from graphopt.graph import save
from graphopt.graph.cost import cost
from graphopt.targets.npu.cycles import systolic_cycles
from graphopt.targets.npu.energy import array_bytes
from graphopt.targets.npu.machine import BareArray, Machine, Systolic, load_description, load_machine, presets
from graphopt.testing import from_text

HERE = Path(machine_module.__file__).parent
WHOLE = [name for name in presets() if isinstance(load_description(name), Machine)]
BARE = [name for name in presets() if isinstance(load_description(name), BareArray)]
NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,8,20,20] x, float[24,8,3,3] w1, float[24] b1, float[24,1,3,3] w2, float[48,24,1,1] w3,
     float[10,48] w4, float[10] b4) => (float[N,10] y)
{
   c = Conv <kernel_shape = [3,3], pads = [1,1,1,1], strides = [2,2]> (x, w1, b1)
   r = Relu (c)
   d = Conv <kernel_shape = [3,3], pads = [1,1,1,1], group = 24> (r, w2)
   e = Conv (d, w3)
   p = GlobalAveragePool (e)
   f = Flatten (p)
   y = Gemm <transB = 1> (f, w4, b4)
}
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"w1": (24, 8, 3, 3), "b1": (24,), "w2": (24, 1, 3, 3), "w3": (48, 24, 1, 1), "w4": (10, 48), "b4": (10,)}
    arrays = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    path = tmp_path_factory.mktemp("npu") / "net.onnx"
    save(from_text(NET, **arrays), path)
    return path


@pytest.mark.parametrize("name", presets())
def test_the_command_prints_the_promised_document(net: Path, name: str, graphopt) -> None:
    done = graphopt("npu", "estimate", net, "--machine", name, "--json")
    assert done.code == 0, done.err
    assert set(done.json) == {"cycles", "macs", "utilisation", "dram_bytes", "energy_uj", "nodes"}
    nodes = {node["name"]: node for node in done.json["nodes"]}
    products = [node for node in nodes.values() if node["macs"]]
    assert [node["op"] for node in products] == ["Conv", "Conv", "Conv", "Gemm"]
    for node in nodes.values():
        assert {"name", "op", "cycles", "macs", "dram_bytes", "energy_uj"} <= set(node)
    for key in ("cycles", "macs", "dram_bytes", "energy_uj"):
        assert done.json[key] == pytest.approx(sum(node[key] for node in nodes.values()))
        assert all(node[key] > 0 for node in products)
    assert done.json["macs"] == cost(ir.load(net)).macs
    peak = load_description(name).array.macs_per_cycle
    assert done.json["utilisation"] == pytest.approx(done.json["macs"] / done.json["cycles"] / peak)
    for node in products:
        assert sum(node["energy"].values()) == pytest.approx(node["energy_uj"])


def test_what_stays_on_the_cpu_is_listed_with_the_reason(net: Path) -> None:
    left = {node["op"]: node for node in npu.estimate(net, "systolic-32-ws")["nodes"] if "reason" in node}
    assert left["GlobalAveragePool"]["reason"] == "the array has no GlobalAveragePool"
    assert left["GlobalAveragePool"]["cycles"] == left["GlobalAveragePool"]["macs"] == 0


@pytest.mark.parametrize("name", WHOLE)
def test_no_layer_beats_the_bounds(name: str) -> None:
    """DRAM bytes >= compulsory traffic and cycles >= the MAC and bandwidth bounds, for every layer of a network."""
    machine = load_machine(name)
    network = "mobilenet-v2" if name == "edge" else "mnist"
    for node in npu.estimate(models.get(network).path(), name)["nodes"]:
        if "reason" in node:
            continue
        assert node["dram_bytes"] >= node["compulsory_bytes"] > 0, node
        assert node["cycles"] >= node["macs"] / machine.array.macs_per_cycle, node
        assert (0 < node["utilisation"] <= 1) == (node["macs"] > 0), node
        moved = {"constants": node["read"]["constants"], "activations": node["read"]["activations"] + node["written"]}
        for memory in machine.memories:
            assert node["cycles"] >= sum(moved[space] for space in memory.holds) / memory.bytes_per_cycle, node
        least = node["macs"] * machine.energy.mac.pj / 1e6
        assert node["energy_uj"] > least, node


@pytest.mark.parametrize("name", BARE)
def test_bare_arrays_count_the_formula_of_their_product(net: Path, name: str) -> None:
    array = load_description(name).array
    assert isinstance(array, Systolic)
    expected = [
        systolic_cycles(array, 100, 24, 72),
        24 * systolic_cycles(array, 100, 1, 9),
        systolic_cycles(array, 100, 48, 24),
        systolic_cycles(array, 1, 10, 48),
    ]
    found = npu.estimate(net, name)
    assert [node["cycles"] for node in found["nodes"] if "reason" not in node] == expected
    assert found["dram_bytes"] == sum([
        8 * 400 + 24 * 72 + 24 * 100, 24 * 100 + 24 * 9 + 24 * 100, 24 * 100 + 48 * 24 + 48 * 100, 48 + 480 + 10,
    ])  # fmt: skip


def test_quantized_and_float_models_cost_the_same(net: Path, tmp_path: Path, graphopt) -> None:
    """A float model is taken as if quantized: the same cycles as after insert-qdq with real calibration data."""
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(4, 8, 20, 20)).astype(np.float32))
    done = graphopt(
        *("opt", net, "-p", "insert-qdq{target=npu,activations=int8}", "--dim", "N=1"),
        *("--calibration", tmp_path / "data.npz", "-o", tmp_path / "q.onnx"),
    )
    assert done.code == 0, done.err
    for name in ("edge", "systolic-32-os"):
        as_float, as_int8 = npu.estimate(net, name), npu.estimate(tmp_path / "q.onnx", name)
        assert as_float["cycles"] == as_int8["cycles"]
        assert as_float["macs"] == as_int8["macs"]


@pytest.mark.parametrize(
    ("dataflow", "expected"),
    [
        # m, n, k = 10, 8, 12 on 4 x 4: 2 folds of n, 3 of k, 3 of m; sums of 4 bytes.
        ("weight-stationary", (10 * 12 * 2 + 96, 4 * 80 * 5)),
        ("output-stationary", (10 * 12 * 2 + 96 * 3, 4 * 80)),
        ("input-stationary", (10 * 12 + 96 * 3, 4 * 80 * 5)),
    ],
)
def test_bytes_of_a_dataflow_by_hand(dataflow: str, expected: tuple[int, int]) -> None:
    array = Systolic(kind="systolic", dataflows=(dataflow,), rows=4, columns=4)
    assert array_bytes(array, 10, 8, 12) == expected


@pytest.mark.parametrize("name", presets())
def test_every_energy_figure_names_its_source(name: str) -> None:
    energy = load_description(name).energy
    for event in (energy.mac, energy.scratchpad, energy.accumulator, energy.vector, *energy.memory.values()):
        assert event.pj > 0
        assert any(paper in event.source for paper in ("Horowitz", "Jouppi")), event


def test_dims_are_bound_and_open_ones_are_named(tmp_path: Path, graphopt) -> None:
    text = NET.replace("N,8,20,20", "N,8,H,20")
    shapes = {"w1": (24, 8, 3, 3), "b1": (24,), "w2": (24, 1, 3, 3), "w3": (48, 24, 1, 1), "w4": (10, 48), "b4": (10,)}
    save(from_text(text, **{k: np.ones(s, np.float32) for k, s in shapes.items()}), tmp_path / "net.onnx")
    done = graphopt("npu", "estimate", tmp_path / "net.onnx", "--json")
    assert done.code == 2
    assert "H of x" in done.err
    assert "--dim" in done.err
    done = graphopt("npu", "estimate", tmp_path / "net.onnx", "--dim", "H=20", "--dim", "N=2", "--json")
    assert done.json["macs"] == 2 * 100 * (24 * 72 + 24 * 9 + 48 * 24) + 2 * 480


@pytest.mark.parametrize(
    ("preset", "old", "new", "culprit"),
    [
        ("edge", "pj = 0.3,", "pj = -1,", "energy.mac.pj"),
        ("edge", "mac = { pj", "mac = { picojoules", "energy.mac.pj"),
        ("edge", "flash = { pj", "rom = { pj", "energy.memory needs one entry for each memory"),
        ("tpuv1", "rows = 256", "rows = 256.5", "array.systolic.rows"),
        ("tpuv1", 'kind = "systolic"', 'kind = "quantum"', "array"),
        ("systolic-32-ws", "[array]", "[vector]\nelements_per_cycle = 4\n[array]", "scratchpad_bytes: Field required"),
        ("systolic-32-ws", 'weight-stationary"]', 'waiting"]', "array.dataflows"),
    ],
)
def test_a_wrong_machine_is_one_paragraph_that_names_the_key(
    preset: str, old: str, new: str, culprit: str, net: Path, tmp_path: Path, graphopt
) -> None:
    text = (HERE / f"{preset}.toml").read_text()
    assert old in text
    path = tmp_path / "machine.toml"
    path.write_text(text.replace(old, new))
    done = graphopt("npu", "estimate", net, "--machine", path, "--json")
    assert done.code == 2
    assert culprit in done.err
    assert str(path) in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_bad_models_and_machines_are_errors(net: Path, tmp_path: Path, graphopt) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    assert graphopt("npu", "estimate", tmp_path / "bad.onnx").code == 3
    assert "edge" in graphopt("npu", "estimate", net, "--machine", "tpu-9000").err
    with pytest.raises(UsageError, match="bare array"):
        load_machine("systolic-32-ws")


def test_machines_lists_every_preset(graphopt) -> None:
    assert {machine["name"] for machine in graphopt("npu", "machines", "--json").json} == set(presets())
    assert "Ethos-U55" in graphopt("npu", "machines").out
