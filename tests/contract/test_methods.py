"""What every method owes, by registry: a new method is tested here without a new test."""

import dataclasses
import json
from importlib.resources import files

import pytest
import torch

from hf_effpt.core.anatomy import layers_of
from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import LayerStack
from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import METHODS, build_methods
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.preparing import prepare_methods
from tests import tiny

from .settings import SETTINGS

methods = pytest.mark.parametrize("name", list(METHODS))


def test_every_method_has_contract_settings():
    assert set(SETTINGS) == set(METHODS)


@methods
def test_is_documented(name):
    method = METHODS[name]
    card = files("hf_effpt.methods").joinpath(name, "README.md").read_text(encoding="utf-8")
    assert method.paper.title in card
    assert method.summary.endswith(".")
    for field in dataclasses.fields(method):
        assert f"{field.name}" in method.__doc__, f"{name}.{field.name} is not in the docstring"
        assert f"`{field.name}`" in card, f"{name}.{field.name} is not in the method card"


@methods
def test_settings_survive_json(name):
    (method,) = build_methods({name: SETTINGS[name]}, tiny.config())
    (again,) = build_methods(json.loads(json.dumps({name: method.settings()})), tiny.config())
    assert again == method


@methods
def test_unknown_setting_names_the_nearest(name):
    field = dataclasses.fields(METHODS[name])[0].name
    with pytest.raises(EffptError, match=f"`{name}` has no setting `{field}x`: did you mean `{field}`"):
        build_methods({name: {field + "x": 1}})


@methods
def test_a_setting_of_a_wrong_type_is_refused_by_name(name):
    for field in dataclasses.fields(METHODS[name]):
        with pytest.raises(EffptError, match=rf"`{name}\.{field.name}` must .*, not \{{1, 2\}}"):
            build_methods({name: {field.name: {1, 2}}})


@methods
def test_recipe_knows_it(name):
    recipe = Recipe.load(
        {
            "data": {"dataset": "d"},
            "training": {"output_dir": "o"},
            "model": {"num_hidden_layers": 4},
            "methods": {name: SETTINGS[name]},
        }
    )
    assert recipe.methods[name] == SETTINGS[name]


def with_method(name):
    """A model with the method, which has looked through its text where it does."""
    model = tiny.model({name: SETTINGS[name]})
    prepare_methods(model, tiny.rows(), tiny.tokenizer(), seed=7)
    return model


@methods
def test_injecting_renames_nothing_and_ejecting_undoes_it(name):
    torch.manual_seed(1)
    plain = tiny.model()
    torch.manual_seed(1)
    changed = with_method(name)
    names = set(plain.state_dict())
    assert names <= set(changed.state_dict())
    tiny.assert_same_weights(plain, changed)
    for method in changed.methods:
        method.eject(changed.backbone)
    changed.snapshot = None  # the model's own, which no export has
    left = layers_of(changed.backbone)
    assert not isinstance(left, LayerStack)
    assert set(changed.state_dict()) <= names
    assert changed.config.num_hidden_layers == len(left)


@methods
def test_scheduling_leaves_the_global_generators_alone(name):
    model = with_method(name)
    before = torch.get_rng_state()
    for step in range(8):
        for method in model.methods:
            method.schedule(model.backbone, RunContext(step, step / 8, seed=7))
            method.advance(model.backbone, RunContext(step + 1, (step + 1) / 8))
    assert torch.equal(before, torch.get_rng_state())


@methods
def test_schedule_is_a_pure_function(name):
    """The same step gives the same sub-network, whatever was scheduled before."""
    model = with_method(name)
    (method,) = model.methods

    def active(step):
        method.schedule(model.backbone, RunContext(step, step / 8, seed=7))
        return layers_of(model.backbone).active

    forwards = [active(step) for step in range(8)]
    backwards = [active(step) for step in reversed(range(8))]
    assert forwards == backwards[::-1]
