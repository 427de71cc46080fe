"""Micro-batches that grow with the clock."""

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.phases import Phase
from tests import tiny
from tests.unit.training.test_phases import LONG, SHORT, Rows, rows_of, trainer_on

RAMP = {0: 1, 0.25: 2, 0.5: 4}


def ramped(folder, phases=None, **changes):
    return trainer_on(folder, rows_of(SHORT) if phases is None else phases, **{"batch_ramp": RAMP, **changes})


def test_micro_batches_grow_and_the_order_of_the_rows_goes_on(tmp_path):
    plain, trainer = trainer_on(tmp_path / "plain", rows_of(SHORT)), ramped(tmp_path / "ramp")
    expected, seen = Rows(plain), Rows(trainer)
    plain.train()
    trainer.train()
    assert seen.shapes == [(1, SHORT)] * 2 + [(2, SHORT)] * 2 + [(4, SHORT)] * 4
    taken = [row for batch in seen.rows for row in batch]
    assert taken == [row for batch in expected.rows for row in batch][: len(taken)]
    assert trainer.clock.tokens == len(taken) * SHORT


@pytest.mark.parametrize("methods", [None, {"layerdrop": {"p": 0.3}}], ids=["plain", "layerdrop"])
def test_a_resumed_run_is_the_straight_one(tmp_path, methods):
    """Within a part, at the step at which one ends, and with micro-batches that are added up."""
    changes = {"methods": methods, "gradient_accumulation_steps": 2}
    straight = ramped(tmp_path, saved=[2, 3, 6], **changes)
    straight.train()
    for at in (2, 3, 6):
        second = ramped(tmp_path / "resumed", **changes)
        second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
        tiny.assert_same_weights(straight.model, second.model)
        assert second.clock.tokens == straight.clock.tokens
        assert second.clock.flops == straight.clock.flops


def test_longer_rows_have_as_many_tokens(tmp_path):
    """The ramp cuts the phases of a run where its batches grow."""
    phases = [Phase(0.0, rows_of(SHORT)), Phase(0.75, rows_of(LONG, seed=2))]
    trainer = ramped(tmp_path, phases)
    seen = Rows(trainer)
    trainer.train()
    assert seen.shapes == [(1, SHORT)] * 2 + [(2, SHORT)] * 2 + [(4, SHORT)] * 2 + [(2, LONG)] * 2
    assert [phase.batch_size for phase in trainer.stream.phases] == [1, 2, 4, 4]


def test_it_follows_a_budget_of_tokens(tmp_path):
    trainer = ramped(tmp_path, budget=f"{16 * SHORT}tokens")
    seen = Rows(trainer)
    trainer.train()
    assert [len(batch) for batch in seen.rows] == [1, 1, 1, 1, 2, 2, 4, 4]


def test_a_checkpoint_of_another_ramp_is_refused(tmp_path):
    first = ramped(tmp_path, save_strategy="steps", save_steps=2)
    first.add_callback(tiny.StopAfter(2))
    first.train()
    with pytest.raises(EffptError, match=r"has changed since .*, batches of 2; .* now .*, batches of 3; "):
        ramped(tmp_path, batch_ramp={0: 1, 0.25: 3, 0.5: 4}).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_ramp": {0: 8, 0.5: 4}}, "must grow, by whole rows, up to `per_device_train_batch_size`, 4"),
        ({"batch_ramp": {0: 4, 0.5: 8}}, "up to `per_device_train_batch_size`, 4"),
        ({"batch_ramp": {0: 1, 0.5: 2}}, "up to `per_device_train_batch_size`, 4"),
        ({"batch_ramp": {0: 0, 0.5: 4}}, "by whole rows"),
        ({"batch_ramp": {0: 1.5, 0.5: 4}}, "by whole rows"),
        ({"batch_ramp": {0: True, 0.5: 4}}, "by whole rows"),
        ({"batch_ramp": {0: 4}}, "must grow"),
        ({"batch_ramp": {0.5: 4}}, "a schedule has values by rising fractions"),
        ({"batch_ramp": {0: 1, 1.5: 4}}, "a schedule has values by rising fractions"),
        ({"budget": None}, "follows the clock of a `budget`"),
        ({"methods": {"selection": {}}}, "and no `batch_ramp`"),
        ({"phases": [Phase(0.0, rows_of(SHORT)), Phase(0.3, rows_of(LONG))], "batch_ramp": {0: 1, 0.5: 4}},
         "make `batch_ramp` a multiple of 2 there"),
    ],
)  # fmt: skip
def test_impossible_ramps_are_refused_at_construction(tmp_path, changes, message):
    with pytest.raises(EffptError, match=message):
        ramped(tmp_path, **changes)


def test_recipes_and_flags_take_it(tmp_path):
    flags = ["--training.budget", "1e6tokens", "--training.batch_ramp", "{0: 8, 0.5: 32}"]
    recipe = Recipe.load("tiny", flags)
    assert recipe.training.batch_ramp == {0: 8, 0.5: 32}
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml").training.batch_ramp == {0: 8, 0.5: 32}
