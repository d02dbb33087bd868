import os

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads spin while they wait; pytest -n has all cores busy


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))
