"""Row selection in runs of several phases on the same rows."""

import pytest
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.methods.selection import Selection
from hf_effpt.training.phases import Phase
from tests import tiny
from tests.picking import selection
from tests.unit.training.test_phases import LONG, SHORT, rows_of, trainer_on

ADAPTIVE = selection("adaptive_masking", interrupt=0)


def phases(*rates):
    rows = rows_of(SHORT, 24)
    return [Phase(number / len(rates), rows, mlm_probability=rate) for number, rate in enumerate(rates)]


def noted(trainer):
    """Labels and ids of each micro-batch in training, before they are masked."""
    found, step = [], trainer.training_step

    def training_step(model, inputs, items=None):
        labels = inputs["labels"]
        found.append((labels, torch.where(labels != -100, labels, inputs["input_ids"])))
        return step(model, inputs, items)

    trainer.training_step = training_step
    return found


def masked(found):
    return [(labels != -100).sum(1).tolist() for labels, _ in found]


def test_masks_follow_the_model_at_the_share_of_the_phase(tmp_path):
    """Tokens of a low rate are masked less often; the rows and their order are those of a run without it."""
    plain, trainer = (
        trainer_on(tmp_path / "a", phases(0.5, 0.25)),
        trainer_on(tmp_path / "b", phases(0.5, 0.25), methods=ADAPTIVE),
    )
    usual, found = noted(plain), noted(trainer)
    rates = trainer.model.backbone.selector.strategy.rates_in(0)
    rates[: tiny.VOCAB // 2] = 1e-6
    plain.train()
    trainer.train()
    assert masked(found) == masked(usual) == [[8] * 4] * 4 + [[4] * 4] * 4
    assert all(torch.equal(ours, theirs) for (_, ours), (_, theirs) in zip(found, usual, strict=True))
    seldom = [
        sum(((labels != -100) & (labels < tiny.VOCAB // 2)).sum().item() for labels, _ in of) for of in (found, usual)
    ]
    assert seldom[0] < seldom[1] / 2


def test_the_share_of_the_only_phase_holds_for_masks_drawn_anew(tmp_path):
    trainer = trainer_on(tmp_path, phases(0.5), methods=ADAPTIVE)
    found = noted(trainer)
    trainer.train()
    assert masked(found) == [[8] * 4] * 8
    collator = DataCollatorForMaskedLM(tiny.tokenizer(), 0.5, seed=7)
    assert trainer.selection.masking_id.startswith(f"{collator.seed}, 0.5")


@pytest.mark.parametrize("name", ["adaptive_masking", "reweighting", "least_confidence", "random"])
def test_a_resumed_run_is_the_straight_one(tmp_path, name):
    """Also of strategies that pick rows, of which a step may leave some of a micro-batch for the next."""
    settings = {"interrupt": 0} if name == "adaptive_masking" else {}
    settings |= {"keep": 0.6, "start": 0.0, "end": 1.0} if name in ("least_confidence", "random") else {}
    changes = {"methods": selection(name, **settings), "dropout": 0.0, "gradient_accumulation_steps": 2}
    straight = trainer_on(tmp_path, phases(0.5, 0.25), saved=[2, 4, 7], batch_ramp={0: 2, 0.25: 4}, **changes)
    found = noted(straight)
    straight.train()
    assert [len(rows) for rows in masked(found)] == [2] * 4 + [4] * 12
    assert [rows[0] for rows in masked(found)] == [8] * 8 + [4] * 8
    for at in (2, 4, 7):
        second = trainer_on(tmp_path / "resumed", phases(0.5, 0.25), batch_ramp={0: 2, 0.25: 4}, **changes)
        second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
        tiny.assert_same_weights(straight.model, second.model)
        assert second.clock.flops == straight.clock.flops


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "selective_backprop"}, {"strategy": "core_set"}, {"strategy": "discriminative"},
        {"strategy": "perceptron_ensemble"}, {"strategy": "highest_loss", "scorer": "stale"},
        {"strategy": "rho", "holdout": "small/", "table": "losses/"},
    ],
    ids=lambda settings: settings["strategy"],
)  # fmt: skip
def test_strategies_that_remember_rows_are_told_apart(settings):
    assert Selection(**settings).remembers


def test_longer_rows_are_refused(tmp_path):
    longer = [Phase(0.0, rows_of(SHORT)), Phase(0.5, rows_of(LONG))]
    with pytest.raises(
        EffptError, match=r"`selection` selects among rows of one length, and the phases have \[16, 32\]"
    ):
        trainer_on(tmp_path, longer, methods=ADAPTIVE)


def test_a_small_batch_of_a_ramp_must_leave_a_choice(tmp_path):
    methods = selection("random", keep=0.8)
    with pytest.raises(EffptError, match=r"`selection\.keep` 0\.8 of a step of 1 rows asks for 1 to choose from"):
        trainer_on(tmp_path, rows_of(SHORT), methods=methods, batch_ramp={0: 1, 0.5: 4})


def test_the_card_tells_what_is_not_as_published():
    assert "every 200 steps" in Selection(strategy="adaptive_masking").departures
    assert not Selection(strategy="random").departures
