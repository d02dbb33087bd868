"""Profiles: what is timed is what ran, and arithmetic and names are those of the source model."""

import json

import numpy as np
import pytest

import graphopt
from graphopt.measure.peak import peak_gflops
from graphopt.measure.profile import RUNTIME, kernels, profile
from graphopt.testing import from_text

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'


@pytest.fixture(scope="module")
def program():
    """Two equal convolutions (one kernel), a matrix product, and a softmax that TVM's operators compute."""
    rng = np.random.default_rng(0)
    return graphopt.compile(
        from_text(
            f"""{HEADER} g (float[N,32,14,14] x, float[32,32,3,3] w, float[32,10] v) => (float[N,10] y) {{
            [c1] a = Conv<pads=[1,1,1,1]>(x, w) [r1] b = Relu(a)
            [c2] c = Conv<pads=[1,1,1,1]>(b, w) [r2] d = Relu(c)
            [pool] p = GlobalAveragePool(d) [flat] f = Flatten(p) [dense] m = MatMul(f, v) [soft] y = Softmax(m)
            }}""",
            w=rng.standard_normal((32, 32, 3, 3), np.float32) * 0.1,
            v=rng.standard_normal((32, 10), np.float32),
        ),
        "llvm{threads=1}",
        "fold-constants",
    )


def feeds(batch):
    return {"x": np.ones((batch, 32, 14, 14), np.float32)}


def test_rows_name_the_nodes_they_compute(program):
    rows, total_ms = profile(program, feeds(1), seconds=0)
    by_node = {node: row for row in rows for node in row.nodes}
    assert by_node.keys() | {"flat"} == {"c1", "r1", "c2", "r2", "pool", "flat", "dense", "soft"}  # a view is free
    (conv,) = (row for row in rows if "c1" in row.nodes and row.gflops)  # the input's transposition has no arithmetic
    assert conv.nodes == ["c1", "r1", "c2", "r2"]
    assert conv.calls == 2
    assert by_node["soft"].gflops is None
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert [row.ms for row in rows] == sorted((row.ms for row in rows), reverse=True)
    assert total_ms > 0


@pytest.mark.parametrize("batch", [1, 3])
def test_arithmetic_counts_every_call_and_the_whole_batch(program, batch):
    rows, _ = profile(program, feeds(batch), seconds=0)
    conv = next(row for row in rows if "c2" in row.nodes)
    macs = 2 * batch * 32 * 14 * 14 * 32 * 9
    assert conv.gflops == pytest.approx(2e-6 * macs / conv.ms)


def test_the_profiler_leaves_the_program_as_it_was(program):
    before = program.run(feeds(2))["y"]
    rows, _ = profile(program, feeds(2), seconds=0)
    assert RUNTIME in {row.name for row in rows}
    np.testing.assert_array_equal(program.run(feeds(2))["y"], before)


def test_peak_is_that_of_vectors():
    assert peak_gflops(1) > 5  # any CPU with vectors: 8 lanes at 1 GHz would be 16
    with pytest.raises(graphopt.errors.UsageError, match="threads"):
        peak_gflops(10_000)


def test_the_peak_probe_computes_its_sums():
    import tvm

    from graphopt.targets.llvm.cpu import native
    from graphopt.targets.llvm.kernels.peak import make

    probe = tvm.compile(tvm.IRModule({"peak": make(8, 3, 5, 2)}), native().tvm_target())["peak"]
    sums = tvm.runtime.tensor(np.arange(48, dtype=np.float32).reshape(2, 24))
    probe(tvm.runtime.tensor(np.array([0.5, 1.0], np.float32)), sums)
    expected = np.arange(48, dtype=np.float32).reshape(2, 24)
    for _ in range(5):
        expected = expected * 0.5 + 1
    np.testing.assert_allclose(sums.numpy(), expected, rtol=1e-6)


def test_command_line(program, tmp_path):
    from typer.testing import CliRunner

    from graphopt.cli.app import app

    path = str(program.save(tmp_path / "p.gopt"))
    done = CliRunner().invoke(app, ["bench", path, "--profile", "--seconds", "0.1", "--json"])
    kernels = json.loads(done.stdout)["kernels"]
    assert sum(row["share"] for row in kernels) == pytest.approx(1)
    assert {"c1", "c2", "soft"} <= {node for row in kernels for node in row["nodes"]}
    assert "of peak" in CliRunner().invoke(app, ["bench", path, "--profile", "--seconds", "0.1"]).stdout
    with pytest.raises(graphopt.errors.UsageError, match="either --profile or --against"):
        CliRunner().invoke(app, ["bench", path, "--profile", "--against", "tvm"], catch_exceptions=False)


def test_kernels_of_every_targets_report():
    conv = {"nodes": ["c"], "calls": []}
    for target in (
        {"kernels": {"conv": conv}},
        {"npu": {}, "cpu": {"kernels": {"conv": conv}}},
        {"kernels": [{"function": "conv", **conv}]},
        {"kernels": [{"name": "conv", **conv}]},
    ):
        (found,) = kernels({"target": target}).items()
        assert found[0] == "conv"
        assert found[1]["nodes"] == ["c"]
    assert kernels({"target": {}}) == {}
