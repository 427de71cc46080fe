"""How deep the model is when: depths, fractions, and what is refused."""

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import build_methods
from hf_effpt.methods import Stacking
from hf_effpt.recipe.sections import parse_section
from tests import tiny


@pytest.mark.parametrize(
    ("settings", "target", "stages"),
    [
        ({}, 12, [3, 6, 12]),
        ({"depth": 3}, 12, [3, 6, 12]),
        ({"at": [0.5]}, 12, [6, 12]),
        ({"depth": 4}, 12, [4, 8, 12]),
        ({"depth": 1, "at": [0.1, 0.2]}, 4, [1, 2, 4]),
        ({"depth": 3, "at": [0.1]}, 5, [3, 5]),
        ({"depth": 6, "at": [0.1]}, 24, [6, 24]),  # G_stack
        ({"depth": 1, "at": [0.1, 0.2]}, 12, [1, 4, 12]),
        ({"depth": [2, 3]}, 12, [2, 3, 12]),
        ({"at": "prop-2"}, 12, [3, 6, 12]),
        ({"operator": "interpolate"}, 12, [3, 6, 12]),
        ({"operator": "midas"}, 12, [3, 6, 9, 12]),
        ({"operator": "midas"}, 6, [2, 4, 6]),
        ({"operator": "midas"}, 5, [1, 2, 3, 4, 5]),
        ({"operator": "midas", "depth": 2}, 6, [2, 4, 6]),
        ({"operator": "midas", "at": [0.2]}, 4, [2, 4]),
        ({"operator": "append_top"}, 12, [3, 6, 9, 12]),
        ({"operator": "append_top", "depth": [3, 5]}, 6, [3, 5, 6]),
    ],
)
def test_stages(settings, target, stages):
    assert Stacking(**settings).depths(target) == stages


@pytest.mark.parametrize(
    ("settings", "target", "fractions"),
    [
        ({}, 12, [0.125, 0.3]),
        ({"depth": [1, 2, 3]}, 12, [0.1, 0.3, 0.6]),
        ({"operator": "midas"}, 12, [0.1, 0.3, 0.6]),
        ({"operator": "midas", "at": "prop-2"}, 12, [1 / 30, 5 / 30, 14 / 30]),
        ({"operator": "append_top"}, 12, [0.175, 0.35, 0.525]),
        ({"operator": "append_top", "joint_at": 0.4}, 12, [0.1, 0.2, 0.3]),
        ({"at": [0.2, 0.4]}, 12, [0.2, 0.4]),
    ],
)
def test_fractions(settings, target, fractions):
    assert Stacking(**settings).fractions(target) == pytest.approx(fractions)


def test_midas_with_time_in_proportion_costs_what_the_paper_says():
    """24 layers in 6 stages: the mean depth under prop-1 makes a run 1.39 times as fast, under prop-2 1.24 times."""
    for power, speed in (("prop-1", 1.385), ("prop-2", 1.238)):
        method = Stacking(operator="midas", depth=4, at=power)
        ends = [*method.fractions(24), 1.0]
        # the paper's stages share steps, and ours the clock: here they are the same
        shares = [end - begin for begin, end in zip([0.0, *ends], ends, strict=False)]
        mean = sum(share * depth for share, depth in zip(shares, method.depths(24), strict=True))
        assert 24 / mean == pytest.approx(speed, abs=1e-3)


def test_settings_given_as_text_of_a_command_line_are_refused_or_read():
    with pytest.raises(EffptError, match=r"`stacking.at` is 'gstack'.*prop-1"):
        Stacking(at="gstack")
    assert Stacking(at="0.2").at == Stacking(at=0.2).at == [0.2]
    assert Stacking(depth=(1, 2)).depths(4) == [1, 2, 4]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"depth": "2", "at": "prop-2"}, {"depth": 2, "at": "prop-2"}),
        ({"depth": 2, "at": "0.5"}, {"depth": 2, "at": [0.5]}),
        ({"depth": ["1", "3"], "at": ["0.1", "2e-1"]}, {"depth": [1, 3], "at": [0.1, 0.2]}),
        ({"depth": 1, "at": [0.1, 0.2], "slope": "-5e-2"}, {"depth": 1, "at": [0.1, 0.2], "slope": -0.05}),
    ],
)
def test_a_recipe_may_give_one_or_several(given, read):
    section = parse_section("methods.stacking", Stacking, given)
    assert {key: getattr(section, key) for key in read} == read


def test_a_recipe_with_a_wrong_word_names_the_key():
    with pytest.raises(EffptError, match=r"`methods.stacking.depth` is 'deep'"):
        parse_section("methods.stacking", Stacking, {"depth": "deep"})
    with pytest.raises(EffptError, match=r"`methods.stacking.operator` is 'double'.*choose from"):
        parse_section("methods.stacking", Stacking, {"operator": "double"})


@pytest.mark.parametrize(
    "settings",
    [
        {"at": []},
        {"at": [0.0]},
        {"at": [1.0]},
        {"at": [0.5, 0.3]},
        {"at": [0.3, 0.3]},
        {"at": "prop"},
        {"at": "prop-1000"},
        {"at": ["0.3"]},
        {"at": 1.5},
        {"depth": 0},
        {"depth": []},
        {"depth": [0, 2]},
        {"depth": "3"},
        {"depth": 2.5},
        {"depth": [2, 2.5]},
        {"depth": True},
        {"operator": "double"},
        {"optimizer_state": "halve"},
        {"optimizer_state": "keep", "operator": "ligo_depth"},
        {"rewarmup": -1},
        {"slope": 0.1},
        {"slope": "x"},
        {"slope": float("-inf")},
        {"rewarmup": None},
        {"joint_at": 0.5},
        {"joint_at": 1.0, "operator": "append_top"},
        {"at": [0.3, 0.8], "operator": "append_top"},
        {"auxiliary": "shrink"},
    ],
)
def test_impossible_values_are_refused(settings):
    with pytest.raises(EffptError, match=f"`stacking.{next(iter(settings))}`"):
        Stacking(**settings)


@pytest.mark.parametrize(
    ("settings", "layers", "message"),
    [
        ({"depth": 5, "at": [0.5]}, 4, "cannot grow from 5 to 4 layers in 1 growth"),
        ({"depth": 4, "at": [0.5]}, 4, "cannot grow from 4 to 4 layers in 1 growth"),
        ({"at": [0.1, 0.2]}, 2, "cannot grow from 1 to 2 layers in 2 growth"),
        ({"depth": [3, 2]}, 4, r"depths \[3, 2, 4\] of its stages must rise"),  # shrinks
        ({"depth": [2, 8]}, 4, r"depths \[2, 8, 4\] of its stages must rise"),  # beyond what is allocated
        ({"depth": [2], "at": [0.1, 0.2]}, 4, r"`stacking.at` has 2 fraction\(s\).*1 growth"),
        ({"operator": "interpolate", "depth": [2, 3]}, 4, "2 layers cannot become 3"),
        ({"operator": "midas", "depth": 3}, 4, "4 is no multiple of `stacking.depth`, 3"),
        ({"operator": "midas", "depth": [1, 3]}, 4, "1 layers cannot become 3"),
        ({"operator": "midas", "at": [0.1, 0.2]}, 4, "4 layers do not divide into the 3 stages"),
        ({"operator": "append_top", "depth": [1, 3]}, 4, "1 layers can become at most 2, not 3"),
        ({"operator": "identity"}, 4, "post-LN.*Use `stack`"),
    ],
)
def test_schedules_that_do_not_fit_the_model_are_refused_when_it_is_made(settings, layers, message):
    with pytest.raises(EffptError, match=message):
        build_methods({"stacking": settings}, tiny.config(num_hidden_layers=layers))


@pytest.mark.parametrize(
    ("settings", "settles"),
    [({"depth": 1, "at": "prop-1"}, 3 / 6), ({"operator": "append_top", "joint_at": 0.8}, 0.8)],
)
def test_layerdrop_waits_for_the_last_change(settings, settles):
    for ledger in ({"stacking": settings, "layerdrop": {}}, {"layerdrop": {}, "stacking": settings}):
        methods = {method.name: method for method in tiny.model(ledger).methods}
        assert methods["stacking"].settles_at == pytest.approx(settles)
        with pytest.raises(EffptError, match="another method changes the architecture until"):
            tiny.model({**ledger, "layerdrop": {"after": 0.4}})
