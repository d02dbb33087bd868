"""Examples in README and docs are run: what the pages say is what happens."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [text for name, text in found if name == language]


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """The pass of the page, saved as it says."""
    path = tmp_path / "fuse_double_relu.py"
    path.write_text(blocks(DOCS / "writing-passes.md", "python")[0])
    return path


def test_the_pass_is_about_twenty_lines(plugin: Path):
    code = [line for line in plugin.read_text().splitlines() if line.strip()]
    assert len(code) <= 30


def test_the_pages_own_tests_pass(plugin: Path):
    test = plugin.with_name("test_fuse_double_relu.py")
    test.write_text(blocks(DOCS / "writing-passes.md", "python")[1])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)],
        cwd=plugin.parent, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_pages_tests_on_random_graphs_and_models_pass(plugin: Path):
    test = plugin.with_name("test_random.py")
    test.write_text(blocks(DOCS / "writing-passes.md", "python")[2])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)],
        cwd=plugin.parent, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_commands_for_pass_authors(workplace, plugin: Path):
    lines = [line for block in blocks(DOCS / "writing-passes.md", "") for line in block.splitlines()]
    assert sum(line.startswith("graphopt reduce") for line in lines) == 2
    for line in lines:
        if not line.startswith("graphopt reduce"):  # there is nothing to reduce here, and no my-check: see test_reduce
            assert workplace(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path):
    """Paths in backquotes, as far as they look like ours."""
    named = re.findall(r"`((?:graphopt|passes|targets|models|tests|docs)/[\w./-]*)`", page.read_text(encoding="utf-8"))
    missing = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert not missing


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A folder with the files that the examples speak of; gives the function that runs a command line in it."""
    from graphopt import cli, models

    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(models.get("digits").path().read_bytes())
    (tmp_path / "before.onnx").write_bytes((tmp_path / "model.onnx").read_bytes())
    samples = [feeds["image"] for feeds in models.get("digits").calibration()]
    for name in ("samples.npz", "data.npz"):
        np.savez(name, image=np.concatenate(samples))
    np.savez("x.npz", image=samples[0])

    def run(line: str) -> str:
        words = shlex.split(line, comments=True)
        assert words[0] == "graphopt"
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        assert stopped.value.code in (0, None), f"{line}: {printed.err}"
        return printed.out

    return run


def test_the_commands_of_the_readme(workplace, tmp_path: Path):
    (example,) = (block for block in blocks(ROOT / "README.md", "") if "graphopt inspect" in block)
    for line in example.splitlines():
        if line.startswith("graphopt diff"):
            (tmp_path / "after.onnx").write_bytes((tmp_path / "faster.onnx").read_bytes())
        assert workplace(line + (" --seconds 0.2" if line.startswith("graphopt bench") else ""))
    for made in ("faster.onnx", "int8.onnx", "pruned.onnx", "model.gopt", "y.npz"):
        assert (tmp_path / made).stat().st_size > 0


def test_the_commands_of_the_quantization_page(workplace, tmp_path: Path):
    from graphopt.models.digits import data

    images, labels = data()
    np.savez(tmp_path / "labelled.npz", image=images[:100], labels=labels[:100])
    for example in blocks(DOCS / "quantization.md", ""):
        for line in example.splitlines():
            assert workplace(line)
    names = ("model", "int8", "dynamic", "small", "again")
    sizes = {name: (tmp_path / f"{name}.onnx").stat().st_size for name in names}
    assert sizes["small"] < sizes["int8"] < 0.4 * sizes["model"]
    assert sizes["dynamic"] < 0.4 * sizes["model"]


def test_the_commands_of_the_reporting_page(workplace, tmp_path: Path):
    (example,) = blocks(DOCS / "reporting.md", "")
    for line in example.splitlines():
        assert workplace(line.replace(" -o report.html", " --seconds 0.1 -o report.html"))
    for name in ("compiled", "report", "opt", "two", "one"):
        assert (tmp_path / f"{name}.html").read_text().startswith("<!DOCTYPE html>")


def test_the_commands_of_the_inspecting_page(workplace):
    (example,) = blocks(DOCS / "inspecting.md", "")
    printed = {line.split("#")[0].strip(): workplace(line + (" --seconds 0.1" if "bench" in line else ""))
               for line in example.splitlines()}  # fmt: skip
    assert "fused     conv1 (Conv) <- conv1, bn1" in printed["graphopt diff model.onnx faster.onnx"]
    (compared,) = (text for line, text in printed.items() if " compare " in line)
    assert "insert-qdq" in compared
    assert all(printed.values())


def test_the_commands_of_the_pruning_page(workplace, tmp_path: Path):
    from graphopt.models.digits import data

    images, labels = data()
    np.savez(tmp_path / "labelled.npz", image=images[:200], labels=labels[:200])
    for example in blocks(DOCS / "pruning.md", ""):
        for line in example.splitlines():
            searched = line.startswith("graphopt prune")
            assert workplace(line + " --tries 1 --max-drop 0.5" * searched)
            if not searched:  # a busy machine may find nothing faster
                assert (tmp_path / "small.onnx").stat().st_size < 0.7 * (tmp_path / "model.onnx").stat().st_size


def test_the_python_of_the_readme(workplace, tmp_path: Path):
    (example,) = blocks(ROOT / "README.md", "python")
    example = example.replace('"input"', '"image"')  # what the digits model calls it
    names = {"array": np.load("x.npz")["image"]}
    exec(example, names)
    assert names["outputs"]["logits"].shape == (len(names["array"]), 10)
    assert (tmp_path / "model.gopt").exists()


def test_the_command_of_the_npu_page(workplace, tmp_path: Path):
    text = (DOCS / "npu.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"`(graphopt compile [^`]*)`", text)
    assert "--dim N=1" in command
    workplace(" ".join(command.split()))
    from graphopt.artifact import read

    report = read(tmp_path / "model.gopt").report["target"]["npu"]
    assert report["nodes"]
    assert report["cycles"] > 0


def test_the_passes_and_exit_codes_of_the_readme():
    from graphopt import errors
    from graphopt.pipeline.registry import PASSES, TARGETS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in [*PASSES, *TARGETS] if f"`{name}" not in text]
    codes = dict(re.findall(r"(\d+) (usage|model|data|pass|lowering|artifact|fetch|host)", text))
    kinds = {cls.__name__.removesuffix("Error").lower(): cls.exit_code for cls in errors.GraphoptError.__subclasses__()}
    assert {kind: int(code) for code, kind in codes.items()} == kinds
