"""Where Q/DQ pairs stand for a target, as data: a TOML file each in this folder, or one of your own."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pydantic

from graphopt.errors import UsageError

HERE = Path(__file__).parent


class Rules(pydantic.BaseModel):
    """Operators of the default domain, by what quantization does with them.

    weighted: compute with a quantized weight; what the pass may choose from.
    own_scale: work on integers where an integer operator needs their output, which has a scale of its own.
    same_scale: likewise, but only move or pick values: their output has their input's scale.
    all_inputs: need all their inputs as integers; the others their first.
    fused: are one with the node whose only reader they are: no pair stands between.
    joint_scale: their inputs take the output's scale, so that nothing is rescaled (Concat as a plain copy).
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    summary: str
    weighted: frozenset[str]
    own_scale: frozenset[str]
    same_scale: frozenset[str]
    all_inputs: frozenset[str]
    fused: frozenset[str]
    joint_scale: frozenset[str] = frozenset()

    @pydantic.model_validator(mode="after")
    def _agree(self) -> Rules:
        if twice := self.weighted & self.own_scale | self.weighted & self.same_scale | self.own_scale & self.same_scale:
            raise ValueError(f"{', '.join(sorted(twice))}: in two of weighted, own_scale and same_scale")
        if strange := (self.all_inputs | self.fused | self.joint_scale) - self.own_scale - self.same_scale:
            raise ValueError(f"{', '.join(sorted(strange))}: neither in own_scale nor in same_scale")
        return self

    @property
    def integer(self) -> frozenset[str]:
        """What passes integers on."""
        return self.own_scale | self.same_scale


def known() -> list[str]:
    """The targets whose rules come with graphopt."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


def load_rules(target: str) -> Rules:
    """The rules of a target, or of the TOML file at the path `target`. Raises `UsageError` naming what is wrong."""
    path = HERE / f"{target}.toml" if target in known() else Path(target)
    if not path.is_file():
        raise UsageError(f"there are no quantization rules for {target!r}: give {', '.join(known())} or a TOML file.")
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return Rules.model_validate(content)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the quantization rules {path} can't be read: {error}.") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"the quantization rules {path}, {where or 'as a whole'}: {first['msg']}.") from error
