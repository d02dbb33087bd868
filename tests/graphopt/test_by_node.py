"""Latency by source node: what either computes together is one row, and nothing is lost or counted twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt.measure.by_node import _joined, profile_by_node
from graphopt.models import get


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("by_node") / "digits.gopt"
    graphopt.compile(get("digits").path(), "llvm{threads=1}", "fold-batch-norm").save(path)
    return path


def test_every_node_is_in_one_row(artifact: Path) -> None:
    found = profile_by_node(artifact, seconds=0.2)
    named = [name for row in found.rows for name in row.nodes]
    assert len(named) == len(set(named))
    convs = {f"{kind}{k}" for k in range(1, 6) for kind in ("conv", "bn", "relu")}
    assert convs <= set(named)
    rows = {row.nodes[0]: row for row in found.rows}
    assert {"conv1", "bn1", "relu1"} <= set(rows["conv1"].nodes)
    for k in range(1, 6):
        row = next(row for row in found.rows if f"conv{k}" in row.nodes)
        assert row.ms > 0
        assert row.onnxruntime_ms > 0
        assert row.ratio == pytest.approx(row.onnxruntime_ms / row.ms)
        assert row.kernels
    assert found.total_ms > 0
    order = [node.name for node in graphopt.load(artifact).graph("before").graph]
    assert [row.nodes[0] for row in found.rows] == sorted((row.nodes[0] for row in found.rows), key=order.index)


def test_two_calls_of_one_kernel_are_told_apart() -> None:
    from graphopt.testing import from_text

    rng = np.random.default_rng(0)
    program = graphopt.compile(
        from_text(
            '<ir_version: 10, opset_import: ["" : 20]> g (float[1,32,14,14] x, float[32,32,3,3] w) => '
            "(float[1,32,14,14] y) { [c1] a = Conv<pads=[1,1,1,1]>(x, w) [r1] b = Relu(a) "
            "[c2] c = Conv<pads=[1,1,1,1]>(b, w) [r2] y = Relu(c) }",
            w=rng.standard_normal((32, 32, 3, 3), np.float32),
        ),
        "llvm{threads=1}",
        "fold-constants",
    )
    kernels = program.report["target"]["kernels"]
    (twice,) = (known for known in kernels.values() if len(known["calls"]) == 2)
    assert twice["calls"] == [["c1", "r1"], ["c2", "r2"]]


def test_rows_join_what_overlaps() -> None:
    ours = [(frozenset({"a", "b"}), 1.0, "k"), (frozenset({"c"}), 2.0, "k"), (frozenset(), 0.5, "(memory)")]
    theirs = [(frozenset({"b"}), 3.0, "B"), (frozenset({"a"}), 1.0, "A"), (frozenset({"d"}), 4.0, "D")]
    found = _joined(["a", "b", "c", "d"], ours, theirs, 9.0, 1)
    assert [(row.nodes, row.ms, row.onnxruntime_ms, row.ratio) for row in found.rows] == [
        (["a", "b"], 1.0, 4.0, 4.0),
        (["c"], 2.0, 0.0, None),
        (["d"], 0.0, 4.0, None),
    ]
    assert (found.other_ms, found.onnxruntime_other_ms) == (0.5, 0.0)


def test_the_command(artifact: Path, graphopt) -> None:
    found = graphopt("bench", artifact, "--profile", "--by-node", "--seconds", 0.1, "--json").json
    assert found["rows"][0]["nodes"][0] == "conv1"
    done = graphopt("bench", artifact, "--profile", "--by-node", "--seconds", 0.1)
    assert "conv1 +" in done.out
    assert "onnxruntime ms" in done.out
    assert graphopt("bench", artifact, "--by-node").code == 2
