"""A pass over the reference models."""

from __future__ import annotations

from collections.abc import Iterable

from graphopt.base import Context, Pass, Report
from graphopt.errors import FetchError, PassError

BUNDLED = ("digits", "mnist")
"""Reference models that are part of the package: nothing is fetched or built for them."""


def check_on_models(
    pass_: Pass, names: Iterable[str] | None = BUNDLED, context: Context | None = None
) -> dict[str, Report]:
    """Run `pass_` over reference models on realistic inputs; each keeps what the pass declares. Its reports, by model.

    Args:
        pass_: the pass.
        names: of reference models (``graphopt models``); None: all of them, of which some are fetched. One that
            can't be fetched is left out of the answer.
        context: for passes that need data; default: the model's own calibration data where it has some.

    Raises:
        PassError: naming the model that the pass broke.
        UsageError: an unknown name.
    """
    from graphopt import models
    from graphopt.data import open_data
    from graphopt.graph import load
    from graphopt.testing.equivalence import assert_preserves

    reports: dict[str, Report] = {}
    for name in models.names() if names is None else names:
        entry = models.get(name)
        try:
            model = load(entry.path())
        except FetchError:
            continue
        calibration = None if entry.calibration is None else open_data(entry.calibration(), model)
        try:
            _, reports[name] = assert_preserves(pass_, model, context or Context(calibration), entry.example(1))
        except PassError as error:
            raise PassError(f"on the reference model {name}: {error}") from error
    return reports
