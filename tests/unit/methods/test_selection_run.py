"""Runs with selection: what they pick, that they repeat and resume exactly, and how it goes along with the rest."""

import logging

import numpy as np
import pytest
import torch

from hf_effpt.core.anatomy import layers_of
from hf_effpt.core.hashing import salted, uniform
from hf_effpt.core.rows import is_asked_for_losses
from hf_effpt.methods.selection import scoring
from hf_effpt.methods.selection.choosing import UNIFORM
from hf_effpt.methods.selection.memory import NAME, Memory
from hf_effpt.methods.selection.strategies import STRATEGIES
from hf_effpt.training.loading import KEYS
from hf_effpt.training.stream import BatchStream
from hf_effpt.training.trainer import EffptTrainer
from tests import tiny
from tests.picking import Watched, compared, selection, trained

PICKING = [name for name in STRATEGIES if STRATEGIES[name].picks_rows]
# Strategies with what else they can be asked to do, where it is another path.
VARIANTS = {
    **{name: {"strategy": name} for name in STRATEGIES},
    "by draws of the whole model": {"strategy": "deep_bayesian", "level": "full", "passes": 2},
    "stale losses": {"strategy": "selective_backprop", "scorer": "stale", "queue": 16},
    "stale losses for so long": {"strategy": "loss_rank", "max_age": 3},
    "first layer": {"strategy": "least_confidence", "scorer": "first_layer", "mode": "rank_sample"},
    "losses of the first layer": {"strategy": "selective_backprop", "scorer": "first_layer"},
    "whole encoder": {"strategy": "core_set", "scorer": "full", "queue": 12},
    "interrupted": {"strategy": "perceptron_ensemble", "scorer": "first_layer", "interrupt": 3, "warmup": 2},
    "masks, interrupted": {"strategy": "adaptive_masking", "interrupt": 2},
}


@pytest.fixture(scope="module")
def holdout(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("holdout"))


def run(out, ledger, cls=Watched, train=True, **settings):
    trainer = tiny.trainer(out, ledger, cls=cls, **{"layers": 2, **settings})
    if train:
        trainer.train()
    return trainer


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# Spec 6: with nothing to choose, or by lot, it is the plain path.

PLAIN = {"dropout": 0.1, "gradient_accumulation_steps": 2, "budget": "20steps"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    torch.set_num_threads(1)
    trainer = run(tmp_path_factory.mktemp("plain"), None, EffptTrainer, **PLAIN)
    return trainer, torch.get_rng_state()


@pytest.mark.parametrize("name", STRATEGIES)
def test_spec_6_keeping_all_is_the_plain_path_bit_for_bit(tmp_path, monkeypatch, plain, name):
    def never(*args, **kwargs):
        raise AssertionError("scored")

    monkeypatch.setattr(EffptTrainer, "scored", never)
    monkeypatch.setattr(scoring, "scores", never)
    monkeypatch.setattr("hf_effpt.methods.selection.method.scores", never)
    trainer = run(tmp_path, selection(name, keep=1.0, **compared(name, "nowhere")), EffptTrainer, **PLAIN)
    assert torch.equal(torch.get_rng_state(), plain[1])
    expected = tiny.weights(plain[0].model)
    assert all(torch.equal(weight, expected[name]) for name, weight in tiny.weights(trainer.model).items())
    assert losses_of(trainer) == losses_of(plain[0])
    assert (trainer.clock.flops, trainer.clock.tokens) == (plain[0].clock.flops, plain[0].clock.tokens)
    assert not is_asked_for_losses(trainer.model.bert.train())


def test_spec_6_random_equals_plain_training_on_the_same_subset(tmp_path):
    settings = {"dropout": 0.1, "gradient_accumulation_steps": 2}
    picked = run(tmp_path / "a", selection("random", keep=0.5), **settings)
    stream = BatchStream(48, 4, seed=7)
    batches = []
    for step in range(8):
        keys = stream.keys(np.arange(16 * step, 16 * step + 16))
        rows_N = torch.from_numpy(keys[:, 1] ^ (keys[:, 0] << 40))
        lot_N = uniform(salted(rows_N, 7, step, UNIFORM))
        kept = np.sort(lot_N.argsort(descending=True)[:8].numpy())
        assert picked.kept[step] == keys[kept, 1].tolist()
        batches += [keys[kept[:4]], keys[kept[4:]]]

    class OfThese(EffptTrainer):
        def _stream(self, *args, **kwargs):
            return batches

    plain = run(tmp_path / "b", None, OfThese, **settings)
    expected = tiny.weights(plain.model)
    assert all(torch.equal(weight, expected[name]) for name, weight in tiny.weights(picked.model).items())


# Spec 7: runs repeat exactly.


def assert_same_run(straight, again):
    ours, theirs = straight.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert straight.clock.tokens == again.clock.tokens
    assert straight.clock.flops == again.clock.flops
    assert straight.method_flops == again.method_flops


@pytest.mark.parametrize("variant", VARIANTS)
def test_spec_7_a_resumed_run_equals_the_straight_one(tmp_path, holdout, variant):
    """Rows are left over at the checkpoint; the data begin anew after it; global generators stay (spec 6)."""
    given = VARIANTS[variant]
    ledger = selection(**{"keep": 0.6, **given, **compared(given["strategy"], holdout)})
    settings = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "dropout": 0.1}
    settings |= {"save_strategy": "steps", "save_steps": 4}
    straight = run(tmp_path, ledger, **settings)
    resumed = run(tmp_path, ledger, train=False, **settings)
    torch.rand(3)  # a resumed process has used its generators otherwise
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.looked == straight.looked[4:]
    assert resumed.kept == straight.kept[4:]
    assert_same_run(straight, resumed)
    assert losses_of(straight) == losses_of(resumed)
    if STRATEGIES[given["strategy"]].picks_rows and "interrupt" not in given:
        assert {len(rows) for rows in straight.looked} == {10}
        assert straight._carried is not None
        assert {epoch for rows in straight.looked for epoch, _ in rows} == {0, 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_spec_7_so_does_one_with_data_workers(tmp_path, workers):
    settings = {"per_device_train_batch_size": 3, "save_strategy": "steps", "save_steps": 4}
    ledger = selection("least_confidence", keep=0.4)
    straight = run(tmp_path, ledger, dataloader_num_workers=workers, **settings)
    resumed = run(tmp_path, ledger, train=False, dataloader_num_workers=2 - workers, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.looked == straight.looked[4:]
    assert_same_run(straight, resumed)


@pytest.mark.parametrize("name", ["perceptron_ensemble", "least_confidence"])
def test_spec_7_the_same_seed_gives_the_same_run_and_another_another(tmp_path, name):
    ledger = selection(name, explore=0.3)
    one, two = (run(tmp_path / out, ledger, budget="4steps") for out in "ab")
    other = run(tmp_path / "c", ledger, budget="4steps", seed=8)
    assert one.kept == two.kept
    assert_same_run(one, two)
    assert one.kept != other.kept


def spread(out, ledger, size):
    """A run of steps of eight rows, so many at a time, of a model that is surer of some rows than of others.

    To a fresh one they are so alike that the last bits decide which are picked.
    """
    settings = {"optim": "sgd", "learning_rate": 0.03, "budget": "4steps", "gradient_accumulation_steps": 8 // size}
    trainer = run(out / str(size), ledger, train=False, per_device_train_batch_size=size, **settings)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(4.0)
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("token_selection", "reweighting")])
def test_spec_7_a_step_does_not_depend_on_how_it_is_cut(tmp_path, holdout, name):
    """But where rows are weighed by their micro-batch, as `token_selection` and `reweighting` say that they do."""
    ledger = selection(name, keep=0.5, **compared(name, holdout))
    whole, *parts = (spread(tmp_path, ledger, size) for size in (8, 4, 2))
    expected = tiny.weights(whole.model)
    for part in parts:
        assert part.kept == whole.kept
        assert losses_of(part) == pytest.approx(losses_of(whole), abs=1e-4)
        for weight, value in tiny.weights(part.model).items():
            assert torch.allclose(value, expected[weight], atol=1e-5), weight


class Permuted(Watched):
    """Looks at the rows of a step in another order."""

    def pull(self, batches, number):
        rows = super().pull(batches, number)
        order = torch.randperm(number, generator=torch.Generator().manual_seed(self.state.global_step))
        return {name: values[order] for name, values in rows.items()}


@pytest.mark.parametrize("name", PICKING)
def test_spec_7_permuting_the_candidates_permutes_the_selection(tmp_path, holdout, name):
    """With a learning rate of next to 0, so that the order in which gradients are added up does not matter."""
    ledger = selection(name, explore=0.2, **compared(name, holdout)) if name != "infobatch" else selection(name)
    settings = {"learning_rate": 1e-30, "gradient_accumulation_steps": 2, "budget": "6steps"}
    straight, other = (run(tmp_path / cls.__name__, ledger, cls, **settings) for cls in (Watched, Permuted))
    assert [sorted(rows) for rows in other.kept] == [sorted(rows) for rows in straight.kept]
    assert other.kept != straight.kept


# When rows are picked.


def test_rows_are_picked_only_when_they_shall_be_and_none_is_left_out_else(tmp_path):
    ledger = {"selection": {"strategy": "random", "start": 0.2, "end": 0.8, "interrupt": 4, "warmup": 5}}
    trainer = run(tmp_path, ledger, budget="16steps")
    on = [step for step in range(16) if 5 <= step < 12.8 and step % 4]
    assert [len(rows) for rows in trainer.looked] == [8 if step in on else 4 for step in range(16)]
    for step in set(range(16)) - set(on):
        assert trainer.kept[step] == [row for _, row in trainer.looked[step]]
    assert trainer.model.bert.selector.counts.tolist() == [4 * (16 + len(on)), 0, 4 * 16]


def test_a_committee_learns_while_it_does_not_pick(tmp_path):
    trainer = run(tmp_path, {"selection": {"start": 0.0, "end": 1.0, "warmup": 6, "interrupt": 0}})
    assert [len(rows) for rows in trainer.looked] == [4] * 6 + [8] * 2
    assert trainer.model.bert.selector.strategy.steps == 8
    assert trainer.model.bert.selector.counts.tolist() == [40, 40, 32]


def test_the_whole_model_judges_in_evaluation_mode_and_trains_on(tmp_path, monkeypatch):
    modes, rated = [], scoring._rated

    def noting(strategy, scorer, model, batch):
        modes.append({module.training for module in model.modules()})
        assert not torch.is_grad_enabled()
        return rated(strategy, scorer, model, batch)

    monkeypatch.setattr(scoring, "_rated", noting)
    ledger = selection("least_confidence")
    ledger["layerdrop"] = {"p": 0.5}
    running = []
    trainer = run(tmp_path, ledger, train=False, dropout=0.1, layers=4)
    for layer in layers_of(trainer.model.bert).children():
        layer.register_forward_hook(lambda module, *_: running.append((module.training, id(module))))
    trainer.train()
    assert all(mode == {False} for mode in modes)
    judged = [layer for training, layer in running if not training]
    # All layers, in each of two parts of each step; of the last, hooks are not told.
    assert len(judged) == 8 * 2 * 3
    assert len(set(judged)) == 3
    assert len(running) - len(judged) < 8 * 3
    assert trainer.model.training


# With the rest of the package.


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
    drawn, draw = [], trainer.draw

    def noting(number):
        for batch in draw(number):
            drawn.append(set(batch))
            yield batch

    trainer.draw = noting
    trainer.train()
    assert drawn
    assert all(not set(KEYS) & names for names in drawn)
    assert any(event["method"] == "earlybert" for event in trainer.model.config.events)


def test_losses_from_before_a_growth_do_not_count(tmp_path, monkeypatch):
    known, read = [], Memory.read

    def noting(self, rows, changed):
        known.append((rows.step, changed, self.known(rows.step, changed).sum().item()))
        return read(self, rows, changed)

    monkeypatch.setattr(Memory, "read", noting)
    ledger = selection("infobatch", end=1.0) | {"stacking": {"depth": 1, "at": [0.5]}}
    trainer = run(tmp_path, ledger)
    assert [event["step"] for event in trainer.model.config.events] == [4]
    assert [changed for _, changed, _ in known] == [0] * 4 + [4] * 4
    counts = [count for *_, count in known]
    assert counts[0] == counts[4] == 0
    assert counts[3] > counts[1] > 0
    assert counts[5] > 0


def test_no_notes_are_taken_while_rows_are_judged(tmp_path):
    ledger = selection("least_confidence") | {"tnf": {"k": 2, "min_count": 5, "max_count": 7}}
    trainer = run(tmp_path, ledger, train=False, gradient_accumulation_steps=2)
    notes, scored, same = trainer.model.bert.notes, trainer.scored, []

    def noting(*args, **kwargs):
        before = notes.vectors.clone()
        found = scored(*args, **kwargs)
        same.append(torch.equal(before, notes.vectors))
        return found

    trainer.scored = noting
    before = notes.vectors.clone()
    trainer.train()
    assert same == [True] * 8
    assert not torch.equal(before, notes.vectors)


def test_layers_that_are_skipped_are_skipped_on_picked_rows(tmp_path):
    ledger = selection("selective_backprop") | {"layerskip": {"target": 0.4, "estimator": "reinforce"}}
    settings = {"save_strategy": "steps", "save_steps": 4, "layers": 4}
    straight = run(tmp_path, ledger, **settings)
    resumed = run(tmp_path, ledger, train=False, **settings)
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
    more = {"objective": objective, "save_strategy": "steps", "save_steps": 2, "budget": "4steps"}
    straight = run(tmp_path, ledger, **more)
    assert straight.methods[0].uses.scorer == scorer
    resumed = run(tmp_path, ledger, train=False, **more)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_run(straight, resumed)


def test_scoring_by_the_generator_is_cheaper(tmp_path):
    spent = {}
    for scorer in ("full", "generator"):
        ledger = selection("least_confidence", scorer=scorer)
        trainer = run(tmp_path / scorer, ledger, objective="electra", budget="2steps")
        spent[scorer] = trainer.method_flops["selection"]
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


def test_losses_of_a_reference_model_are_computed_once(tmp_path, holdout):
    ledger = selection("rho", holdout=str(holdout), table=str(tmp_path / "table"))
    first = run(tmp_path / "a", ledger)
    first.save_model()
    again = run(tmp_path / "b", ledger)
    assert again.kept == first.kept
    prepared = first.prepared_flops["selection"]
    judging = [trainer.method_flops["selection"] - prepared for trainer in (first, again)]
    assert judging[1] == pytest.approx(judging[0] / 2, rel=0.01)
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
        figures = selector.figures(sums | rare)
        selector.figures(sums | rare)
    assert (figures["selection_frequency_shift"], figures["selection_length_shift"]) == (-1.0, 5.0)
    assert caplog.text.count("keeps rows of rarer tokens") == 1
    assert caplog.text.count("longer") == 1
    caplog.clear()
    selector.figures({**sums, **even, "selection_length_kept": 30.0})
    assert not caplog.text
