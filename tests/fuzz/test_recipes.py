"""Any recipe is accepted or refused in words: never by a traceback of Python's, and never after training has begun."""

from contextlib import suppress
from dataclasses import fields
from typing import get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import METHODS, build_methods
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.recipe.sections import key_of
from hf_effpt.recipe.settings import DataSettings, ModelSettings
from hf_effpt.training.arguments import EffptTrainingArguments

from .values import setting

# What is loaded from a folder or the Hub, or writes and reaches out as soon as it is set.
DEPRECATED = {"gradient_checkpointing", "gradient_checkpointing_kwargs"}  # with a warning of their own
LEFT_OUT = DEPRECATED | {
    "from",
    "output_dir",
    "report_to",
    "deepspeed",
    "fsdp",
    "fsdp_config",
    "accelerator_config",
    "logging_dir",
}
PLAIN = {
    "model": {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
    "data": {"dataset": "builtin:pydoc", "sequence_length": 32},
    "training": {"output_dir": "out", "budget": "8steps", "use_cpu": True, "report_to": "none"},
}


def changes(kind: type) -> st.SearchStrategy:
    """Up to four settings of a section or method, by key."""
    hints = get_type_hints(kind, include_extras=True)
    values = {key_of(one.name): setting(hints[one.name]) for one in fields(kind) if one.init}
    values = {key: strategy for key, strategy in values.items() if key not in LEFT_OUT}
    chosen = st.lists(st.sampled_from(sorted(values)), max_size=4, unique=True)
    return chosen.flatmap(lambda keys: st.fixed_dictionaries({key: values[key] for key in keys}))


SECTIONS = {"model": ModelSettings, "data": DataSettings, "training": EffptTrainingArguments}
RECIPES = st.fixed_dictionaries(
    {name: changes(kind) for name, kind in SECTIONS.items()}
    | {
        "methods": st.lists(st.sampled_from(sorted(METHODS)), max_size=2, unique=True).flatmap(
            lambda names: st.fixed_dictionaries({name: changes(METHODS[name]) for name in names})
        )
    }
)


def check_said(error: EffptError, case: object = None) -> None:
    """Fails unless an error is a sentence for people."""
    said = str(error)
    assert len(said) > 20, (case, said)
    assert said.endswith((".", "`", ")")), (case, said)
    assert not any(one in said for one in ("Traceback", " object at 0x", "<class")), (case, said)


def test_sections(cases, tally, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    @cases(0.5)
    @given(st.sampled_from(sorted(SECTIONS)).flatmap(lambda name: st.tuples(st.just(name), changes(SECTIONS[name]))))
    def check(case):
        name, changed = case
        recipe = {**PLAIN, name: PLAIN[name] | changed}
        try:
            loaded = Recipe.load(recipe)
            loaded.model.config(methods={}, vocab_size=256)
        except EffptError as error:
            check_said(error, recipe)
            tally("refused")
            return
        again = yaml.safe_load(yaml.safe_dump(loaded.resolved()))
        with suppress(EffptError):  # of settings that need a folder which is not there
            assert Recipe.load(again).resolved() == loaded.resolved(), recipe
        tally("accepted")

    check()


def test_methods_together(cases, tally):
    @cases(0.2)
    @given(RECIPES)
    def check(recipe):
        try:
            build_methods(recipe["methods"])
        except EffptError as error:
            check_said(error, recipe)
            tally("refused")
            return
        tally("accepted")

    check()


@pytest.mark.parametrize(
    "content", ["", "model:", "- a", "1", "model: {size: [}", "? [a]\n: b", "model: {1: 2}", "\0"]
)
def test_files_that_are_no_recipes(tmp_path, content):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(EffptError) as refused:
        Recipe.load(tmp_path / "recipe.yaml")
    check_said(refused.value)
