import json
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import cli
from graphopt.graph import save
from graphopt.pipeline import load_plugin
from graphopt.testing import from_text

PLUGIN = Path(__file__).parent / "broken_passes.py"


@pytest.fixture
def plugin() -> Path:
    """The file of small passes, loaded."""
    load_plugin(PLUGIN)
    return PLUGIN


@pytest.fixture
def small() -> ir.Model:
    """Conv, Relu, Conv with weights from a seed."""
    rng = np.random.default_rng(0)
    return from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        small (float[N,2,6,6] x, float[3,2,3,3] w1, float[2,3,1,1] w2) => (float[N,2,4,4] y) {
            a = Conv(x, w1)
            b = Relu(a)
            y = Conv(b, w2)
        }
        """,
        w1=rng.standard_normal((3, 2, 3, 3)).astype(np.float32),
        w2=rng.standard_normal((2, 3, 1, 1)).astype(np.float32),
    )


class Done:
    """What a command printed and returned."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> object:
        return json.loads(self.out)


@pytest.fixture
def graphopt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["graphopt", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        code = stopped.value.code
        out = capsys.readouterr()
        return Done(code if isinstance(code, int) else int(code is not None), out.out, out.err)

    return call


@pytest.fixture
def model(small: ir.Model, tmp_path: Path) -> Path:
    return save(small, tmp_path / "small.onnx")
