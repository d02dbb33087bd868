"""Modules of others that are loaded when they are used, and not when they are imported.

onnx-ir imports sympy, which takes longer than all the rest, to compute with the names of open sizes; that is rare.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

NAMES = frozenset({"sympy", "onnx_ir._symbolic_shapes"})
_LOCK = threading.RLock()


class _Later(types.ModuleType):
    """Loads itself when it is asked for what it does not have yet; one thread loads, others wait for it.

    (The standard library's LazyLoader shows the half-loaded module to other threads before Python 3.12.)
    """

    def __getattr__(self, name: str) -> Any:
        with _LOCK:
            if "_loader_of_later" in self.__dict__:
                self.__dict__.pop("_loader_of_later").exec_module(self)
                self.__class__ = types.ModuleType  # pyright: ignore[reportAttributeAccessIssue]  # Python allows it for modules
            return types.ModuleType.__getattribute__(self, name)


class _Postponed(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Later(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["_loader_of_later"] = self.loader


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """As the usual finder, for `NAMES` alone."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname in NAMES else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Postponed(spec.loader)
        return spec


def postpone() -> None:
    """From now on the modules of `NAMES` are loaded when they are used."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
