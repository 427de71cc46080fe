"""Selection with the rest of the package: other methods and objectives, what it leaves, and what it says."""

import logging

import pytest
import torch

from hf_effpt.methods.selection.memory import NAME, Memory
from hf_effpt.methods.selection.strategies import STRATEGIES
from hf_effpt.training.stream import KEYS
from tests import tiny
from tests.picking import Watched, assert_same_run, compared, never, run, selection, trained


@pytest.fixture(scope="module")
def holdout(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("holdout"))


class Spied(Watched):
    """Fails if what no model reads reaches one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = 0

        def check(module, args, given):
            self.calls += 1
            assert not set(KEYS) & set(given)

        self.model.register_forward_pre_hook(check, with_kwargs=True)
        self.model.bert.register_forward_pre_hook(check, with_kwargs=True)


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_model_is_given_the_number_of_an_example(tmp_path, holdout, name):
    trainer = run(tmp_path, selection(name, **compared(name, holdout)), Spied, budget="2steps")
    assert trainer.calls >= 4


def test_early_bert_searches_rows_without_their_numbers(tmp_path):
    ledger = selection("core_set") | {"earlybert": {"ticket": "michel", "max_search_steps": 0.5}}
    trainer = run(tmp_path, ledger, train=False, layers=4)
    drawn, draw = [], trainer.stream.draw

    def noting(number, step):
        for batch in draw(number, step):
            drawn.append(set(batch))
            yield batch

    trainer.stream.draw = noting
    trainer.train()
    assert drawn
    assert all(not set(KEYS) & names for names in drawn)
    assert any(event["method"] == "earlybert" for event in trainer.model.config.events)


def test_losses_from_before_a_growth_do_not_count(tmp_path, monkeypatch):
    known, read = [], Memory.read

    def noting(self, rows, changed):
        found = read(self, rows, changed)
        known.append((rows.step, changed, (found == self.losses[rows.ids_N]).sum().item()))
        return found

    monkeypatch.setattr(Memory, "read", noting)
    ledger = selection("infobatch", keep=0.25) | {"stacking": {"depth": 1, "at": [0.5]}}
    trainer = run(tmp_path, ledger)
    assert [event["step"] for event in trainer.model.config.events] == [4]
    assert [changed for _, changed, _ in known] == [0] * 4 + [4] * 4
    counts = [count for *_, count in known]
    assert counts[0] == counts[4] == counts[5] == 0
    assert counts[3] > 0  # three steps are a pass
    assert counts[6] > 0


def test_no_notes_are_taken_while_rows_are_judged(tmp_path):
    ledger = selection("least_confidence") | {"tnf": {"k": 2, "min_count": 5, "max_count": 7}}
    trainer = run(tmp_path, ledger, train=False, gradient_accumulation_steps=2)
    notes, scored, same = trainer.model.bert.notes, trainer.selection.score_rows, []

    def noting(*args, **kwargs):
        before = notes.vectors.clone()
        found = scored(*args, **kwargs)
        same.append(torch.equal(before, notes.vectors))
        return found

    trainer.selection.score_rows = noting
    before = notes.vectors.clone()
    trainer.train()
    assert same == [True] * 8
    assert not torch.equal(before, notes.vectors)


def test_layers_that_are_skipped_are_skipped_on_picked_rows(tmp_path):
    ledger = selection("selective_backprop") | {"layerskip": {"target": 0.4, "estimator": "reinforce"}}
    straight = run(tmp_path, ledger, layers=4, saved=[4])
    resumed = run(tmp_path, ledger, train=False, layers=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same_run(straight, resumed)


@pytest.mark.parametrize(
    ("objective", "settings", "scorer"),
    [
        ("electra", {"strategy": "least_confidence"}, "full"),
        ("electra", {"strategy": "least_confidence", "scorer": "generator"}, "generator"),
        ("electra", {"strategy": "selective_backprop"}, "full"),
        ("electra", {"strategy": "selective_backprop", "scorer": "generator"}, "generator"),
        ("electra", {"strategy": "expected_gradient_length"}, "full"),
        ("electra_15", {"strategy": "deep_bayesian", "rule": "bald"}, "full"),
        ("electra", {}, "embedding"),
        ("replace_mlm", {"strategy": "loss_rank", "scorer": "full"}, "full"),
        ("all_tokens_mlm", {"strategy": "infobatch"}, "stale"),
        ("mcbert", {"strategy": "least_confidence"}, "generator"),
        ("mcbert", {"strategy": "selective_backprop"}, "full"),
        ("mcbert", {"strategy": "reweighting"}, None),
    ],
)
def test_other_objectives_are_selected_for_and_resumed(tmp_path, objective, settings, scorer):
    ledger = selection(**{"strategy": "perceptron_ensemble", **settings})
    more = {"objective": objective, "budget": "3steps"}
    straight = run(tmp_path, ledger, saved=[2], **more)
    assert straight.methods[0].resolved.scorer == scorer
    resumed = run(tmp_path, ledger, train=False, **more)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_run(straight, resumed)


@pytest.mark.usefixtures("counted")
def test_scoring_by_the_generator_is_cheaper(tmp_path):
    spent = {}
    for scorer in ("full", "generator"):
        ledger = selection("least_confidence", scorer=scorer)
        trainer = run(tmp_path / scorer, ledger, objective="electra", budget="2steps")
        spent[scorer] = trainer.cost.method_flops["selection"]
    assert 0 < spent["generator"] < 0.6 * spent["full"]


def test_masks_can_be_chosen_where_the_model_has_rows_that_no_token_has(tmp_path):
    """A table of words is often made longer than the vocabulary."""
    model = tiny.model(selection("adaptive_masking"), vocab_size=tiny.VOCAB + 64, num_hidden_layers=2)
    trainer = Watched(
        model=model, args=tiny.arguments(tmp_path, budget="3steps"), train_dataset=tiny.rows(),
        processing_class=tiny.tokenizer(),
    )  # fmt: skip
    trainer.train()
    assert len(trainer.kept) == 3


def test_masks_follow_what_is_hard_and_stay_as_many(tmp_path):
    ledger = selection("adaptive_masking", keep=0.05)
    trainer = run(tmp_path, ledger, train=False, budget="40steps")
    strategy = trainer.model.bert.selector.strategy
    counts, forward = [], trainer.model.forward

    def noting(*args, **given):
        counts.append((given["labels"] != -100).sum(dim=1))
        return forward(*args, **given)

    trainer.model.forward = noting
    trainer.train()
    assert torch.cat(counts).unique().tolist() == [2]
    assert (strategy.rates < 1).any()
    assert strategy.rates.min() >= 0.05


# What it leaves, and says.


def test_stale_losses_go_on_in_another_run(tmp_path):
    first = run(tmp_path / "a", selection("infobatch"))
    first.save_model()
    table = tmp_path / "a" / NAME
    again = run(tmp_path / "b", selection("infobatch", table=str(table)), train=False)
    memory = again.model.bert.selector.memory
    assert torch.equal(memory.losses, first.model.bert.selector.memory.losses)
    assert (memory.steps >= 0).sum() > 16


def test_losses_of_a_reference_model_are_computed_once_and_charged_to_each_run(tmp_path, holdout):
    ledger = selection("rho", holdout=str(holdout), table=str(tmp_path / "table"))
    first = run(tmp_path / "a", ledger)
    first.save_model()
    again = run(tmp_path / "b", ledger, train=False)
    again.selection.reference_model(again.model, str(holdout)).register_forward_pre_hook(never)
    again.train()
    assert again.kept == first.kept
    assert again.cost.method_flops == first.cost.method_flops
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))


def test_a_log_entry_tells_what_selection_does(tmp_path):
    trainer = run(tmp_path, selection("least_confidence", outliers=0.0, explore=0.0), logging_steps=2)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in entries:
        assert entry["selection_seen"] == entry["selection_scored"] == 2 * entry["selection_trained"] == 16
        assert entry["selection_score_kept_10%"] <= entry["selection_score_kept_50%"]
        assert entry["selection_score_kept"] > entry["selection_score_left"]
        assert entry["selection_score_kept_10%"] > entry["selection_score_left_10%"]
        assert entry["selection_length_shift"] == 0.0
        assert "selection_frequency_shift" in entry


@pytest.mark.parametrize(
    ("name", "figure"), [("perceptron_ensemble", "selection_correlation"), ("discriminative", "selection_auc")]
)
def test_a_log_entry_tells_what_a_strategy_has_learned(tmp_path, name, figure):
    trainer = run(tmp_path, selection(name), gradient_accumulation_steps=2)
    told = [entry[figure] for entry in trainer.state.log_history if figure in entry]
    assert len(told) > 2
    assert all(-1.0 <= value <= 1.0 for value in told)


def test_a_classifier_that_knows_nothing_is_warned_of_once(tmp_path, caplog):
    """In one pass over shuffled text rows to come are like rows trained on."""
    trainer = run(tmp_path, selection("discriminative"), train=False, budget="4steps")
    strategy = trainer.model.bert.selector.strategy
    strategy.measured.fill_(100)
    with caplog.at_level(logging.WARNING, "hf_effpt"):
        trainer.train()
    assert caplog.text.count("cannot tell rows to come from rows trained on") == 1


def test_a_drift_of_what_is_learned_from_is_warned_of_once(tmp_path, caplog):
    trainer = run(tmp_path, selection("random"), train=False)
    selector = trainer.model.bert.selector
    sums = {"selection_picks": 2.0, "selection_length_kept": 40.0, "selection_length_left": 30.0}
    even = {"selection_frequency_kept": -6.0, "selection_frequency_left": -6.0}
    rare = {"selection_frequency_kept": -8.0, "selection_frequency_left": -6.0}
    with caplog.at_level(logging.WARNING, "hf_effpt"):
        figures = selector.metrics(sums | rare)
        selector.metrics(sums | rare)
    assert (figures["selection_frequency_shift"], figures["selection_length_shift"]) == (-1.0, 5.0)
    assert caplog.text.count("keeps rows of rarer tokens") == 1
    assert caplog.text.count("longer") == 1
    caplog.clear()
    selector.metrics({**sums, **even, "selection_length_kept": 30.0})
    assert not caplog.text
