"""The fuzzer: its graphs are what it says, it finds and reduces a planted bug, goes on where it stopped."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from graphopt import oracle
from graphopt.debug.checks import GOOD
from graphopt.graph import load, to_bytes
from graphopt.testing import fuzz, fuzz_ways, random_feeds
from graphopt.testing.random_blocks import BLOCKS
from graphopt.testing.random_graphs import build, random_graph

COMMAND = [sys.executable, "-m", "graphopt.testing.fuzz"]


def test_graphs_of_a_seed_run_and_hold_what_is_promised():
    ops: Counter[str] = Counter()
    opsets: Counter[int] = Counter()
    features: Counter[str] = Counter()
    for seed in range(80):
        model = random_graph(seed)
        for size in fuzz_ways.SIZES:
            outputs = oracle.run(model, random_feeds(model, seed, size))
            assert all(np.isfinite(a.astype(np.float64)).all() for a in outputs.values()), seed
        ops.update({node.op_type for node in model.graph.all_nodes()})
        opsets[model.opset_imports[""]] += 1
        x = model.graph.inputs[0]
        features["open image"] += not isinstance(x.shape[2], int)
        features["float16"] += x.dtype.name == "FLOAT16"
    wanted = ["Conv", "BatchNormalization", "ConvTranspose", "If", "Loop", "LSTM", "GRU", "Softmax", "Pad", "Split"]
    assert all(ops[op] >= 3 for op in [*wanted, "DequantizeLinear", "LayerNormalization", "Concat"]), ops
    assert {"Resize", "SpaceToDepth", "DepthToSpace", "InstanceNormalization", "Erf", "Where"} <= set(ops)
    assert len(opsets) >= 8
    assert features["open image"] > 10
    assert features["float16"] > 5
    assert to_bytes(random_graph(7)) == to_bytes(random_graph(7))


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_in_every_form_runs(name: str):
    for b in range(4):
        for a in range(4):
            steps = [("norm", 1, 1), ("resize", 0, 0), (name, a, b), ("conv", 1, 1), (name, b, a)]
            for opset, opened in ((13, False), (21, True)):
                model = build(steps, 3, "float32", opset, 1, False, opened)
                oracle.run(model, random_feeds(model, 0, fuzz_ways.SIZES[0]))


@pytest.mark.parametrize(("way", "graphs"), [("O3", 40), ("passes", 4), ("llvm", 1), ("npu", 3)])
def test_fixed_seeds(way: str, graphs: int):
    for seed in range(graphs):
        verdict = fuzz_ways.judge(random_graph(seed), way, seed)
        assert verdict.bad is False, (seed, verdict)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "graphs"), [("O3", 1000), ("passes", 60), ("llvm", 60), ("int8", 30), ("npu", 30)])
def test_more_fixed_seeds(way: str, graphs: int):
    for seed in range(1000, 1000 + graphs):
        verdict = fuzz_ways.judge(random_graph(seed), way, seed)
        assert verdict.bad is False, (seed, verdict)


@pytest.mark.slow
def test_more_fixed_seeds_of_small_graphs_as_cuda():
    for seed in range(1000, 1010):
        verdict = fuzz_ways.judge(random_graph(seed, most_steps=3), "cuda", seed)
        assert verdict.bad is False or verdict.how == "refused", (seed, verdict)


def test_a_model_that_runs_as_float_throughout_need_not_cut_values_off():
    """Found by the way int8: of seed 30044 one part runs on integers, the other does not."""
    verdict = fuzz_ways.judge(random_graph(30044), "int8", 30044)
    assert verdict.bad is False, verdict


def test_a_wrong_number_is_found(monkeypatch: pytest.MonkeyPatch):
    """The way O3, with a folding that forgets the epsilon."""
    from graphopt.passes.fold_batch_norm import FoldBatchNorm

    whole = FoldBatchNorm.apply

    def forgetful(self, model, context):
        for node in model.graph:
            if node.op_type == "BatchNormalization":
                node.attributes.pop("epsilon", None)
        return whole(self, model, context)

    monkeypatch.setattr(FoldBatchNorm, "apply", forgetful)
    found = [fuzz_ways.judge(random_graph(seed), "O3", seed) for seed in range(12)]
    wrong = [verdict for verdict in found if verdict.bad]
    assert wrong
    assert all(verdict.how == "O3: numbers" for verdict in wrong)


PLANTED = """
import os, sys
from graphopt.testing import fuzz, fuzz_ways
from graphopt.debug.checks import GOOD, Verdict

def planted(model, feeds, wanted, seed):
    ops = {node.op_type for node in model.graph}
    if seed == 4:
        os.abort()
    return Verdict(True, "planted", "a Conv before a Relu") if {"Conv", "Relu"} <= ops else GOOD

fuzz_ways.WAYS["planted"] = fuzz.WAYS["planted"] = planted
if __name__ == "__main__":
    sys.exit(fuzz.main())
"""


def test_what_fails_is_reduced_and_kept_and_a_crash_is_one_graphs(tmp_path: Path):
    script = tmp_path / "planted.py"
    script.write_text(PLANTED)
    done = subprocess.run(
        [sys.executable, str(script), "--graphs", "8", "--ways", "planted", "--found", str(tmp_path / "f"), "--json"],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert done.returncode == 1
    assert said["graphs"] == 8
    assert said["go_on"] is None
    results = {row["seed"]: row for row in said["found"]}
    reduced = [row for row in results.values() if "reduced_to" in row]  # not: where a node that nobody reads is in it
    assert len(reduced) >= 2
    for row in reduced:
        assert {"Conv", "Relu"} <= {node.op_type for node in load(row["file"]).graph}
        assert row["reduced_to"] == 2
        assert row["again"].endswith(f"--ways planted --seed {row['seed']}")
    assert results[4]["result"] == "crashed (-6)"
    assert Path(results[4]["file"]).is_file()


def test_ctrl_c_says_where_to_go_on(tmp_path: Path):
    process = subprocess.Popen(
        [*COMMAND, "--graphs", "5000", "--seed", "40", "--ways", "O3", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=6)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    said = json.loads(out)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert said["go_on"] == f"--seed {40 + said['graphs']} --graphs {5000 - said['graphs']}"


def test_the_models_of_a_folder_are_judged(tmp_path: Path):
    from graphopt.graph import save

    folder = tmp_path / "models"
    folder.mkdir()
    for seed in (1, 2):
        save(random_graph(seed), folder / f"m{seed}.onnx")
    (folder / "z.onnx").write_bytes(b"no model")
    done = subprocess.run(
        [*COMMAND, "--models", str(folder), "--ways", "O3", "--json", "--found", str(tmp_path / "f")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert done.returncode == 1
    assert said["ways"] == {"O3": {"passes": 2, "not read": 1}}
    (row,) = said["found"]
    assert (row["model"], row["result"]) == (str(folder / "z.onnx"), "not read")
    assert "is not an ONNX model" in row["message"]
    done = subprocess.run([*COMMAND, "--models", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no .onnx files" in done.stderr


def test_a_file_again_and_mistakes(tmp_path: Path):
    from graphopt.graph import save

    path = save(random_graph(1), tmp_path / "m.onnx")
    done = subprocess.run([*COMMAND, str(path), "--ways", "O3"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "O3: passes\n")
    done = subprocess.run([*COMMAND, "--ways", "O4"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no way 'O4'" in done.stderr
    done = subprocess.run([*COMMAND, str(tmp_path / "no.onnx")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert fuzz.DEFAULT == "O3,passes"
    assert GOOD.bad is False
