"""``graphopt report``, ``--html`` and ``graphopt view`` as a user meets them."""

import json
import re
from pathlib import Path

import pytest


def data_of(path: Path) -> dict:
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_report_of_an_artifact_times_kernels_and_finds_errors(model: Path, tmp_path: Path, graphopt):
    out, page, other = tmp_path / "m.gopt", tmp_path / "page.html", tmp_path / "compiled.html"
    done = graphopt(
        "compile", model, "--target", "llvm", "-p", "prune-magnitude{sparsity=0.5}", "-o", out, "--html", other,
        "--keep-source",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "compiled.html" in done.out
    done = graphopt("report", out, "-o", page, "--seconds", 0.05, "--json")
    assert done.code == 0, done.err
    assert done.json["bytes"] == page.stat().st_size
    (note,) = done.json["notes"]
    assert "random" in note
    for path in (page, other):
        found = data_of(path)
        assert found["two"]
        assert found["layers"][0][1] > 0
        assert found["layers"][0][4] > 0  # onnxruntime's
        assert sum(layer[2] for layer in found["layers"]) == pytest.approx(1)
        assert any(item.get("e", [0] * 5)[4] > 0.05 for item in found["items"])
    assert "Which layer costs most?" in page.read_text()


def test_report_without_measuring_says_so(model: Path, tmp_path: Path, graphopt):
    out = tmp_path / "m.gopt"
    assert graphopt("compile", model, "-o", out).code == 0
    done = graphopt("report", out, "-o", tmp_path / "p.html", "--seconds", 0.05)
    assert "the artifact was made without them (graphopt compile --keep-source)" in done.err
    found = data_of(tmp_path / "p.html")
    assert found["layers"][0][4] > 0  # timed all the same
    assert not any("e" in item for item in found["items"])
    done = graphopt("report", out, "-o", tmp_path / "p.html", "--no-measure")
    assert done.code == 0, done.err
    assert "nothing was measured" in done.err
    assert data_of(tmp_path / "p.html")["layers"] == []


def test_report_of_two_models_and_of_one(model: Path, plugin: Path, tmp_path: Path, graphopt):
    after = tmp_path / "after.onnx"
    done = graphopt(
        "opt", model, "-p", "relu-to-max", "--plugin", plugin, "-o", after, "--html", tmp_path / "opt.html", "--json"
    )
    assert done.code == 0, done.err
    assert done.json["passes"][0]["facts"]["totals"]["nodes"] == 3
    for page in ("opt.html", "two.html"):
        if page == "two.html":
            assert graphopt("report", model, after, "-o", tmp_path / page).code == 0
        changed = [item for item in data_of(tmp_path / page)["items"] if item["s"] != "same"]
        assert [item["o"] for item in changed] == ["Max"]
    assert graphopt("report", model, "-o", tmp_path / "one.html").code == 0
    assert not data_of(tmp_path / "one.html")["two"]


def test_mistakes_are_told_before_work_begins(model: Path, tmp_path: Path, graphopt):
    done = graphopt("report", model, "-o", tmp_path / "none" / "p.html")
    assert (done.code, "no folder" in done.err) == (2, True)
    done = graphopt("opt", model, "-o", tmp_path / "o.onnx", "--html", tmp_path / "none" / "p.html")
    assert done.code == 2
    assert not (tmp_path / "o.onnx").exists()
    assert graphopt("report", tmp_path / "no.gopt").code == 7
    assert graphopt("report", tmp_path / "no.onnx").code == 3
    assert graphopt("view", tmp_path / "no.onnx", "--no-browser").code == 3


def test_view_names_other_viewers_that_are_installed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from graphopt.cli.report import viewers

    program = tmp_path / "netron"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert viewers(Path("a b.onnx")) == ["netron 'a b.onnx'"]
    assert viewers(Path("a.gopt")) == []
