"""Link an executable to the bytes of a shared library."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from graphopt.errors import LoweringError

WAY_OUT = "install g++ or clang (Debian: `apt install g++`), or name one in the environment variable CXX"


def linker(triple: str) -> str | None:
    """The C++ compiler driver that links for `triple`: the machine's own, or a cross compiler named after it."""
    from tvm.support import cc

    from graphopt.targets.llvm.cpu import machine_triple

    if triple == machine_triple():
        return cc.get_cc()
    return shutil.which(f"{triple}-g++") or shutil.which(f"{triple}-gcc")


def to_library(executable: Any, triple: str) -> bytes:
    """The shared library that holds `executable`'s machine code and its virtual machine program.

    Raises:
        LoweringError: if there is no linker for `triple`, or it fails.
    """
    from tvm.support import cc

    command = linker(triple)
    if command is None:
        raise LoweringError(f"No linker for {triple} was found: {WAY_OUT}; for another architecture, its cross g++.")

    def link(output: str, objects: list[str], **options: Any) -> None:
        cc.create_shared(output, objects, options=options.get("options"), cc=command)

    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "model.so"
        try:
            executable.export_library(str(path), fcompile=link, workspace_dir=folder)
        except RuntimeError as error:
            raise LoweringError(f"{command} could not link the compiled model: {error}") from error
        return path.read_bytes()
