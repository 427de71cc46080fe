"""Dotted flags change a recipe's plain content, and nothing else."""

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.recipe.overrides import apply_overrides


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--training.budget 10min", {"training": {"budget": "10min", "seed": 1}}),
        ("--training.budget=10min --training.seed=2", {"training": {"budget": "10min", "seed": "2"}}),
        ("--training.seed 2 --training.seed 3", {"training": {"seed": "3"}}),
        ("--training.bf16", {"training": {"bf16": True, "seed": 1}}),
        (
            "--training.bf16 --training.learning-rate 1e-3",
            {"training": {"bf16": True, "learning_rate": "1e-3", "seed": 1}},
        ),
        ("--training.seed -1e-3", {"training": {"seed": "-1e-3"}}),
        ("--training.seed null", {"training": {"seed": None}}),
        ("--methods.stacking.at 0.1 0.2", {"training": {"seed": 1}, "methods": {"stacking": {"at": ["0.1", "0.2"]}}}),
        ("--methods.stacking.at [0.1]", {"training": {"seed": 1}, "methods": {"stacking": {"at": [0.1]}}}),
        ("--methods.stacking {}", {"training": {"seed": 1}, "methods": {"stacking": {}}}),
        ("--training {}", {"training": {}}),
    ],
)
def test_flags(words, expected):
    assert apply_overrides({"training": {"seed": 1}}, words.split()) == expected


def test_what_is_changed_is_a_copy():
    sections = {"methods": {"layerdrop": {"p": 0.1}}}
    apply_overrides(sections, ["--methods.layerdrop.p", "0.5"])
    assert sections == {"methods": {"layerdrop": {"p": 0.1}}}


def test_flag_fills_a_section_that_is_empty():
    assert apply_overrides({"methods": None}, ["--methods.layerdrop.p", "0.5"]) == {
        "methods": {"layerdrop": {"p": "0.5"}}
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tiny --training.seed 1", "'tiny' belongs to no flag"),
        ("--budget 3s", "no setting `--budget`.*Did you mean `--training.budget`"),
        ("--vocab-size 64", "Did you mean `--data.vocab_size`"),
        ("--trainig.seed 3", "For section `trainig`, did you mean `training`"),
        ("--training.seed.x 3", "reaches into `training.seed`, which is 1"),
        ("--methods.stacking.at [0.1", "`--methods.stacking.at`, line 1, column"),
    ],
)
def test_flags_that_cannot_be_used(words, message):
    with pytest.raises(EffptError, match=message):
        apply_overrides({"training": {"seed": 1}}, words.split())
