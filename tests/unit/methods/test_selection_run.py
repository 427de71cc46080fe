"""Runs with selection: what they pick, that they repeat and resume exactly, and how it goes along with the rest."""

import numpy as np
import pytest
import torch

from hf_effpt.core.anatomy import layers_of
from hf_effpt.core.random import salted, uniform
from hf_effpt.core.token_losses import observers_of
from hf_effpt.methods.selection import scoring
from hf_effpt.methods.selection.picking import UNIFORM
from hf_effpt.methods.selection.strategies import STRATEGIES
from hf_effpt.training.row_selection import RowSelection
from hf_effpt.training.stream import BatchStream
from hf_effpt.training.trainer import EffptTrainer
from tests import tiny
from tests.picking import Watched, assert_same_run, compared, never, run, selection, trained

PICKING = [name for name in STRATEGIES if STRATEGIES[name].picks_rows]
# Strategies that the tests of contract do not resume, and what else some can be asked to do, where it is another path.
VARIANTS = {
    **{name: {"strategy": name} for name in ("least_confidence", "deep_bayesian", "rho", "token_selection")},
    "stale losses": {"strategy": "selective_backprop", "scorer": "stale", "queue": 16},
    "first layer": {"strategy": "least_confidence", "scorer": "first_layer", "mode": "rank_sample"},
    "whole encoder": {"strategy": "core_set", "scorer": "full", "queue": 12},
    "at some positions": {"strategy": "least_confidence", "num_score_positions": 1},
    "interrupted": {"strategy": "perceptron_ensemble", "scorer": "first_layer", "interrupt": 3, "warmup": 2},
    "masks, interrupted": {"strategy": "adaptive_masking", "interrupt": 2},
}


@pytest.fixture(scope="module")
def holdout(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("holdout"))


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# Spec 6: with nothing to choose, or by lot, it is the plain path.

PLAIN = {"dropout": 0.1, "gradient_accumulation_steps": 2, "budget": "7steps"}  # six are a pass


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    torch.set_num_threads(1)
    trainer = run(tmp_path_factory.mktemp("plain"), None, EffptTrainer, **PLAIN)
    return trainer, torch.get_rng_state()


@pytest.mark.parametrize("name", STRATEGIES)
def test_spec_6_keeping_all_is_the_plain_path_bit_for_bit(tmp_path, monkeypatch, plain, name):
    monkeypatch.setattr(RowSelection, "score_rows", never)
    monkeypatch.setattr(scoring, "scores", never)
    monkeypatch.setattr("hf_effpt.methods.selection.method.scores", never)
    trainer = run(tmp_path, selection(name, keep=1.0, **compared(name, "nowhere")), EffptTrainer, **PLAIN)
    assert torch.equal(torch.get_rng_state(), plain[1])
    expected = tiny.weights(plain[0].model)
    assert all(torch.equal(weight, expected[name]) for name, weight in tiny.weights(trainer.model).items())
    assert losses_of(trainer) == losses_of(plain[0])
    assert (trainer.clock.flops, trainer.clock.tokens) == (plain[0].clock.flops, plain[0].clock.tokens)
    assert not observers_of(trainer.model.bert.train())


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

    plain = run(tmp_path / "b", None, EffptTrainer, train=False, **settings)
    plain.stream._batches = lambda *args: batches
    plain.train()
    expected = tiny.weights(plain.model)
    assert all(torch.equal(weight, expected[name]) for name, weight in tiny.weights(picked.model).items())


# Spec 7: runs repeat exactly.


@pytest.mark.parametrize("variant", VARIANTS)
def test_spec_7_a_resumed_run_equals_the_straight_one(tmp_path, holdout, variant):
    """Rows are left over at the checkpoint; the data begin anew after it; global generators stay (spec 6)."""
    given = VARIANTS[variant]
    ledger = selection(**{"keep": 0.6, **given, **compared(given["strategy"], holdout)})
    settings = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "dropout": 0.1}
    straight = run(tmp_path, ledger, saved=[4], **settings)
    resumed = run(tmp_path, ledger, train=False, **settings)
    torch.rand(3)  # a resumed process has used its generators otherwise
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.looked == straight.looked[4:]
    assert resumed.kept == straight.kept[4:]
    assert_same_run(straight, resumed)
    assert losses_of(straight) == losses_of(resumed)
    if STRATEGIES[given["strategy"]].picks_rows and "interrupt" not in given:
        assert {len(rows) for rows in straight.looked} == {10}
        assert straight.stream._carried is not None
        assert {epoch for rows in straight.looked for epoch, _ in rows} == {0, 1}


def test_spec_7_so_does_one_with_data_workers(tmp_path):
    """They have read on when the checkpoint is saved."""
    settings = {"per_device_train_batch_size": 3}
    ledger = selection("least_confidence", keep=0.4)
    straight = run(tmp_path / "straight", ledger, **settings)
    first = run(tmp_path, ledger, train=False, dataloader_num_workers=2, saved=[4], **settings)
    first.add_callback(tiny.StopAfter(4))
    first.train()
    resumed = run(tmp_path, ledger, train=False, dataloader_num_workers=2, **settings)
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
    settings = {"optim": "sgd", "learning_rate": 0.03, "budget": "3steps", "gradient_accumulation_steps": 8 // size}
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
    whole, *parts = (spread(tmp_path, ledger, size) for size in (8, 2))
    expected = tiny.weights(whole.model)
    for part in parts:
        assert part.kept == whole.kept
        assert losses_of(part) == pytest.approx(losses_of(whole), abs=1e-4)
        for weight, value in tiny.weights(part.model).items():
            assert torch.allclose(value, expected[weight], atol=1e-5), weight


class Permuted(Watched):
    """Looks at the rows of a step in another order."""

    def seen(self, rows):
        rows, number = super().seen(rows), len(rows["input_ids"])
        order = torch.randperm(number, generator=torch.Generator().manual_seed(self.state.global_step))
        return {name: values[order] for name, values in rows.items()}


@pytest.mark.parametrize("name", PICKING)
def test_spec_7_permuting_the_candidates_permutes_the_selection(tmp_path, holdout, name):
    """With a learning rate of next to 0, so that the order in which gradients are added up does not matter."""
    explored = {"explore": 0.2} if "explore" in STRATEGIES[name].settings else {}
    ledger = selection(name, **explored, **compared(name, holdout))
    settings = {"learning_rate": 1e-30, "gradient_accumulation_steps": 2, "budget": "3steps"}
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
