"""Calibration as a step of its own: streamed, in constant memory, saved, and refused where it is stale."""

import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from graphopt.base import Context
from graphopt.cli.app import app
from graphopt.data import Batches, open_data
from graphopt.errors import DataError, UsageError
from graphopt.graph import load, save
from graphopt.graph.digest import digest
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.passes.quant.calibrate import calibrate
from graphopt.passes.quant.rules import known, load_rules
from graphopt.passes.quant.saved import load_statistics, save_statistics
from graphopt.testing import apply, from_text, op_types

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[n,3,h,w] x, float[6,3,3,3] w1, float[6] b1, float[4,6,1,1] w2) => (float[n,4,p,q] y) {
  a = Conv (x, w1, b1)
  r = Relu (a)
  y = Conv (r, w2)
}
"""


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model():
    return from_text(TEXT, w1=normal(6, 3, 3, 3), b1=normal(6, seed=1), w2=normal(4, 6, 1, 1, seed=2))


def ragged(count=6):
    """Batches of other sizes, heights and widths each."""
    return [{"x": normal(1 + k % 3, 3, 8 + k, 12 - k, seed=k)} for k in range(count)]


def test_batches_of_any_size_and_shape():
    m = model()
    value = m.graph.node(1).outputs[0]
    seen = calibrate(m, [m.graph.inputs[0], value], Batches(ragged))
    every = np.concatenate([feeds["x"].ravel() for feeds in ragged()])
    assert (seen[m.graph.inputs[0]].low, seen[m.graph.inputs[0]].high) == (every.min(), every.max())
    assert seen[m.graph.inputs[0]].counts.sum() == every.size
    assert seen[value].low == 0


def test_memory_is_constant_in_the_number_of_samples(tmp_path):
    """100 and 1,000 samples of a file that is streamed."""
    m, peaks = model(), []
    for count in (100, 1000):
        np.savez(tmp_path / f"{count}.npz", x=np.ones((count, 3, 16, 16), np.float32))
        tracemalloc.start()
        InsertQdq().gather(m, open_data(tmp_path / f"{count}.npz", m))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] + 100_000
    assert peaks[1] < 1000 * 3 * 16 * 16 * 4


def test_saved_statistics_make_the_same_file(tmp_path):
    m = model()
    save_statistics(tmp_path / "stats.json", m, InsertQdq().gather(m, Batches(ragged)))
    direct, _ = apply(InsertQdq(), m, Context(calibration=Batches(ragged)))
    saved, _ = apply(InsertQdq(statistics=str(tmp_path / "stats.json")), m)
    for name, result in (("a", direct), ("b", saved)):
        ir.save(result, tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_same_files_from_another_process(tmp_path):
    """Byte for byte, the quantized model and the artifact, whatever the order of Python's sets."""
    code = """
import sys, numpy, graphopt
from graphopt import models
from graphopt.graph import save
from graphopt.pipeline import PRESETS
image = numpy.concatenate([feeds["image"] for feeds in models.get("digits").calibration()])[:24]
data = {"image": image}
for preset, pipeline in PRESETS.items():
    if preset.startswith("int"):
        model = graphopt.optimize(models.get("digits").path(), pipeline, calibration=data, verify=False)
        save(model, f"{sys.argv[1]}-{preset}.onnx")
program = graphopt.compile(models.get("digits").path(), "llvm", PRESETS["int8"], calibration=data, verify=False)
program.save(sys.argv[1] + ".gopt")
"""
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    names = ["-int8.onnx", "-int8-dynamic.onnx", "-int4-weights.onnx", ".gopt"]
    for name in names:
        assert (tmp_path / f"1{name}").read_bytes() == (tmp_path / f"2{name}").read_bytes(), name


def test_stale_damaged_and_missing_statistics_are_refused(tmp_path):
    m, path = model(), tmp_path / "stats.json"
    with pytest.raises(DataError, match="graphopt calibrate"):
        load_statistics(path, m)
    save_statistics(path, m, InsertQdq().gather(m, Batches(ragged)))
    other = model()
    other.graph.initializers["w1"].const_value = ir.tensor(normal(6, 3, 3, 3, seed=9), name="w1")
    with pytest.raises(DataError, match="belong to another model"):
        apply(InsertQdq(statistics=str(path)), other)
    content = json.loads(path.read_text())
    del content["values"]["r"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="lack r"):
        apply(InsertQdq(statistics=str(path)), m)
    content["values"]["x"]["counts"] = "!"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="not a statistics file"):
        load_statistics(path, m)
    path.write_text("[]")
    with pytest.raises(DataError, match="not a statistics file"):
        load_statistics(path, m)


def test_the_command_and_the_pipeline_that_uses_it(tmp_path):
    save(model(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=normal(20, 3, 8, 8))
    runner = CliRunner()
    stats, data, source = (str(tmp_path / name) for name in ("stats.json", "x.npz", "m.onnx"))
    pipeline = "fold-constants,insert-qdq"
    done = runner.invoke(app, ["calibrate", source, "-o", stats, "--calibration", data, "-p", pipeline])
    assert done.exit_code == 0, done.output
    assert "2 values" in done.output
    uses = f"fold-constants,insert-qdq{{statistics={stats}}}"
    done = runner.invoke(app, ["opt", source, "-o", str(tmp_path / "q.onnx"), "-p", uses])
    assert done.exit_code == 0, done.output
    assert op_types(load(tmp_path / "q.onnx")).count("QuantizeLinear") == 2
    done = runner.invoke(app, ["calibrate", source, "-o", stats, "--calibration", data, "-p", "fold-constants"])
    assert isinstance(done.exception, UsageError)


def test_the_digest_sees_weights_edges_and_attributes_and_not_provenance():
    one, two = model(), model()
    two.graph.node(0).metadata_props["graphopt.source"] = '["elsewhere"]'
    assert digest(one) == digest(two)
    two.graph.node(0).attributes["group"] = ir.AttrInt64("group", 1)
    assert digest(one) != digest(two)
    three = from_text(
        TEXT.replace("Relu", "Sigmoid"), w1=normal(6, 3, 3, 3), b1=normal(6, seed=1), w2=normal(4, 6, 1, 1, seed=2)
    )
    assert len({digest(m) for m in (one, two, three)}) == 3


@pytest.mark.parametrize("activations", ["uint16", "int16", "float8e4m3fn", "float8e5m2"])
def test_other_activations_run_in_onnxruntime(activations):
    from graphopt import oracle

    m, feeds = model(), {"x": normal(2, 3, 8, 8)}
    after, _ = apply(
        InsertQdq(activations=activations, observer="minmax"), m, Context(calibration=Batches(lambda: [feeds]))
    )
    want, got = oracle.run(m, feeds)["y"], oracle.run(after, feeds)["y"]
    bound = {"float8e4m3fn": 0.06, "float8e5m2": 0.12}.get(activations, 0.01)
    assert 0 < np.abs(want - got).max() < bound * np.ptp(want)


def test_one_scale_per_weight_where_asked():
    after, _ = apply(InsertQdq(per_channel=False), model(), Context(calibration=Batches(ragged)))
    shapes = [n.inputs[1].const_value.shape.rank() for n in after.graph if n.op_type == "DequantizeLinear"]
    assert sorted(shapes) == [0, 0, 0, 0, 1]  # the bias's scale is a vector by the standard


CONCAT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[n,2,6,6] x, float[2,2,1,1] w1, float[3,4,1,1] w3) => (float[n,3,6,6] y) {
  a = Conv (x, w1)
  c = Concat <axis = 1> (a, x)
  y = Conv (c, w3)
}
"""


def test_rules_are_data(tmp_path):
    """A target of one's own, whose Concat has a scale jointly with its inputs."""
    m = from_text(CONCAT, w1=normal(2, 2, 1, 1), w3=normal(3, 4, 1, 1, seed=1))
    data = Context(calibration=Batches(lambda: [{"x": normal(4, 2, 6, 6)}]))
    rules = tmp_path / "mine.toml"
    rules.write_text(
        'summary = "mine"\nweighted = ["Conv"]\nown_scale = ["Concat"]\nsame_scale = []\nall_inputs = ["Concat"]\n'
        'fused = []\njoint_scale = ["Concat"]\n'
    )
    scales = {}
    for target in ("llvm", str(rules)):
        after, _ = apply(InsertQdq(target=target), m, data)
        concat = next(n for n in after.graph if n.op_type == "Concat")
        reader = list(after.graph)[-1]
        scales[target] = {v.producer().inputs[1].name for v in (*concat.inputs, reader.inputs[0])}
    assert len(scales["llvm"]) == 3
    assert len(scales[str(rules)]) == 1
    gemm = from_text(
        '<ir_version: 8, opset_import: ["": 17]> g (float[n,3] x, float[3,4] w) => (float[n,4] y){ y = MatMul (x, w) }',
        w=normal(3, 4),
    )
    _, report = apply(InsertQdq(target=str(rules)), gemm, data)
    assert report.skipped[0].reason == "the target has no integer MatMul"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('summary = "mine"', "Field required"),
        ('weighted = ["Add"]\nown_scale = ["Add"]', "in two of"),
        ('weighted = []\nown_scale = []\nfused = ["Relu"]', "neither in"),
        ("weighted = [", "can't be read"),
    ],
)
def test_wrong_rules_are_refused(tmp_path, change, message):
    path = tmp_path / "mine.toml"
    whole = {
        "summary": '""',
        "weighted": "[]",
        "own_scale": "[]",
        "same_scale": "[]",
        "all_inputs": "[]",
        "fused": "[]",
    }
    rest = (
        ""
        if message == "Field required"
        else "".join(f"{k} = {v}\n" for k, v in whole.items() if f"{k} =" not in change)
    )
    path.write_text(f"{change}\n{rest}")
    with pytest.raises(UsageError, match=message):
        load_rules(str(path))
    with pytest.raises(UsageError, match="llvm, npu, onnxruntime"):
        load_rules("tpu")


def test_rules_that_were_edited_are_read_again(tmp_path):
    path = tmp_path / "mine.toml"
    empty = "".join(f"{key} = []\n" for key in ("own_scale", "same_scale", "all_inputs", "fused", "joint_scale"))
    for op in ("Conv", "Gemm"):
        path.write_text(f'summary = ""\nweighted = ["{op}"]\n{empty}')
        assert load_rules(str(path)).weighted == {op}


def test_the_rules_that_come_along_are_sound():
    assert known() == ["llvm", "npu", "onnxruntime"]
    for target in known():
        assert {"Conv", "Gemm", "MatMul"} <= load_rules(target).weighted
