"""The cache of measurements: one small file each, `$GRAPHOPT_CACHE/tuned/` or in the user's cache directory.

A file's name is the digest of its key: CPU, problem, threads and version of graphopt. It appears whole or not at all,
so that several processes may tune at once; the last one's measurement stays.
"""

from __future__ import annotations

import hashlib
import json
import platform
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, PositiveFloat

from graphopt import __version__
from graphopt.atomic import atomic_write
from graphopt.models.cache import cache_dir
from graphopt.targets.llvm.cpu import Cpu

Key = dict[str, Any]


def key(problem: str, cpu: Cpu, threads: int) -> Key:
    """Everything that a measurement depends on."""
    return {
        "cpu": _model_name(),
        "mcpu": cpu.mcpu,
        "features": sorted(cpu.features),
        "threads": threads,
        "graphopt": __version__,
        "problem": problem,
    }


class _Entry(BaseModel):
    key: Key
    microseconds: dict[str, PositiveFloat]


def read(key: Key, candidates: Collection[str]) -> dict[str, float] | None:
    """The microseconds of each of `candidates`, if known; a damaged or foreign file counts as none, with a warning."""
    path = _path(key)
    try:
        entry = _Entry.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return _ignored(path, f"it can't be read ({' '.join(str(error).split())[:200]})")
    if entry.key != key:
        return _ignored(path, "it belongs to another problem, machine or version")
    if set(entry.microseconds) != set(candidates):
        return _ignored(path, "it is of other candidates")
    return {name: entry.microseconds[name] for name in candidates}


def write(key: Key, times: Mapping[str, float]) -> None:
    """Keep the microseconds of each candidate."""
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as scratch:
        scratch.write_text(_Entry(key=key, microseconds=dict(times)).model_dump_json(indent=1) + "\n")


def _ignored(path: Path, why: str) -> None:
    warnings.warn(f"the measurement {path} is not used: {why}. It is made again.", stacklevel=3)


def _path(key: Key) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "tuned" / f"{digest[:32]}.json"


def _model_name() -> str:
    """The CPU's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
