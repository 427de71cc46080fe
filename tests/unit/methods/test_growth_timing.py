"""When the model grows by its loss, and how the learning rate rises again."""

import itertools
import math
from functools import partial

import pytest
import torch

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from hf_effpt.core.ledger import record, rewarmed
from hf_effpt.methods.stacking import slope
from hf_effpt.training.callbacks import live_context
from tests import tiny


def after(model, losses, flops=lambda step: 1e9 * step, fraction=0.0, warmup=0):
    """The steps after which `model` grew, with these losses."""
    (method,) = model.methods
    for step, loss in enumerate(losses, 1):
        optimizer = torch.optim.SGD(model.parameters())
        live = {"model": model, "optimizer": optimizer, "loss": partial(torch.tensor, loss), "flops": flops(step)}
        method.advance(model.bert, RunContext(step, fraction, **live, warming_up=step <= warmup))
    return [event["step"] for event in model.config.events or []]


def test_slope_is_that_of_a_power_law():
    model = tiny.model({"stacking": {"depth": 2, "at": [0.9], "slope": -0.05}})
    for step in range(1, 200):
        slope.add(model.bert, torch.tensor(7.0 * step**-0.13), 3e12 * step)
    assert slope.slope(model.bert) == pytest.approx(-0.13, abs=1e-3)


def test_slope_forgets_what_is_long_past():
    model = tiny.model({"stacking": {"depth": 2, "at": [0.9], "slope": -0.05}})
    for step in range(1, 1001):
        slope.add(model.bert, torch.tensor(step**-0.5 if step < 300 else 300**-0.5 * (step / 300) ** -0.01), step)
    assert slope.slope(model.bert) == pytest.approx(-0.01, abs=2e-3)


def test_grows_once_the_loss_falls_too_slowly():
    model = tiny.model({"stacking": {"depth": 1, "at": [0.8, 0.9], "slope": -0.0575}})
    losses = [10 * step**-0.2 if step <= 150 else 10 * 150**-0.2 * (step / 150) ** -0.01 for step in range(1, 401)]
    grown = after(model, losses)
    assert 150 < grown[0] < 250
    assert len(stack_of(model.bert).order) == 4
    assert grown[1] - grown[0] >= slope.LEAST  # a stage has to last before its slope means anything


def test_a_steep_loss_waits_for_the_latest_fraction():
    model = tiny.model({"stacking": {"depth": 2, "at": [0.8], "slope": -0.0575}})
    assert after(model, [10 * step**-0.2 for step in range(1, 300)]) == []
    model.methods[0].advance(model.bert, RunContext(300, 0.8))
    assert len(stack_of(model.bert).order) == 4


def test_sums_are_saved_and_not_exported(tmp_path):
    trainer = tiny.trainer(
        tmp_path, {"stacking": {"depth": 2, "at": [0.9], "slope": -1e-9}}, budget="6steps", save_strategy="steps",
        save_steps=3, save_total_limit=None,
    )  # fmt: skip
    trainer.train()
    sums = trainer.model.bert.growth_sums.clone()
    assert sums[0] > 1
    assert not [name for name in trainer.model.export().state_dict() if "growth" in name]
    again = tiny.trainer(
        tmp_path, {"stacking": {"depth": 2, "at": [0.9], "slope": -1e-9}}, budget="6steps", save_strategy="steps",
        save_steps=3, save_total_limit=None,
    )  # fmt: skip
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(again.model.bert.growth_sums, sums)


def test_the_learning_rate_rises_again_as_an_event_asks():
    config = tiny.config()
    assert rewarmed(config, 5) == 1.0
    record(config, 10, "stacking", "grew", rewarmup=4)
    assert [rewarmed(config, step) for step in (9, 10, 11, 13, 14)] == [1.0, 0.2, 0.4, 0.8, 1.0]
    record(config, 12, "stacking", "grew", rewarmup=1)
    assert rewarmed(config, 12) == 0.5
    assert rewarmed(config, 13) == 0.8


def rates(tmp_path, **settings):
    trainer = tiny.trainer(tmp_path, {"stacking": {"depth": 2, "at": [0.5], **settings}}, budget="40steps")
    seen = []
    trainer.add_callback(Rates(trainer, seen))
    trainer.train()
    return seen


class Rates(tiny.TrainerCallback):
    def __init__(self, trainer, seen):
        self.trainer, self.seen = trainer, seen

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.seen.append(self.trainer.optimizer.param_groups[0]["lr"])


def test_growth_warms_up_a_second_time_and_does_not_restart_the_schedule(tmp_path):
    plain, warmed = rates(tmp_path, rewarmup=0), rates(tmp_path)
    assert all(math.isclose(a, b) for a, b in zip(plain[:20] + plain[22:], warmed[:20] + warmed[22:], strict=True))
    assert warmed[20] == pytest.approx(plain[20] / 3)  # two steps, a tenth of the twenty before
    assert warmed[21] == pytest.approx(plain[21] * 2 / 3)
    steps = [after - before for before, after in itertools.pairwise(plain[12:])]
    assert max(steps) - min(steps) < 1e-9  # one straight line over the growth


def test_a_flat_loss_in_the_warm_up_is_no_reason_to_grow():
    losses = [4.85] * 100 + [4.85 * (step - 99) ** -0.2 for step in range(101, 400)]
    model = tiny.model({"stacking": {"depth": 1, "at": [0.8, 0.9], "slope": -0.0575}})
    assert after(model, losses, warmup=100) == []
    hasty = tiny.model({"stacking": {"depth": 1, "at": [0.8, 0.9], "slope": -0.0575}})
    assert after(hasty, losses)[0] == slope.LEAST


def test_a_run_tells_methods_when_its_learning_rate_rises(tmp_path):
    trainer = tiny.trainer(tmp_path, {"stacking": {"depth": 2, "at": [0.5]}}, budget="40steps")
    seen = []
    trainer.add_callback(Rising(trainer, seen))
    trainer.train()
    assert seen == [True] * 9 + [False] * 10 + [True] * 2 + [False] * 19  # a quarter, then two steps after the growth


class Rising(tiny.TrainerCallback):
    def __init__(self, trainer, seen):
        self.trainer, self.seen = trainer, seen

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(live_context(self.trainer).warming_up)


def test_a_run_resumed_at_a_growth_or_in_its_second_warm_up_is_the_same(tmp_path):
    ledger = {"stacking": {"depth": 2, "at": [0.5]}}
    straight = tiny.trainer(tmp_path, ledger, budget="30steps", saved=[15, 16])
    straight.train()
    assert straight.model.config.events[0]["step"] == 15
    for at in (15, 16):
        resumed = tiny.trainer(tmp_path / "resumed", ledger, budget="30steps")
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
        for name, weight in tiny.weights(straight.model).items():
            assert torch.equal(weight, dict(resumed.model.named_parameters())[name]), name


def test_nothing_grows_when_the_budget_is_spent(tmp_path):
    """What is added then nothing would train."""
    trainer = tiny.trainer(tmp_path, {"stacking": {"depth": 2, "at": [0.99]}}, budget="4steps")
    trainer.train()
    assert not trainer.model.config.events
    assert trainer.model.export().config.num_hidden_layers == 2
