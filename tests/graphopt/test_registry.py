"""Names, options and recipes become passes; mistakes name the option and the way out."""

import dataclasses
import json
from pathlib import Path

import pytest

from graphopt.errors import UsageError
from graphopt.pipeline import PRESETS, load_plugin, load_recipe, parse_pipeline, pass_names, preset, recipe_schema
from graphopt.pipeline.registry import describe, pass_class, spec_of, target_class, target_names


@pytest.mark.parametrize("name", pass_names())
def test_every_pass_is_a_frozen_dataclass_under_its_own_name(name: str):
    cls = pass_class(name)
    assert cls.name == name
    assert cls.__dataclass_params__.frozen
    assert cls.preserves.kind in ("exact", "tolerance", "lossy")
    json.dumps(describe(cls))


@pytest.mark.parametrize("name", target_names())
def test_every_target_describes_itself(name: str):
    cls = target_class(name)
    assert cls.name == name
    json.dumps([describe(cls), dict(cls.status())])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_parses_and_prints_back(name: str):
    passes = preset(name)
    assert parse_pipeline(",".join(str(spec_of(p)) for p in passes)) == passes


@pytest.mark.usefixtures("plugin")
def test_options_are_typed_and_checked():
    (p,) = parse_pipeline("scale-weights{factor=2.5}")
    assert p == pass_class("scale-weights")(factor=2.5)
    with pytest.raises(UsageError, match=r"option factor: .*valid number.*\(given: 'two'\)"):
        parse_pipeline("scale-weights{factor=two}")
    with pytest.raises(UsageError, match="no option 'faktor'; it has factor"):
        parse_pipeline("scale-weights{faktor=2}")
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.factor = 1


def test_an_unknown_pass_is_answered_with_close_names():
    with pytest.raises(UsageError, match="did you mean fold-batch-norm"):
        parse_pipeline("fold-batchnorm")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("x = 1", "defines no pass"),
        ("import nothing_of_this_name", "failed to load: ModuleNotFoundError"),
        ("import graphopt\nclass P(graphopt.Pass):\n    name='p'", "frozen dataclass"),
        (
            "import graphopt, dataclasses\n@dataclasses.dataclass(frozen=True)\nclass P(graphopt.Pass):\n"
            "    def apply(self, model, context): ...",
            "does not declare 'name'",
        ),
    ],
)
def test_bad_plugins_are_refused_with_their_file(source: str, complaint: str, tmp_path: Path):
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(UsageError, match=complaint) as caught:
        load_plugin(path)
    assert "bad.py" in str(caught.value)


def test_a_recipe_is_the_pipeline(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text('[[pass]]\nname = "prune-magnitude"\nsparsity = 0.25\n[[pass]]\nname = "remove-unused"\n')
    assert load_recipe(path) == parse_pipeline("prune-magnitude{sparsity=0.25},remove-unused")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[pass]]\nsparsity = 1", "pass 1 .* has no name"),
        ('[[pass]]\nname = "nope"', "pass 1 of the recipe .*: there is no pass 'nope'"),
        ('[[pass]]\nname = "prune-magnitude"\nsparsity = 7', "pass 1 of the recipe .*option sparsity"),
        ("passes = 3", "unknown keys: passes"),
        ("[pass]\nname='x'", r"\[\[pass\]\] is needed"),
        ("= what", "can't be read"),
    ],
)
def test_bad_recipes_name_the_file_and_the_entry(text: str, complaint: str, tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=complaint) as caught:
        load_recipe(path)
    assert "r.toml" in str(caught.value)


def test_the_recipe_schema_lists_every_pass():
    variants = recipe_schema()["properties"]["pass"]["items"]["oneOf"]
    assert [v["properties"]["name"]["const"] for v in variants] == pass_names()


def test_one_word_will_do_for_a_list():
    assert parse_pipeline("substitute-distilled{nodes=conv2}") == parse_pipeline("substitute-distilled{nodes=[conv2]}")
