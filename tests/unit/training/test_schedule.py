"""The learning rate at points of the budget, with a warm-up that precedes the decay or multiplies it."""

import math

import pytest
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.training.optimization import clock_schedule
from tests import tiny

LENGTH, WARMUP = 1000, 200
POINTS = (0, WARMUP / 2, WARMUP, LENGTH / 2, LENGTH)


def rates(tmp_path, **changes):
    """The share of the peak at each of `POINTS`."""
    args = tiny.arguments(tmp_path, budget=f"{LENGTH}steps", warmup_steps=WARMUP, **changes)
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [each]} for each in weights], lr=args.learning_rate)
    step, found = 0, []
    schedule = clock_schedule(args, optimizer, lambda: step / LENGTH, LENGTH)
    optimizer.step()
    for step in POINTS:  # noqa: B007 - the schedule reads it
        schedule.step()
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert first == second
        found.append(first / args.learning_rate)
    return found


@pytest.mark.parametrize(
    ("multiply", "expected"),
    [
        (False, [0, 0.5, 1, 500 / 800, 0]),  # up to the peak, then down over the 800 steps that are left
        (True, [0, 0.9 * 0.5, 0.8, 0.5, 0]),  # (1 - t/T) * min(1, t/W)
    ],
)
def test_linear(tmp_path, multiply, expected):
    assert rates(tmp_path, multiply_warmup=multiply) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        ({"lr_scheduler_type": "cosine"}, lambda done: (1 + math.cos(math.pi * done)) / 2),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0, "lr_end": 0.0}},
            lambda done: (1 - done) ** 2,
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
            lambda done: 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2,
        ),
    ],
    ids=["cosine", "polynomial", "cosine_with_min_lr"],
)
def test_warmup_multiplies_any_decay(tmp_path, changes, whole):
    expected = [whole(step / LENGTH) * min(1, step / WARMUP) for step in POINTS]
    assert rates(tmp_path, multiply_warmup=True, **changes) == pytest.approx(expected, abs=1e-12)


def test_a_run_takes_its_steps_at_these_rates_the_first_included(tmp_path):
    trainer = tiny.trainer(tmp_path, budget="8steps", warmup_steps=0.5, multiply_warmup=True)
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    # 0, then 7/8 of 1/4, 6/8 of 2/4, 5/8 of 3/4, and from there the decay alone
    shares = [0, 7 / 32, 12 / 32, 15 / 32, 16 / 32, 12 / 32, 8 / 32, 4 / 32]
    assert logged == pytest.approx([1e-3 * share for share in shares], abs=1e-15)


def test_follows_a_clock_of_tokens(tmp_path):
    trainer = tiny.trainer(
        tmp_path, budget=f"{8 * 4 * tiny.LENGTH}tokens", warmup_steps=0.5, multiply_warmup=True, logging_steps=4
    )
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([1e-3 * 15 / 32, 1e-3 * 4 / 32], abs=1e-9)


def test_without_a_warmup_there_is_nothing_to_multiply(tmp_path):
    with pytest.raises(EffptError, match=r"only with .* `warmup_steps` above 0, and here `warmup_steps` is 0"):
        tiny.arguments(tmp_path, warmup_steps=0, multiply_warmup=True)


def test_a_finished_run_that_is_resumed_is_at_its_last_rate(tmp_path):
    settings = {"warmup_steps": 4, "save_strategy": "steps", "save_steps": 8}
    tiny.trainer(tmp_path, **settings).train()
    again = tiny.trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.lr_scheduler.get_last_lr() == [0.0, 0.0]


@pytest.mark.parametrize("schedule", ["constant", "constant_with_warmup"])
def test_a_schedule_without_decay_is_refused(tmp_path, schedule):
    tiny.arguments(tmp_path, lr_scheduler_type=schedule)
    with pytest.raises(EffptError, match=f"only with `lr_scheduler_type` `linear`.*, and here .* is '{schedule}'"):
        tiny.arguments(tmp_path, lr_scheduler_type=schedule, multiply_warmup=True)
