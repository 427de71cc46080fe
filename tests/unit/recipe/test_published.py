"""The page on the sources of the recipes' settings says what the recipes say."""

import re
from pathlib import Path

import pytest

import hf_effpt
from hf_effpt.core.registry import build_methods
from hf_effpt.recipe.file import parse_yaml
from hf_effpt.recipe.recipe import Recipe

FOLDER = Path(hf_effpt.__file__).parent / "recipes"
SECTIONS = re.split(r"^## `(\w+)`$", (FOLDER / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
PAGE = dict(zip(SECTIONS[::2], SECTIONS[1::2], strict=True))
OWN = {"data.dataset", "training.output_dir", "model.objective"}  # the user's, and what the recipe is about


def load(name):
    return Recipe.load(name, ["--training.use_cpu", "true"])  # for bf16 without a GPU


def rows(name):
    """Value by key, as the page has them."""
    found = re.findall(r"^\| `([\w.]+)` \| (.+?) \| .+? \| .*?\|$", PAGE[name], flags=re.MULTILINE)
    return {key: parse_yaml(value, key) for key, value in found}


def value(recipe, key):
    section, *rest = key.split(".")
    if section != "methods":
        return getattr(getattr(recipe, section), rest[0])
    methods = {method.name: method for method in build_methods(recipe.methods)}
    return getattr(methods[rest[0]], rest[1])


def given(name):
    """Keys that the file of a recipe sets."""
    content = parse_yaml((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), name)
    methods = content.pop("methods", {})
    keys = {f"{section}.{key}" for section, values in content.items() for key in values}
    return keys | {f"methods.{method}.{key}" for method, values in methods.items() for key in values}


def like(name):
    """The recipe that this one is said to equal in all other settings."""
    found = re.search(r"All other settings are those of `(\w+)`", PAGE[name])
    return found[1] if found else None


def test_every_recipe_that_follows_a_publication_has_a_section_and_points_there():
    own = re.compile(r".*_?tiny|fast_.*")
    named = {path.stem for path in FOLDER.glob("*.yaml") if not own.fullmatch(path.stem)}
    assert PAGE.keys() == named
    for name in named:
        header = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("\nmodel:")[0]
        assert "README.md in this folder has the source of each setting" in header.replace("\n# ", " ")


@pytest.mark.parametrize("name", PAGE)
def test_values_on_the_page_are_those_of_the_recipe(name):
    recipe = load(name)
    assert rows(name)
    for key, told in rows(name).items():
        found = value(recipe, key)
        found = getattr(found, "value", found)
        assert found == told or (told is not None and str(found) == str(told)), key


@pytest.mark.parametrize("name", PAGE)
def test_every_setting_of_a_recipe_is_on_the_page_or_that_of_the_recipe_it_is_like(name):
    told, other = rows(name), like(name)
    untold = given(name) - OWN - told.keys()
    if other is None:
        assert not untold
        return
    here, there = load(name), load(other)
    for key in untold | {key for key in rows(other) if key not in told}:
        assert value(here, key) == value(there, key), key


def test_published_settings_that_had_been_lost():
    """MC-BERT and TNF decay all weights and do not clip; BERT-Tickets has the optimizer of its code."""
    for name in ("mcbert_base", "tnf_base"):
        training = load(name).training
        assert (training.decay_all, training.weight_decay, training.max_grad_norm) == (True, 0.01, 0.0)
    assert load("mcbert_base").model.faithful
    training = load("lottery_base").training
    assert (training.weight_decay, training.max_grad_norm, training.warmup_steps) == (0.0, 1.0, 0)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.999, 1e-8)
