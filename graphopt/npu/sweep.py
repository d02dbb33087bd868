"""Many machines, some models: latency, energy and area of each, and which of them no other beats in all three."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pydantic

from graphopt.errors import UsageError
from graphopt.progress import track

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.targets.npu.machine import Machine

Point = dict[str, Any]
OBJECTIVES = ("ms", "energy_uj", "area_mm2")


def sweep(
    models: Sequence[Path | str],
    machine: str = "edge",
    settings: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, int] | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Every combination of `settings`, as ``{"array.rows": [8, 16], "memories.dram.bytes_per_cycle": [4]}``.

    Returns ``{"machine", "models", "points"}``. A point has what was `set`, `cycles`, `ms` and `energy_uj` over all
    models, `area_mm2`, whether it is on the `pareto` front, and the `models` by name; one that can't run a model has an
    `error` instead. `jobs`: processes beside each other.

    Raises:
        UsageError: a setting that the machine has not, or a value that it refuses; no model.
    """
    from graphopt.targets.npu.machine import load_machine

    if not models:
        raise UsageError("a sweep needs at least one model.")
    base, settings = load_machine(machine), settings or {}
    combined = [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]
    machines = [vary(base, chosen) for chosen in combined]
    paths, fixed = [str(path) for path in models], tuple((dims or {}).items())
    tasks = [(path, made.to_json(), fixed) for made in machines for path in paths]
    found = list(track(_run(tasks, jobs), "sweeping machines", len(tasks)))
    points = [
        _point(chosen, made, dict(zip(paths, found[at * len(paths) : (at + 1) * len(paths)], strict=True)))
        for at, (chosen, made) in enumerate(zip(combined, machines, strict=True))
    ]
    _mark_pareto(points)
    return {"machine": base.name, "models": paths, "points": points}


def vary(machine: Machine, settings: Mapping[str, Any]) -> Machine:
    """`machine` with the keys of its TOML set anew; a memory is found by its name.

    Raises:
        UsageError: no such key, or a value out of range.
    """
    from graphopt.targets.npu.machine import Machine

    document = machine.model_dump(mode="json")
    for key, value in settings.items():
        at: Any = document
        *path, last = key.split(".")
        for part in path:
            at = _step(at, part, key, machine.name)
        _step(at, last, key, machine.name)
        at[last] = value
    try:
        return Machine.model_validate(document)
    except pydantic.ValidationError as error:
        what = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'machine'}: {e['msg']}" for e in error.errors())
        raise UsageError(f"{machine.name!r} can't be varied so: {what}.") from error


def _step(at: Any, part: str, key: str, name: str) -> Any:
    if isinstance(at, list):
        by_name = {entry["name"]: entry for entry in cast("list[dict[str, Any]]", at)}
        at = by_name
    if not isinstance(at, dict) or part not in at:
        have = ", ".join(map(str, cast("dict[str, Any]", at))) if isinstance(at, dict) else "no keys"
        raise UsageError(f"{name!r} has no {key!r}: at {part!r} there are {have}.")
    return cast("dict[str, Any]", at)[part]


Task = tuple[str, bytes, tuple[tuple[str, int], ...]]


def _run(tasks: Sequence[Task], jobs: int) -> Iterator[dict[str, Any]]:
    if jobs <= 1:
        yield from map(_cost, tasks)
        return
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(_cost, tasks)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _cost(task: Task) -> dict[str, Any]:
    """Totals of one model on one machine, or the reason why it can't run there."""
    from graphopt.targets.npu.estimate import estimate_quantized
    from graphopt.targets.npu.machine import from_json

    path, machine, dims = task
    found = estimate_quantized(_prepared(path, dims).clone(), from_json(machine))
    if not found["cycles"]:
        return {"error": next((node["reason"] for node in found["nodes"] if "reason" in node), "it has no nodes")}
    return {key: found[key] for key in ("cycles", "macs", "utilisation", "dram_bytes", "energy_uj")}


@lru_cache(maxsize=8)
def _prepared(path: str, dims: tuple[tuple[str, int], ...]) -> ir.Model:
    from graphopt.api import open_model
    from graphopt.npu.prepare import fix_sizes, quantized

    model = open_model(path, dict(dims))
    fix_sizes(model)
    return quantized(model)


def _point(chosen: Mapping[str, Any], machine: Machine, models: Mapping[str, dict[str, Any]]) -> Point:
    from graphopt.targets.npu.area import area_mm2

    errors = [f"{name}: {found['error']}" for name, found in models.items() if "error" in found]
    if errors:
        return {"set": dict(chosen), "error": "; ".join(errors), "pareto": False}
    cycles = sum(found["cycles"] for found in models.values())
    return {
        "set": dict(chosen),
        "cycles": cycles,
        "ms": cycles / machine.clock_mhz / 1e3,
        "energy_uj": sum(found["energy_uj"] for found in models.values()),
        "area_mm2": area_mm2(machine),
        "utilisation": sum(f["macs"] for f in models.values()) / (cycles * machine.array.macs_per_cycle),
        "models": dict(models),
        "pareto": False,
    }


def _mark_pareto(points: Sequence[Point]) -> None:
    """A point stays that no other equals or beats in all objectives and beats in one."""
    able = [point for point in points if "error" not in point]
    for point in able:
        mine = [point[name] for name in OBJECTIVES]
        others = ([other[name] for name in OBJECTIVES] for other in able)
        point["pareto"] = not any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in others
        )


def parse_setting(text: str) -> tuple[str, list[Any]]:
    """``"array.rows=8,16"`` as its key and its values, written as in TOML.

    Raises:
        UsageError: it is not of this form.
    """
    import tomllib

    key, equals, values = text.partition("=")
    try:
        parsed = tomllib.loads(f"values = [{values}]")["values"]
    except tomllib.TOMLDecodeError:
        parsed = []
    if not equals or not key or not parsed:
        raise UsageError(f"--set takes KEY=VALUE,VALUE, as in scratchpad_bytes=262144,524288, not {text!r}.")
    return key, parsed
