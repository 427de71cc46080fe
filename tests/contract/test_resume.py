"""Invariant 6: eight steps equal four and a resumption, bit for bit, for every method and every allowed pair."""

import pytest
import torch

from hf_effpt.core.anatomy import layers_of
from tests import tiny

from .settings import VARIANTS, ledgers, name_of


@pytest.mark.parametrize("at", [2, 4, 7])
@pytest.mark.parametrize("ledger", [{}, *ledgers()], ids=name_of)
def test_resumed_run_equals_the_straight_one(tmp_path, ledger, at):
    check_resumption(tmp_path, ledger, at, dropout=0.1)


@pytest.mark.parametrize("at", [2, 4, 7])
@pytest.mark.parametrize("ledger", [{}, *(ledger for ledger in ledgers() if len(ledger) == 1)], ids=name_of)
def test_so_it_does_without_random_numbers(tmp_path, ledger, at):
    """Without dropout the last layer computes masked positions only."""
    check_resumption(tmp_path, ledger, at, dropout=0.0)


# Selection changes no shape, so that one place to resume at is as good as another.
@pytest.mark.parametrize(
    ("variant", "at"),
    [(variant, at) for variant in VARIANTS for at in (2, 4, 7) if at == 4 or not variant.startswith("selection")],
)
def test_so_does_every_variant_of_a_method(tmp_path, variant, at):
    check_resumption(tmp_path, VARIANTS[variant], at, dropout=0.1)


def check_resumption(tmp_path, ledger, at, dropout):
    settings = {"save_strategy": "steps", "save_steps": at, "save_total_limit": None, "gradient_accumulation_steps": 2}
    straight = tiny.trainer(tmp_path, ledger, dropout=dropout, **settings)
    straight.train()
    resumed = tiny.trainer(tmp_path, ledger, dropout=dropout, **settings)
    torch.rand(3)  # a resumed process has used its generators otherwise
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))

    assert resumed.state.global_step == straight.state.global_step == 8
    for name, weight in tiny.weights(straight.model).items():
        assert torch.equal(weight, dict(resumed.model.named_parameters())[name]), name
    assert resumed.model.config.events == straight.model.config.events
    assert resumed.model.config.layer_order == straight.model.config.layer_order
    assert resumed.model.config.layer_widths == straight.model.config.layer_widths
    assert resumed.clock.tokens == straight.clock.tokens >= 8 * 2 * 4 * tiny.LENGTH
    assert resumed.clock.flops == straight.clock.flops
    losses = {entry["step"]: entry["loss"] for entry in straight.state.log_history if "loss" in entry}
    again = {entry["step"]: entry["loss"] for entry in resumed.state.log_history if "loss" in entry}
    assert losses == again
    assert_same_optimizer(straight, resumed)


def assert_same_optimizer(straight, resumed):
    by_name = [dict(trainer.model.named_parameters()) for trainer in (straight, resumed)]
    for name, parameter in by_name[0].items():
        ours, theirs = straight.optimizer.state[parameter], resumed.optimizer.state[by_name[1][name]]
        assert ours.keys() == theirs.keys(), name
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_a_growth_lies_between_the_checkpoints(tmp_path):
    """So that the test above resumes before and after a reshaping."""
    trainer = tiny.trainer(tmp_path, {"stacking": {"depth": 1, "at": [0.3, 0.7]}})
    trainer.train()
    assert [event["step"] for event in trainer.model.config.events] == [3, 6]
    assert len(layers_of(trainer.model.backbone).order) == 4
