import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import report
from graphopt.testing import from_text

HEADER = '<ir_version: 10, opset_import: ["": 20]>'


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory):
    """A headless browser for the session (see browser.py); the tests that use it skip where there is none."""
    spec = importlib.util.spec_from_file_location("graphopt_test_browser", Path(__file__).with_name("browser.py"))
    browser = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(browser)
    with browser.chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="session")
def hostile() -> str:
    """A name that would run code if it ever became markup."""
    return "</script><img src=x onerror=\"document.title='owned'\"><!--data-->"


@pytest.fixture(scope="session")
def network():
    """Makes the small network anew."""
    return _network


def _network() -> ir.Model:
    """Two convolutions with batch normalization, one in a block ``stage/a``, and a branch."""
    rng = np.random.default_rng(0)
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    return from_text(
        f"""{HEADER} net (float[N,3,8,8] x, float[4,3,3,3] w, float[4] one, float[4] zero, float[4,4,1,1] v)
            => (float[N,4,8,8] y) {{
        [conv1] a = Conv<pads=[1,1,1,1]>(x, w)
        [bn1] b = BatchNormalization(a, one, zero, zero, one)
        [relu1] c = Relu(b)
        [conv2] d = Conv(c, v)
        [bn2] e = BatchNormalization(d, one, zero, zero, one)
        [add] f = Add(e, c)
        [relu2] y = Relu(f)
        }}""",
        w=rng.standard_normal((4, 3, 3, 3), np.float32),
        v=rng.standard_normal((4, 4, 1, 1), np.float32),
        one=ones,
        zero=zeros,
    )


@pytest.fixture(scope="session")
def result():
    """The network before and after two passes."""
    from graphopt.api import open_model, run_pipeline

    before = open_model(_network())
    return before, run_pipeline(before, "fold-batch-norm,prune-magnitude{sparsity=0.4}")


@pytest.fixture(scope="session")
def evidence(result):
    before, done = result
    return report.of_result("net.onnx", before, done)
