"""From a float model to a machine by one command: per-channel, power-of-two and 4-bit weights; what stays, and why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from graphopt import oracle
from graphopt.artifact import load
from graphopt.graph import load as load_model
from graphopt.graph import save
from graphopt.testing import from_text

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,8,12,12] x, float[32,8,3,3] w1, float[32,1,3,3] w2, float[16,32,1,1] w3, float[16,16,1,1] w4)
    => (float[N,16,12,12] y)
{
   c = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (x, w1)
   r = Relu (c)
   d = Conv <kernel_shape = [3,3], pads = [1,1,1,1], group = 32> (r, w2)
   e = Conv (d, w3)
   s = Softplus (e)
   y = Conv (s, w4)
}
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float model and, beside it, data for calibration."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (32, 8, 3, 3), "w2": (32, 1, 3, 3), "w3": (16, 32, 1, 1), "w4": (16, 16, 1, 1)}
    folder = tmp_path_factory.mktemp("npu")
    save(from_text(NET, **{k: rng.normal(0, 0.2, s).astype(np.float32) for k, s in shapes.items()}), folder / "m.onnx")
    np.savez(folder / "data.npz", x=rng.normal(size=(4, 8, 12, 12)).astype(np.float32))
    return folder / "m.onnx"


@pytest.mark.parametrize(
    ("options", "error"), [("", 0.04), (",power_of_two=true", 0.06), (",weight_bits=4", 0.25)], ids=str
)
def test_one_command_from_float_to_mobile_4k(net: Path, options: str, error: float, tmp_path: Path, graphopt) -> None:
    done = graphopt(
        *("compile", net, "-p", f"insert-qdq{{target=npu{options}}}", "--calibration", net.parent / "data.npz"),
        *("--dim", "N=1", "--target", "npu{machine=mobile-4k,cpu_gmacs=0.001}", "-o", tmp_path / "m.gopt", "--json"),
    )
    assert done.code == 0, done.err
    told = done.json["report"]["npu"]
    assert told["machine"] == "mobile-4k"
    assert [node["op"] for node in told["nodes"]].count("Conv") >= 3
    x = np.load(net.parent / "data.npz")["x"][:1]
    (expected,) = oracle.run(load_model(net), {"x": x}).values()
    with load(tmp_path / "m.gopt") as program:
        (found,) = program.run({"x": x}).values()
    assert np.sqrt(np.mean((found - expected) ** 2)) < error * np.abs(expected).max()
    if "weight_bits" in options:  # half of the weights' bytes, besides 12 bytes for each channel
        conv = next(node for node in told["nodes"] if node["macs"] == 32 * 8 * 9 * 144)
        assert conv["read"]["constants"] <= 32 * 8 * 9 // 2 + 32 * 12


def test_a_product_before_float_operators_says_what_to_do(net: Path, tmp_path: Path, graphopt) -> None:
    """Without a QuantizeLinear between, float operators keep a product on the CPU; the report names the way out."""
    done = graphopt(
        *("compile", net, "-p", "insert-qdq", "--calibration", net.parent / "data.npz", "--dim", "N=1"),
        *("--target", "npu{cpu_gmacs=0.001}", "-o", tmp_path / "m.gopt"),
    )
    assert done.code == 0, done.err
    assert "operators on the NPU; on the CPU: " in done.out
    done = graphopt("npu", "report", tmp_path / "m.gopt")
    left = [line for line in done.out.splitlines() if line.startswith("not on the NPU")]
    assert left, done.out
    assert any("quantize its result to have it on the NPU" in line for line in left)
    found = json.loads(graphopt("npu", "report", tmp_path / "m.gopt", "--json").out)["left"]
    assert [f"not on the NPU: {node['name']}: {node['reason']}" for node in found] == left


def test_a_float_model_is_told_to_be_quantized(net: Path, tmp_path: Path, graphopt) -> None:
    """All of it runs on the CPU: to compile for the NPU and not to say so would hide it."""
    done = graphopt("compile", net, "--target", "npu", "--dim", "N=1", "-o", tmp_path / "m.gopt")
    assert done.code == 0, done.err
    assert "npu: 0 of 4 operators on the NPU; on the CPU: " in done.out
    assert "and 3 more (not quantized: add insert-qdq to the pipeline)" in done.out
