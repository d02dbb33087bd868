"""A new pass as a package of its own: the pass, its tests, the entry point by which graphopt finds it."""

from __future__ import annotations

import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template

from graphopt.errors import UsageError

FILES = {
    "pyproject.toml": "pyproject.toml.template",
    "README.md": "README.md.template",
    "src/$module/__init__.py": "init.py.template",
    "src/$module/rewrite.py": "rewrite.py.template",
    "src/$module/py.typed": None,
    "tests/test_$module.py": "test.py.template",
}
"""Path in the new folder -> template; None: an empty file."""


def new_pass(name: str, folder: str | Path | None = None) -> list[Path]:
    """Write a package with a working pass called `name` to `folder` (default: `name`); the files written.

    Raises:
        UsageError: not a kebab-case name, that of a pass there is already, or the folder exists and is not empty.
    """
    from graphopt.pipeline import pass_names

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"{name!r} is not a kebab-case name, such as fuse-double-relu.")
    if name in pass_names():
        raise UsageError(f"there is a pass {name!r} already: see graphopt passes.")
    folder = Path(folder if folder is not None else name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder: name another one with -o.")
    words = name.split("-")
    names = {"name": name, "module": "_".join(words), "cls": "".join(map(str.capitalize, words))}
    if keyword.iskeyword(names["module"]):
        raise UsageError(f"{name!r} is a keyword of Python, so no module can be called so.")
    written: list[Path] = []
    for path, template in FILES.items():
        target = folder / Template(path).substitute(names)
        text = "" if template is None else (resources.files(__name__) / template).read_text(encoding="utf-8")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(Template(text).substitute(names), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"can't write {target}: {error.strerror or error}.") from error
        written.append(target)
    return written
