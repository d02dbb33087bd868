"""What a wheel holds: every package, and the files that packages read."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = {
    "graphopt": "graphopt",
    "passes": "graphopt.passes",
    "targets": "graphopt.targets",
    "models": "graphopt.models",
}
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def folders() -> dict[str, Path]:
    """Package -> folder, of all that is here."""
    found = {}
    for room, package in ROOMS.items():
        for init in (ROOT / room).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / room)
            if not any((ROOT / room).joinpath(*inside.parts[: n + 1]).is_symlink() for n in range(len(inside.parts))):
                found[".".join([package, *inside.parts])] = init.parent
    return found


def test_every_package_is_in_the_wheel():
    assert sorted(folders()) == sorted(SETUPTOOLS["packages"])


def test_the_pages_own_files_are_in_the_wheel():
    held = {
        path
        for pattern in SETUPTOOLS["package-data"]["graphopt.report"]
        for path in (ROOT / "graphopt/report").glob(pattern)
    }
    assert held == {
        path for path in (ROOT / "graphopt/report").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }
