"""Examples in docs are run: what the page says is what happens."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """The pass of the page, saved as it says."""
    path = tmp_path / "fuse_double_relu.py"
    path.write_text(blocks("writing-passes.md", "python")[0])
    return path


def test_the_pass_is_about_twenty_lines(plugin: Path):
    code = [line for line in plugin.read_text().splitlines() if line.strip()]
    assert len(code) <= 30


def test_the_pages_own_tests_pass(plugin: Path):
    test = plugin.with_name("test_fuse_double_relu.py")
    test.write_text(blocks("writing-passes.md", "python")[1])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)],
        cwd=plugin.parent, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout + done.stderr
