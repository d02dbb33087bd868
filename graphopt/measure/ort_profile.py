"""onnxruntime's own profile of a model, told in nodes of that model."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from graphopt.errors import ModelError
from graphopt.graph import save
from graphopt.measure.profile import median

if TYPE_CHECKING:
    import onnx_ir as ir

EVENT = "_kernel_time"


class ProfiledSession:
    """An onnxruntime session with all optimisations that notes how long each of its nodes takes.

    A context manager: it keeps the model as onnxruntime made it, and the profile, in a temporary folder.
    """

    def __init__(self, model: ir.Model, threads: int) -> None:
        """Raises `ModelError` when onnxruntime refuses the model."""
        import onnxruntime as ort

        self._model = model
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._optimised = folder / "optimised.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        options.optimized_model_filepath = str(self._optimised)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimised.data")
        path = save(model, folder / "model.onnx")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's many kinds
            self._folder.cleanup()
            raise ModelError(f"onnxruntime refuses the model: {' '.join(str(error).split())[:500]}") from error

    def __enter__(self) -> ProfiledSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def run(self, feeds: Mapping[str, Any]) -> None:
        """One run; the results are dropped."""
        self._session.run(None, dict(feeds))

    def times(self) -> list[tuple[frozenset[str], float, str]]:
        """For each node that onnxruntime ran: the nodes of the model that it stands for (none: it put the node in
        itself), milliseconds of a run, and its name. Ends the profiling.

        A run's milliseconds are the median over the runs but for the first; of a node in a loop, the mean.
        """
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        runs = sum(event.get("name") == "model_run" for event in events)
        micros: defaultdict[str, list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event.get("name", "").endswith(EVENT):
                micros[event["name"].removesuffix(EVENT)].append(float(event["dur"]))
        stands_for = self._origins()
        return [
            (stands_for.get(name, frozenset()), _of_a_run(durations, runs) / 1e3, name)
            for name, durations in micros.items()
        ]

    def _origins(self) -> dict[str, frozenset[str]]:
        """Name of a node of the optimised model -> names of the nodes of the model that it came from."""
        import onnx
        import onnx_ir as ir

        from graphopt.match import match

        optimised = ir.from_proto(onnx.load(str(self._optimised), load_external_data=True))
        found = match(self._model, optimised)
        names: defaultdict[str, set[str]] = defaultdict(set)
        for olds, news in [*(([old], [new]) for old, new in found.pairs.items()), *found.groups]:
            for new in news:
                names[str(new.name)].update(str(old.name) for old in olds)
        return {name: frozenset(olds) for name, olds in names.items()}


def _of_a_run(durations: list[float], runs: int) -> float:
    if len(durations) == runs > 1:
        return median(durations[1:])
    return sum(durations) / max(runs, 1)
