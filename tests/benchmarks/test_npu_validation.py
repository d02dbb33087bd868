"""The NPU's validation: stored references are whole, and the claims of docs/npu-validation.md hold on this code."""

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
VERSIONS = {"ethos-u-vela": "5.2.0", "scalesim": "3.0.0", "zigzag-dse": "3.9.1"}


@pytest.fixture
def validation(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "npu"))
    import npu_validation

    return npu_validation


def test_every_reference_names_its_tool_and_version() -> None:
    files = sorted((BENCHMARKS / "references").glob("*.json"))
    assert len(files) == 23
    for file in files:
        stored = json.loads(file.read_text())
        assert VERSIONS[stored["head"]["tool"]] == stored["head"]["version"]
        assert stored["layers"]


def test_a_rank_correlation_by_hand(validation) -> None:
    assert validation.spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert validation.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert validation.spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9487, abs=1e-4)


def test_layers_are_classed_by_what_bounds_them(validation) -> None:
    def kind(operator: str, cycles: float, npu: float, weights: int) -> str:
        return validation.kind_of({"NNG Operator": operator, "Op Cycles": cycles, "NPU": npu}, weights)

    assert kind("Conv2D", 100, 100, 80) == "compute"
    assert kind("Conv2D", 101, 100, 80) == "dma"  # memory outlasts the array
    assert kind("Conv2D", 100, 100, 90) == "dma"  # a byte of weights per cycle takes nearly as long
    assert kind("FullyConnected", 100, 100, 1) == "dense"


def test_systolic_cycles_are_scale_sims(validation, monkeypatch) -> None:
    monkeypatch.setattr(validation, "SYSTOLIC", ("32-os", "256-ws"))
    for row in validation.systolic(["resnet18"]):
        assert row["equal"] == row["layers"] == 21


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet-v2", "resnet18", "resnet50", "efficientnet-lite0", "squeezenet"])
def test_the_edge_machine_is_near_vela(validation, name: str) -> None:
    rows = {row["kind"]: row for row in validation.summary(validation.edge([name]))}
    assert rows["compute"]["median"] < 0.05
    assert rows["compute"]["p90"] < 0.2
    assert abs(rows["all"]["total"]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet-v2", "resnet50", "efficientnet-lite0", "squeezenet"])
def test_energy_ranks_layers_as_zigzag_does(validation, name: str) -> None:
    (row,) = validation.energy([name])
    assert row["spearman"] > 0.9
