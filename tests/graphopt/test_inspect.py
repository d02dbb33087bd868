"""Inspect: numbers worked out by hand, and large models looked at without being read."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.base import Context
from graphopt.data import open_data
from graphopt.errors import UsageError
from graphopt.graph import load, save
from graphopt.graph.views import to_digraph
from graphopt.inspect import as_csv, as_text, inspect, select
from graphopt.inspect.memory import live_bytes
from graphopt.inspect.quantization import quantization
from graphopt.inspect.weights import weight_stats
from graphopt.models import get
from graphopt.pipeline import parse_pipeline, run
from graphopt.testing import assert_golden, from_text

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def digits() -> ir.Model:
    return load(get("digits").path())


def test_totals_are_the_sums_over_nodes(digits: ir.Model) -> None:
    summary = inspect(digits)
    plain = json.loads(json.dumps(summary.to_json()))
    totals, nodes = plain["totals"], plain["nodes"]
    assert (totals["nodes"], totals["parameters"], totals["macs"]) == (21, 38138, 654816)
    for key in ("macs", "bytes_read", "bytes_written"):
        assert totals[key] == sum(node[key] for node in nodes)
    assert totals["intensity"] == pytest.approx(2 * 654816 / (totals["bytes_read"] + totals["bytes_written"]))
    assert nodes[3]["intensity"] == pytest.approx(2 * 294912 / (22528 + 8192))
    assert totals["peak_bytes"] == max(node["live_bytes"] for node in nodes)
    assert next(node["live_bytes"] for node in nodes if node["name"] == totals["peak_node"]) == totals["peak_bytes"]


def test_the_text_is_stable(digits: ir.Model, update_golden: bool) -> None:
    assert_golden(as_text(inspect(digits)) + "\n", GOLDEN / "inspect_digits.txt", update_golden)


def test_memory_between_nodes() -> None:
    # x 64 bytes is read until c; each of a, b, c is 64; d is 4 bytes
    model = from_text(
        HEAD + "g (float[16] x) => (float[1] d) { [one] a = Exp(x) [two] b = Neg(a) [three] c = Add(b, x) "
        "[four] d = ReduceMax <axes=[0]> (c) }"
    )
    assert list(live_bytes(model.graph).values()) == [128, 192, 192, 68]


def test_memory_counts_what_is_returned_until_the_end_and_what_nobody_reads_at_once() -> None:
    model = from_text(
        HEAD + "g (float[4] x, int64[1] k) => (float[4] a, float[4] c) { [one] a = Exp(x) "
        "[two] b, unused = TopK <largest=1> (x, k) [three] c = Neg(b) }",
        k=np.array([4]),
    )
    # x, a | x, a, b, indices of int64 | a, b, c
    assert list(live_bytes(model.graph).values()) == [32, 16 * 3 + 32, 48]


def test_memory_in_a_branch_is_on_top_of_what_is_around_it() -> None:
    model = from_text(
        HEAD + "g (float[4] x, bool c) => (float[4] y) { [before] a = Exp(x) [pick] y = If(c) <then_branch = t () => "
        "(float[4] p) { [in1] q = Neg(a) [in2] p = Abs(q) }, else_branch = e () => (float[4] r) { [in3] r = Neg(a) }> }"
    )
    live = {node.name: size for node, size in live_bytes(model.graph).items()}
    assert live["pick"] == 1 + 16 + 16  # c, a, y; x is done
    assert live["in2"] == live["pick"] + 32
    assert live["in3"] == live["pick"] + 16
    assert inspect(model).totals.peak_node == "in2"


def test_weights_ranges_zeros_and_outliers() -> None:
    values = np.tile(np.array([-1.0, 0.0, 0.0, 1.0], np.float32), 250).reshape(10, 100)
    values[3, 4] = 100.0
    model = from_text(
        HEAD + "g (float[N,10] x, float[10,100] w, float[100] b, float[] s) => (float[N,100] y) "
        "{ [mm] h = MatMul(x, w) [add] i = Add(h, b) [mul] y = Mul(i, s) }",
        w=values, b=np.array([np.nan, np.inf, *[1.0] * 98], np.float32), s=np.float32(2),
    )  # fmt: skip
    w, b = weight_stats(model)
    assert (w.name, w.readers, w.dtype, w.shape, w.nbytes) == ("w", ["mm"], "FLOAT", [10, 100], 4000)
    assert w.zeros == pytest.approx(np.mean(values == 0))
    assert (w.least, w.greatest, w.outliers, w.nonfinite) == (-1, 100, 1, 0)
    assert w.mean == pytest.approx(values.mean(dtype=np.float64))
    assert w.std == pytest.approx(values.std(dtype=np.float64))
    assert w.reach == pytest.approx((100 - w.mean) / w.std)
    assert (b.nonfinite, b.least, b.greatest, b.std, b.reach) == (2, 1, 1, 0, 0)
    assert inspect(model).totals.zeros == pytest.approx(np.sum(values == 0) / 1101)
    text = as_text(inspect(model))
    assert "weight b: 2 values are infinite or NaN" in text
    assert "weight w: from -1 to 100, 1 outliers" in text


def test_statistics_in_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.inspect import weights

    array = np.random.default_rng(0).standard_normal((37, 11)).astype(np.float16)
    model = from_text(HEAD + "g (float16[37,11] x, float16[37,11] w) => (float16[37,11] y) { y = Add(x, w) }", w=array)
    (whole,) = weight_stats(model)
    monkeypatch.setattr(weights, "PIECE", 10)
    (pieces,) = weight_stats(model)
    assert pieces.mean == pytest.approx(whole.mean)
    assert pieces.std == pytest.approx(whole.std)
    assert (pieces.least, pieces.greatest, pieces.zeros) == (whole.least, whole.greatest, whole.zeros)


def quantized(digits: ir.Model, pipeline: str) -> ir.Model:
    data = open_data(get("digits").calibration(), digits)
    return run(digits, parse_pipeline(pipeline), Context(calibration=data)).model


@pytest.mark.parametrize(
    ("pipeline", "state", "conv"),
    [
        ("fold-batch-norm", "float", "float"),
        ("fold-batch-norm,insert-qdq", "integer", "integer"),
        ("fold-batch-norm,quantize-dynamic", "dynamic", None),
        ("fold-batch-norm,quantize-weights", "weights", None),  # small ones stay float
    ],
)
def test_the_state_of_quantization(digits: ir.Model, pipeline: str, state: str, conv: str | None) -> None:
    model = quantized(digits, pipeline)
    whole, states = quantization(model)
    assert whole.state == state
    assert sum(whole.nodes.values()) == len(states)
    assert sum(whole.macs.values()) == inspect(model).totals.macs
    if conv is not None:
        assert {s for node, s in states.items() if node.op_type == "Conv"} == {conv}
    if state == "integer":
        assert next(iter(whole.weights)) == "INT8"
        assert "quantized (integer; MACs: integer 100%)" in as_text(inspect(model))


def test_passes_are_asked_what_they_would_do_and_what_not(digits: ir.Model) -> None:
    asked = {one.pass_name: one for one in inspect(digits).patterns or ()}
    assert {change.node for change in asked["fold-batch-norm"].found} == {f"bn{k}" for k in range(1, 6)}
    assert asked["fold-batch-norm"].missed == []
    assert len(digits.graph) == 21  # left as it was
    stuck = from_text(
        HEAD + "g (float[1,2,4,4] x, float[2] s) => (float[1,2,4,4] y) "
        "{ [act] h = Relu(x) [norm] n = BatchNormalization(h, s, s, s, s) [end] y = Tanh(n) }",
        s=np.ones(2, np.float32),
    )
    asked = {one.pass_name: one for one in inspect(stuck).patterns or ()}
    (missed,) = asked["fold-batch-norm"].missed
    assert missed.node == "norm"
    assert "Relu" in missed.reason
    assert f"fold-batch-norm would leave norm: {missed.reason}" in as_text(inspect(stuck))


def test_parts_of_a_model(digits: ir.Model) -> None:
    whole = inspect(digits)

    def names(**how: object) -> list[str]:
        return [node.name for node in select(whole, digits, **how).nodes]

    assert names(ops=["Conv"]) == [f"conv{k}" for k in range(1, 6)]
    assert names(nodes=["conv2", "*3"]) == ["conv2", "conv3", "bn3", "relu3"]
    assert names(nodes=["*2"], ops=["Relu"]) == ["relu2"]
    between = names(region="relu2..conv4")
    view = to_digraph(digits.graph)
    first, last = (next(node for node in digits.graph if node.name == name) for name in ("relu2", "conv4"))
    import networkx as nx

    expected = {first, last} | (nx.descendants(view, first) & nx.ancestors(view, last))
    assert set(between) == {node.name for node in expected}
    assert names(region="..conv1") == ["conv1"]
    assert names(region="..") == [node.name for node in whole.nodes]
    part = select(whole, digits, ops=["Conv"])
    assert part.totals.nodes == 5
    assert part.totals.macs == sum(node.macs for node in whole.nodes if node.op == "Conv")
    assert part.totals.parameters < whole.totals.parameters
    assert {w.readers[0][:4] for w in part.weights or ()} == {"conv"}


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"nodes": ["nothing*"]}, "no node of the model matches --node nothing"),
        ({"ops": ["conv"]}, "--op conv"),
        ({"region": "conv1"}, "FIRST..LAST"),
        ({"region": "conv1..nowhere"}, "'nowhere'"),
        ({"region": "conv4..conv1"}, "no node"),
    ],
)
def test_parts_that_do_not_exist(digits: ir.Model, how: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        select(inspect(digits), digits, **how)


def test_csv_is_read_back_and_is_no_formula(digits: ir.Model) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(inspect(digits)))))
    assert [row["name"] for row in rows] == [node.name for node in digits.graph]
    assert rows[3]["outputs"] == "Nx32x8x8"
    assert sum(int(row["macs"]) for row in rows) == 654816
    model = from_text(HEAD + "g (float[2] x) => (float[2] y) { [n] y = Neg(x) }")
    next(iter(model.graph)).name = '=HYPERLINK("x"),"y"'
    (row,) = csv.DictReader(io.StringIO(as_csv(inspect(model))))
    assert row["name"] == '\'=HYPERLINK("x"),"y"'


def test_names_can_not_write_on_the_terminal() -> None:
    from graphopt.diff import diff

    model = from_text(HEAD + "g (float[2] x) => (float[2] y) { [n] y = Neg(x) }")
    other = from_text(HEAD + "g (float[2] x) => (float[2] y) { [m] h = Neg(x) [n] y = Abs(h) }")
    for node in [*model.graph, *other.graph]:
        node.name = f"\x1b[2Jevil\n{node.name}"
    for text in (as_text(inspect(model)), str(diff(model, other))):
        assert all(line.isprintable() for line in text.split("\n"))
        assert "\\x1b[2Jevil\\n" in text


def test_the_command(digits: ir.Model, tmp_path: Path, graphopt) -> None:
    path = save(digits, tmp_path / "digits.onnx")
    found = graphopt("inspect", path, "--json").json
    assert found["totals"]["macs"] == 654816
    assert found["patterns"]
    assert found["weights"]
    found = graphopt(
        "inspect", path, "--json", "--no-weights", "--no-patterns", "--op", "Conv", "--node", "conv[12]"
    ).json
    assert [node["name"] for node in found["nodes"]] == ["conv1", "conv2"]
    assert (found["weights"], found["patterns"], found["totals"]["zeros"]) == (None, None, None)
    done = graphopt("inspect", path, "--csv")
    assert done.out.splitlines()[0].startswith("name,op,inputs")
    assert len(done.out.splitlines()) == 22
    assert graphopt("inspect", path, "--csv", "--json").code == 2
    assert graphopt("inspect", path, "--op", "Nope").code == 2
    assert "weights not read" in graphopt("inspect", path, "--no-weights").out


def test_an_artifact_is_inspected_too(digits: ir.Model, tmp_path: Path, graphopt) -> None:
    path = save(digits, tmp_path / "digits.onnx")
    assert graphopt("compile", path, "--target", "llvm", "-O2", "-o", tmp_path / "d.gopt").code == 0
    assert graphopt("inspect", path, "--json").json["built"] is None
    found = graphopt("inspect", tmp_path / "d.gopt", "--json").json
    assert "BatchNormalization" not in found["ops"]
    assert found["totals"]["macs"] == 654816
    assert found["built"]["passes"][-1] == "fold-batch-norm"
    assert found["built"]["target"].startswith("llvm")
    together = next(nodes for nodes in found["built"]["together"] if "conv2" in nodes)
    assert "relu2" in together
    done = graphopt("inspect", tmp_path / "d.gopt")
    assert "compiled for llvm after " in done.out
    assert "computed together: " in done.out


def test_an_npu_artifact_says_what_stayed_on_the_cpu(digits: ir.Model, tmp_path: Path, graphopt) -> None:
    path = save(digits, tmp_path / "digits.onnx")
    assert graphopt("compile", path, "--target", "npu", "--dim", "N=1", "-O2", "-o", tmp_path / "d.gopt").code == 0
    built = graphopt("inspect", tmp_path / "d.gopt", "--json").json["built"]
    assert "conv1" in built["left"]
    assert built["together"]


def large(folder: Path) -> Path:
    """A chain of 35 products with 64 MiB of weights each, 2.3 GB of zeros in a file with holes."""
    nbytes, count = 4096 * 4096 * 4, 35
    nodes, weights = [], []
    for index in range(count):
        tensor = onnx.TensorProto(name=f"w{index}", data_type=1, dims=[4096, 4096], data_location=1)
        for key, value in (("location", "weights.bin"), ("offset", index * nbytes), ("length", nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        weights.append(tensor)
        nodes.append(onnx.helper.make_node("MatMul", [f"v{index}", f"w{index}"], [f"v{index + 1}"], name=f"m{index}"))
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["N", 4096]) for name in ("v0", f"v{count}")]
    graph = onnx.helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with open(folder / "weights.bin", "wb") as file:
        file.truncate(count * nbytes)
    (folder / "large.onnx").write_bytes(model.SerializeToString())
    return folder / "large.onnx"


PEAK = """
import re, sys, time
from pathlib import Path
from graphopt import cli
start = time.process_time()
try:
    cli.main()
except SystemExit:
    pass
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(time.process_time() - start, int(peak[1]) / 1024, file=sys.stderr)
"""
# Not getrusage: its ru_maxrss starts with that of the process which forked.


def cost_of(*arguments: object) -> tuple[str, float, float]:
    """Standard output, seconds of CPU time, and peak memory in MiB of a graphopt command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, arguments)],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    seconds, peak = done.stderr.split()[-2:]
    return done.stdout, float(seconds), float(peak)


def test_large_external_weights_are_not_read(tmp_path: Path) -> None:
    out, seconds, peak = cost_of("inspect", large(tmp_path), "--json")
    assert seconds < 5
    assert peak < 500
    found = json.loads(out)
    assert found["totals"]["parameters"] == 35 * 4096 * 4096
    assert found["weights"] is None


@pytest.mark.slow
def test_large_external_weights_are_read_in_little_memory(tmp_path: Path) -> None:
    out, _, peak = cost_of("inspect", large(tmp_path), "--weights", "--json")
    assert peak < 500
    assert all(w["zeros"] == 1 for w in json.loads(out)["weights"])
    assert len(json.loads(out)["weights"]) == 35


def test_external_weights_outside_the_models_folder_are_refused(tmp_path: Path, graphopt) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = large(folder)
    path.write_bytes(path.read_bytes().replace(b"weights.bin", b"../tell.bin"))
    (tmp_path / "tell.bin").write_bytes(b"secret")
    done = graphopt("inspect", path)
    assert done.code == 3
    assert "outside the model's folder" in done.err
