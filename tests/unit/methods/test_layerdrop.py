"""The deciding tests of LayerDrop."""

import pytest
import torch

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from hf_effpt.methods import LayerDrop
from hf_effpt.training.flops import FlopCounter
from tests import tiny


def ran(model, **inputs):
    """Which layers a forward runs."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: seen.append(index))
        for index, layer in stack_of(model.bert)._modules.items()
    ]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return [int(index) for index in seen]


def ids():
    return {"input_ids": torch.randint(5, tiny.VOCAB, (2, 8))}


def test_almost_certain_dropping_runs_no_layer():
    model = tiny.model({"layerdrop": {"p": 1 - 1e-12}}).train()
    (method,) = model.methods
    method.schedule(model.bert, RunContext(0, 0.0, seed=1))
    assert ran(model, **ids()) == []


def test_no_dropping_and_evaluation_run_all():
    for p, training in ((0.0, True), (0.999999, False)):
        model = tiny.model({"layerdrop": {"p": p}}).train(training)
        model.methods[0].schedule(model.bert, RunContext(0, 0.0, seed=1))
        assert ran(model, **ids()) == [0, 1, 2, 3]


def test_mean_number_of_layers_is_n_times_one_minus_p():
    method = LayerDrop(p=0.3)
    dropped = [len(method.draw(12, step, seed=5)) for step in range(4000)]
    assert sum(dropped) / len(dropped) == pytest.approx(12 * 0.3, abs=0.1)
    per_layer = [sum(layer in method.draw(12, step, seed=5) for step in range(2000)) for layer in range(12)]
    assert min(per_layer) > 0.25 * 2000
    assert max(per_layer) < 0.35 * 2000


def test_draws_depend_on_seed_and_step():
    method = LayerDrop(p=0.5)
    draws = {(step, seed): method.draw(12, step, seed) for step in range(20) for seed in range(5)}
    assert len(set(draws.values())) > 60


def test_skipped_layers_have_no_gradient_and_no_optimizer_state(tmp_path):
    """None, not zero: a zero gradient would let moments and weight decay act."""
    trainer = tiny.trainer(tmp_path, {"layerdrop": {"p": 0.5}}, budget="1steps", weight_decay=0.5, warmup_steps=0)
    before = tiny.weights(trainer.model)
    grads = {}
    trainer.add_callback(Grads(trainer, grads))
    trainer.train()
    stack = stack_of(trainer.model.bert)
    dropped = LayerDrop(p=0.5).draw(4, 0, seed=7)
    assert 0 < len(dropped) < 4
    for index in range(4):
        names = [name for name in before if f".layer.{index}." in name]
        touched = {
            name for name in names if not torch.equal(before[name], dict(trainer.model.named_parameters())[name])
        }
        assert bool(touched) == (index not in dropped)
        assert all((grads[name] is None) == (index in dropped) for name in names)
        assert all((p in trainer.optimizer.state) == (index not in dropped) for p in stack[index].parameters())


class Grads(tiny.TrainerCallback):
    def __init__(self, trainer, grads):
        self.trainer, self.grads = trainer, grads

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.grads.update({name: p.grad for name, p in self.trainer.model.named_parameters()})


def test_flops_fall_with_the_layers(tmp_path):
    trainer = tiny.trainer(tmp_path, {"layerdrop": {"p": 0.5}}, counter=FlopCounter())
    batch = {"input_ids": torch.randint(5, tiny.VOCAB, (2, 8)), "labels": torch.full((2, 8), 7)}
    batch["labels"][:, 2:] = -100
    stack = stack_of(trainer.model.train().bert)

    def flops(dropped):
        stack.dropped = frozenset(dropped)
        return trainer.cost.counter.count(trainer.model, batch)

    none, one, two, three, four = (flops(range(dropped)) for dropped in (4, 3, 2, 1, 0))
    layer = four - three
    assert layer == three - two == two - one > 0
    assert flops({1, 3}) == two
    assert 0 < one - none < layer  # the last layer is computed at the masked positions only


def test_one_draw_serves_all_micro_batches(tmp_path):
    trainer = tiny.trainer(
        tmp_path,
        {"layerdrop": {"p": 0.5}},
        budget="6steps",
        gradient_accumulation_steps=3,
        per_device_train_batch_size=2,
    )
    seen = []
    trainer.model.bert.register_forward_pre_hook(lambda *_: seen.append(stack_of(trainer.model.bert).active))
    trainer.train()
    steps = [set(seen[first : first + 3]) for first in range(0, 18, 3)]
    assert len(seen) == 18
    assert all(len(step) == 1 for step in steps)
    assert len(set.union(*steps)) > 1


def test_starts_after_the_last_growth_by_itself():
    model = tiny.model({"layerdrop": {"p": 0.999999}, "stacking": {"depth": 1, "at": [0.3, 0.6]}}).train()
    drop = next(method for method in model.methods if method.name == "layerdrop")
    growing = next(method for method in model.methods if method.name == "stacking")
    for step, fraction, dropped in ((5, 0.59, 0), (6, 0.6, 4)):
        growing.advance(model.bert, RunContext(step, fraction))
        drop.schedule(model.bert, RunContext(step, fraction, seed=1))
        assert len(stack_of(model.bert).dropped) == dropped
