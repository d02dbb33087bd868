"""Names to passes and targets: strings here, imported when asked for.

Third parties add passes by an entry point in the group ``graphopt.passes`` (``my-pass = "my_package:MyPass"``)
or by a file named on the command line (``--plugin file.py``). A plugin is code: none is looked for on its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from graphopt.base import Pass, Target
from graphopt.errors import UsageError
from graphopt.pipeline.spec import Item, parse_item, parse_list

PASSES: dict[str, str] = {
    "adaround": "graphopt.passes.adaround:AdaRound",
    "convert-bfloat16": "graphopt.passes.convert_bfloat16:ConvertBfloat16",
    "convert-float16": "graphopt.passes.convert_float16:ConvertFloat16",
    "correct-bias": "graphopt.passes.correct_bias:CorrectBias",
    "eliminate-common-subexpressions": "graphopt.passes.eliminate_common:EliminateCommonSubexpressions",
    "eliminate-identity": "graphopt.passes.eliminate_identity:EliminateIdentity",
    "equalize-channels": "graphopt.passes.equalize_channels:EqualizeChannels",
    "fine-tune": "graphopt.passes.fine_tune:FineTune",
    "fold-batch-norm": "graphopt.passes.fold_batch_norm:FoldBatchNorm",
    "fold-constants": "graphopt.passes.fold_constants:FoldConstants",
    "gptq": "graphopt.passes.gptq:Gptq",
    "insert-qdq": "graphopt.passes.insert_qdq:InsertQdq",
    "prune-channels": "graphopt.passes.prune_channels:PruneChannels",
    "prune-magnitude": "graphopt.passes.prune_magnitude:PruneMagnitude",
    "quantize-dynamic": "graphopt.passes.quantize_dynamic:QuantizeDynamic",
    "quantize-weights": "graphopt.passes.quantize_weights:QuantizeWeights",
    "reestimate-batch-norm": "graphopt.passes.reestimate_batch_norm:ReestimateBatchNorm",
    "remove-unused": "graphopt.passes.remove_unused:RemoveUnused",
    "smooth-quant": "graphopt.passes.smooth_quant:SmoothQuant",
    "substitute-distilled": "graphopt.passes.substitute_distilled:SubstituteDistilled",
}
TARGETS: dict[str, str] = {
    "cuda": "graphopt.targets.cuda:Cuda",
    "llvm": "graphopt.targets.llvm:Llvm",
    "metal": "graphopt.targets.export:Metal",
    "npu": "graphopt.targets.npu:Npu",
    "opencl": "graphopt.targets.export:Opencl",
    "rocm": "graphopt.targets.export:Rocm",
    "webgpu": "graphopt.targets.export:Webgpu",
}
ENTRY_POINTS = "graphopt.passes"

_plugins: dict[str, type[Pass]] = {}
T = TypeVar("T")


def pass_names() -> list[str]:
    """All known passes: built in, installed through entry points, and loaded plugins."""
    return sorted({*PASSES, *_plugins, *(e.name for e in metadata.entry_points(group=ENTRY_POINTS))})


def target_names() -> list[str]:
    """All known targets."""
    return sorted(TARGETS)


def pass_class(name: str) -> type[Pass]:
    """The class behind `name`. Raises `UsageError` naming close matches."""
    if name in _plugins:
        return _plugins[name]
    if name in PASSES:
        return _import(PASSES[name])
    for entry in metadata.entry_points(group=ENTRY_POINTS, name=name):
        origin = f"the entry point {entry.value} of {entry.dist.name if entry.dist else 'a package'}"
        try:
            loaded = entry.load()
        except Exception as error:
            raise UsageError(f"{origin} failed to load: {type(error).__name__}: {error}.") from error
        return _checked(loaded, origin)
    raise UsageError(f"there is no pass {name!r}{_close(name, pass_names())} See: graphopt passes.")


def target_class(name: str) -> type[Target]:
    """The class behind `name`. Raises `UsageError` naming close matches."""
    if name not in TARGETS:
        raise UsageError(f"there is no target {name!r}{_close(name, target_names())} See: graphopt targets.")
    return _import(TARGETS[name])


def make_pass(item: Item) -> Pass:
    """The pass that `item` describes. Raises `UsageError` for an unknown name or option, or a bad value."""
    return _make(pass_class(item.name), item)


def make_target(text: str) -> Target:
    """The target that ``llvm{mcpu=native}`` describes. Raises `UsageError` likewise."""
    item = parse_item(text)
    return _make(target_class(item.name), item)


def parse_pipeline(text: str) -> list[Pass]:
    """The passes that ``fold-batch-norm,prune-magnitude{sparsity=0.5}`` describes."""
    return [make_pass(item) for item in parse_list(text)]


def load_plugin(path: str | Path) -> list[str]:
    """Run the Python file `path` and register every pass class it defines; returns their names.

    Raises:
        UsageError: no such file, it does not run, or it defines no pass.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no plugin file {path}.")
    name = f"graphopt_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"the plugin {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"the plugin {path} failed to load: {type(error).__name__}: {error}") from error
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Pass) and c.__module__ == name]
    found = [c for c in classes if not inspect.isabstract(c)] or classes  # what several passes derive from is none
    if not found:
        raise UsageError(f"the plugin {path} defines no pass: a subclass of graphopt.Pass is needed.")
    for cls in found:
        _plugins[_checked(cls, f"the plugin {path}").name] = cls
    return [cls.name for cls in found]


def describe(cls: type[Pass] | type[Target]) -> dict[str, Any]:
    """Name, first docstring line, what is preserved, and options with type and default (JSON-able)."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(cls).json_schema()
    definitions: dict[str, Any] = schema.get("$defs", {})
    options = {key: _resolve(value, definitions) for key, value in schema.get("properties", {}).items()}
    for option in options.values():
        option.pop("title", None)
    about: dict[str, Any] = {"name": cls.name, "summary": (cls.__doc__ or "").strip().splitlines()[0]}
    if issubclass(cls, Pass):
        about["preserves"] = str(cls.preserves)
    return {**about, "options": options}


def _resolve(schema: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref", "")
    return dict(definitions[reference.rsplit("/", 1)[-1]]) if reference else dict(schema)


def options_of(thing: Pass | Target) -> dict[str, Any]:
    """The options of a pass or target that differ from their defaults."""
    fields = dataclasses.fields(thing)  # pyright: ignore[reportArgumentType]
    values = {f.name: getattr(thing, f.name) for f in fields}
    defaults = {f.name: getattr(f.default, "default", f.default) for f in fields}  # pydantic's Field() wraps its own
    return {k: v for k, v in values.items() if v is not None and v != defaults[k] and v not in ((), [], {})}


def spec_of(thing: Pass | Target) -> Item:
    """The item whose text makes an equal pass or target again."""
    return Item(thing.name, options_of(thing))


def _make(cls: type[T], item: Item) -> T:
    from pydantic import TypeAdapter, ValidationError

    known = [f.name for f in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    for key in item.options:
        if key not in known:
            have = f"; it has {', '.join(known)}." if known else "; it has no options."
            raise UsageError(f"{item.name!r} has no option {key!r}{have}")
    adapter = TypeAdapter(cls)
    try:
        try:
            return adapter.validate_python(item.options)
        except ValidationError as error:
            lists = [str(e["loc"][0]) for e in error.errors() if e["type"] in ("tuple_type", "list_type")]
            words = {key: [item.options[key]] for key in lists if isinstance(item.options.get(key), str)}
            if not words:
                raise
            return adapter.validate_python({**item.options, **words})  # nodes=conv2 is nodes=[conv2]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "options"
        given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"
        raise UsageError(f"{item.name!r}, option {where}: {first['msg']}{given}.") from error


def _import(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _checked(cls: Any, origin: str) -> type[Pass]:
    if not (isinstance(cls, type) and issubclass(cls, Pass) and dataclasses.is_dataclass(cls)):
        raise UsageError(f"{origin} does not give a pass: a frozen dataclass deriving from graphopt.Pass is needed.")
    for attribute in ("name", "preserves"):
        if not hasattr(cls, attribute):
            raise UsageError(f"the pass {cls.__name__} of {origin} does not declare {attribute!r}.")
    return cls


def _close(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else "."
