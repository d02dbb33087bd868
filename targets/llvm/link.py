"""Link an executable to the bytes of a shared library."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from graphopt.errors import HostError

WAY_OUT = "install g++ or clang (Debian: `apt install g++`), or name one in the environment variable CXX"
ROOM = 16 << 20
"""Bytes that object files, the library and what the linker keeps beside them may take."""


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
        HostError: if there is no linker for `triple`, or it fails; or no room for temporary files.
    """
    from tvm.support import cc

    command = linker(triple)
    if command is None:
        raise HostError(f"No linker for {triple} was found: {WAY_OUT}; for another architecture, its cross g++.")

    def link(output: str, objects: list[str], **options: Any) -> None:
        cc.create_shared(output, objects, options=options.get("options"), cc=command)

    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "model.so"
        _check_room(Path(folder))
        try:
            executable.export_library(str(path), fcompile=link, workspace_dir=folder)
        except (RuntimeError, OSError) as error:
            raise HostError(
                f"{command} could not link the compiled model: {' '.join(str(error).split())[:600]}"
            ) from error
        return path.read_bytes()


def _check_room(folder: Path) -> None:
    """LLVM ends the process where it can't write its object files: find out before it does."""
    probe = folder / "probe"
    try:
        with open(probe, "wb") as file:
            for _ in range(ROOM >> 20):
                file.write(bytes(1 << 20))
    except OSError as error:
        raise HostError(
            f"there is no room for the {ROOM >> 20} MB of temporary files that compiling takes: {error.strerror} in "
            f"{folder.parent}. Make room there, or name another folder in the environment variable TMPDIR."
        ) from error
    finally:
        probe.unlink(missing_ok=True)
