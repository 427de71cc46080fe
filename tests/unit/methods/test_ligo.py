"""Learning a growth: only the layers change, by mixtures that lower the loss, and the run notices nothing else."""

import copy
from contextlib import contextmanager

import pytest
import torch

from hf_effpt.core import processes
from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import set_order, stack_of
from hf_effpt.core.metrics import accumulator_of
from hf_effpt.methods.stacking import ligo
from hf_effpt.methods.stacking.ligo import learn_growth
from hf_effpt.training.callbacks import live_context
from tests import tiny

OLD, ORDER, SOURCES = [0, 1], [0, 1, 2, 3], [0, 1, 0, 1]


class Fake:
    """A run of a small model that has learnt a little with its first two layers."""

    def __init__(self, objective="mlm", methods=None, order=OLD, steps=4, **shape):
        torch.manual_seed(3)
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} | shape
        make = tiny.model if objective == "mlm" else lambda *args, **more: tiny.joint(objective, *args, **more)
        self.model = make(methods, **still).train()
        self.backbone, self.stack = self.model.backbone, stack_of(self.model.backbone)
        self.batches = [tiny.batch(8, seed, objective) for seed in range(4)]
        self.entered = 0
        set_order(self.backbone, order)
        optimizer = torch.optim.AdamW(self.model.parameters(), 3e-3)
        for step in range(steps):
            self.model(**self.batches[step % 4]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        accumulator_of(self.backbone).take()
        live = {"model": self.model, "optimizer": optimizer, "draw_batches": self.draw, "charged": self.learning}
        self.run = RunContext(0, 0.5, 5, **live)

    def draw(self, number):
        return (self.batches[index % 4] for index in range(number))

    @contextmanager
    def learning(self, batch, parameters):
        self.entered += 1
        yield

    def grow(self, sources=SOURCES, order=ORDER, **settings):
        learn_growth(self.backbone, self.stack, sources, order, self.stack.order, self.run, **settings)
        set_order(self.backbone, order)
        return self

    @torch.no_grad()
    def loss(self):
        return sum(self.model(**batch).loss for batch in self.batches).item()

    def layers(self):
        return [dict(layer.named_parameters()) for layer in self.stack.children()]


def outside(model):
    """All tensors of a model that belong to no layer of its main encoder."""
    state = model.state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if not name.startswith(("bert.enc", "electra.enc"))}


@pytest.mark.parametrize(
    ("sources", "order"),
    [(SOURCES, ORDER), ([0, 0, 1, 1], [0, 2, 1, 3]), ([0, 1, 1], [0, 1, 3])],
    ids=["stack", "interpolate", "uneven"],
)
def test_without_noise_and_steps_it_is_a_plain_copy(sources, order):
    fake = Fake()
    before = [{name: p.clone() for name, p in layer.items()} for layer in fake.layers()]
    fake.grow(sources, order, steps=0, noise=0.0)
    for index, layer in enumerate(fake.layers()):
        source = OLD[sources[order.index(index)]] if index in order else index
        assert all(torch.equal(layer[name], before[source][name]) for name in layer)


@pytest.mark.parametrize("objective", ["mlm", "electra"])
def test_learning_lowers_the_loss_below_that_of_copies(objective):
    trained = Fake(objective, steps=60 if objective == "mlm" else 20)
    copied = copy.deepcopy(trained).grow(steps=0, noise=0.0).loss()
    noisy = copy.deepcopy(trained).grow(steps=0).loss()
    learnt = trained.grow(steps=30).loss()
    assert learnt < min(copied, noisy)


def test_each_kind_of_parameter_is_mixed_by_shares_of_its_own(monkeypatch):
    learnt = {}
    original = ligo._mixtures
    monkeypatch.setattr(ligo, "_mixtures", lambda shares, trained: original(learnt.setdefault("is", shares), trained))
    fake = Fake()
    trained = [{name: p.clone() for name, p in layer.items()} for layer in fake.layers()]
    fake.grow(steps=5)
    shares = learnt["is"].detach()
    kinds = list(trained[0])
    assert shares.shape == (len(kinds), 4, 2)
    for kind, share in zip(kinds, shares, strict=True):
        for index, layer in enumerate(fake.layers()):
            mixed = share[index, 0] * trained[0][kind] + share[index, 1] * trained[1][kind]
            assert torch.allclose(layer[kind], mixed, atol=1e-6)
    assert len({tuple(share.flatten().tolist()) for share in shares}) == len(kinds)


def test_shares_begin_near_copies_and_sum_to_one():
    shares = ligo._near_copies(3, SOURCES, 2, noise=0.03, seed=1)
    assert torch.allclose(shares.sum(dim=-1), torch.ones(3, 4))
    assert shares.argmax(dim=-1).tolist() == [SOURCES] * 3
    assert 0.0 < shares.min() < 0.03
    assert not torch.equal(shares, ligo._near_copies(3, SOURCES, 2, noise=0.03, seed=2))


@pytest.mark.parametrize(
    ("objective", "methods"), [("mlm", None), ("electra", None), ("mlm", {"layerdrop": {"p": 0.5}})]
)
def test_nothing_else_changes(objective, methods):
    fake = Fake(objective, methods)
    frozen = next(fake.model.parameters()).requires_grad_(False)
    accumulator_of(fake.backbone).add(before=2.0)
    fake.stack.dropped, fake.stack.scales = frozenset({1, 2}), {0: 0.5}
    before, random = outside(fake.model), torch.random.get_rng_state()
    tally = dict(accumulator_of(fake.backbone).sums)
    learn_growth(fake.backbone, fake.stack, SOURCES, ORDER, OLD, fake.run, steps=3)
    assert all(torch.equal(before[name], tensor) for name, tensor in outside(fake.model).items())
    assert all(parameter.grad is None for parameter in fake.model.parameters())
    assert [p for p in fake.model.parameters() if not p.requires_grad] == [frozen]
    assert torch.equal(random, torch.random.get_rng_state())
    assert accumulator_of(fake.backbone).sums == tally
    assert (fake.stack.order, fake.stack.dropped, fake.stack.scales) == ((0, 1), {1, 2}, {0: 0.5})
    assert fake.entered == 3


def test_all_layers_of_the_grown_order_run_even_if_some_are_dropped_now():
    kept, dropping = Fake(), Fake()
    dropping.stack.dropped = frozenset(range(4))
    for fake in (kept, dropping):
        fake.grow(steps=3)
    for ours, theirs in zip(kept.stack.parameters(), dropping.stack.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_dropout_draws_in_learning_and_the_runs_random_numbers_stay():
    fake = Fake(hidden_dropout_prob=0.3)
    random = torch.random.get_rng_state()
    fake.grow(steps=3)
    assert torch.equal(random, torch.random.get_rng_state())


def test_notes_are_neither_written_nor_counted(tmp_path):
    ledger = {"tnf": {"min_count": 4, "max_count": 8}, "stacking": {"depth": 2, "at": [0.5]}}
    trainer = tiny.trainer(tmp_path, ledger)
    model = trainer.model.train()
    backbone, stack = model.backbone, stack_of(model.backbone)
    notes = backbone.notes.vectors.clone()
    learn_growth(backbone, stack, SOURCES, ORDER, OLD, live_context(trainer), steps=2)
    assert torch.equal(backbone.notes.vectors, notes)
    assert accumulator_of(backbone).sums == {}
    model(**next(trainer.stream.draw(1, 0)))
    assert not torch.equal(backbone.notes.vectors, notes)  # they would have been


def test_is_a_function_of_weights_batches_and_seed():
    grown = [Fake().grow(steps=3) for _ in range(2)]
    for ours, theirs in zip(*(fake.stack.parameters() for fake in grown), strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_are_the_mean_over_all_processes(monkeypatch):
    """As if a second process had the same batches."""
    alone, reduced = Fake().grow(steps=3), []

    class Two:
        is_available = is_initialized = staticmethod(lambda: True)
        get_world_size = staticmethod(lambda: 2)

        @staticmethod
        def all_reduce(tensor):
            reduced.append(tensor.shape)
            tensor.mul_(2)

    monkeypatch.setattr(processes, "distributed", Two)
    together = Fake().grow(steps=3)
    assert len(reduced) == 3
    for ours, theirs in zip(alone.stack.parameters(), together.stack.parameters(), strict=True):
        assert torch.equal(ours, theirs)


LEDGER = {"stacking": {"operator": "ligo_depth", "depth": 2, "at": [0.5]}}


@pytest.fixture
def _ten_steps(monkeypatch):
    monkeypatch.setitem(learn_growth.__kwdefaults__, "steps", 10)


@pytest.mark.usefixtures("_ten_steps", "counted")
@pytest.mark.parametrize("objective", ["mlm", "electra"])
def test_a_run_grows_by_it_and_pays_for_it(tmp_path, objective):
    losses, clocks = [], []
    for operator in ("stack", "ligo_depth"):
        ledger = {"stacking": LEDGER["stacking"] | {"operator": operator}}
        trainer = tiny.trainer(tmp_path, ledger, objective=objective)
        trainer.train()
        assert trainer.model.config.events[0]["what"].startswith("grew from 2 to 4")
        assert all(parameter.grad is None for parameter in trainer.model.parameters())
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        clocks.append(trainer.clock)
    assert losses[0][:4] == losses[1][:4]
    assert losses[0][4:] != losses[1][4:]
    plain, learnt = clocks
    assert learnt.tokens - plain.tokens == 10 * 4 * tiny.LENGTH
    step = trainer.cost.counter.count(trainer.model, {name: tensor[:4] for name, tensor in tiny.batch(4).items()})
    assert 0.6 * step < (learnt.flops - plain.flops) / 10 < step
