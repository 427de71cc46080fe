"""AdamW without bias correction: its arithmetic, its place in a run, and what it is refused with."""

import copy
import math

import pytest
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.training.optimization import UncorrectedAdamW
from hf_effpt.training.reference_time_meter import optimizer_operation, time_optimizer
from tests import tiny

PUBLISHED = {"bias_correction": False, "adam_beta2": 0.999, "adam_epsilon": 1e-6}


def weight(value=1.0):
    return torch.nn.Parameter(torch.tensor([value], dtype=torch.float64))


@pytest.mark.parametrize("kernel", ["fused", "foreach", None])
def test_three_steps_worked_by_hand(kernel):
    # lr .1, betas .5 and .75, eps 1, decay .1, starting from p = 1, m = v = 0
    # g =  2: m = .5*0 + .5*2 = 1,     v = .75*0 + .25*4 = 1, m/(sqrt(v)+1) = .5,         p = 1 - .1*(.5 + .1)
    # g =  1: m = .5*1 + .5*1 = 1,     v = .75*1 + .25*1 = 1, m/(sqrt(v)+1) = .5,         p = .94 - .1*(.5 + .094)
    # g = -3: m = .5*1 + .5*(-3) = -1, v = .75*1 + .25*9 = 3, m/(sqrt(v)+1) = -.36602540, p = .8806 - .1*(-.2779654)
    parameter = weight()
    optimizer = UncorrectedAdamW(
        [parameter], lr=0.1, betas=(0.5, 0.75), eps=1.0, weight_decay=0.1, **({kernel: True} if kernel else {})
    )
    for gradient, expected in ((2.0, 0.94), (1.0, 0.8806), (-3.0, 0.90839654)):
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        assert parameter.item() == pytest.approx(expected, abs=1e-8)


def test_is_torch_adamw_with_its_corrections_undone():
    lr, betas, eps, decay = 0.02, (0.9, 0.999), 1e-3, 0.1
    ours = [torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)), weight()]
    theirs = copy.deepcopy(ours)
    own = UncorrectedAdamW(ours, lr=lr, betas=betas, eps=eps, weight_decay=decay)
    stock = torch.optim.AdamW(theirs, betas=betas)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 21):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator, dtype=torch.float64)
            other.grad = mine.grad.clone()
        first, second = 1 - betas[0] ** step, math.sqrt(1 - betas[1] ** step)
        stock.param_groups[0] |= {
            "lr": lr * first / second, "eps": eps / second, "weight_decay": decay * second / first
        }  # fmt: skip
        own.step()
        stock.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_how_much_larger_early_updates_are_than_corrected_ones():
    ours, theirs = weight(), weight()
    own = UncorrectedAdamW([ours], lr=1e-3, eps=1e-6, weight_decay=0.0)
    stock = torch.optim.AdamW([theirs], lr=1e-3, eps=1e-6, weight_decay=0.0)
    ratio = {}
    for step in range(1, 1001):
        before = ours.item(), theirs.item()
        ours.grad, theirs.grad = torch.ones_like(ours), torch.ones_like(theirs)
        own.step()
        stock.step()
        ratio[step] = (ours.item() - before[0]) / (theirs.item() - before[1])
    assert [ratio[step] for step in (10, 100, 1000)] == pytest.approx([6.53, 3.24, 1.26], abs=0.005)


def test_without_a_gradient_neither_weights_nor_averages_move():
    here, absent = weight(), weight()
    optimizer = UncorrectedAdamW([{"params": [here]}, {"params": [absent]}], lr=0.1, weight_decay=0.1)
    here.grad = torch.ones_like(here)
    optimizer.step()
    assert absent.item() == 1.0
    assert absent not in optimizer.state
    absent.grad, here.grad = torch.ones_like(absent), None
    kept = here.item(), {name: value.item() for name, value in optimizer.state[here].items()}
    optimizer.step()
    assert absent.item() < 1.0
    assert (here.item(), {name: value.item() for name, value in optimizer.state[here].items()}) == kept


def test_closure_is_evaluated_with_gradients():
    parameter = weight()
    optimizer = UncorrectedAdamW([parameter], lr=0.1)

    def closure():
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert parameter.item() < 1.0


def test_trainer_takes_it_with_the_arguments_and_the_groups_of_weight_decay(tmp_path):
    trainer = tiny.trainer(tmp_path, **PUBLISHED, learning_rate=2e-3, weight_decay=0.03)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is UncorrectedAdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.03, 0.0]
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (2e-3, (0.9, 0.999), 1e-6)
    assert type(tiny.trainer(tmp_path).create_optimizer()) is torch.optim.AdamW


def test_all_parameters_are_decayed_if_asked_for_but_gates(tmp_path):
    trainer = tiny.trainer(tmp_path, {"layerskip": {}}, decay_all=True, weight_decay=0.03)
    own = dict(trainer.model.named_parameters())
    decayed, spared = ([*group["params"]] for group in trainer.create_optimizer().param_groups)
    gates = {name for name in own if ".gates." in name}
    assert gates
    assert {id(parameter) for parameter in spared} == {id(own[name]) for name in gates}
    assert {id(parameter) for parameter in decayed} == {id(own[name]) for name in own.keys() - gates}
    plain = tiny.trainer(tmp_path / "plain", weight_decay=0.03)
    assert {parameter.ndim for parameter in plain.create_optimizer().param_groups[0]["params"]} == {2}


def test_a_run_that_decays_all_resumes_to_the_last_bit(tmp_path):
    settings = {"decay_all": True, "weight_decay": 0.5, "save_strategy": "steps", "save_steps": 4}
    straight = tiny.trainer(tmp_path, **settings)
    straight.train()
    resumed = tiny.trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    plain = tiny.trainer(tmp_path / "plain", **(settings | {"decay_all": False}))
    plain.train()
    norm = "bert.embeddings.LayerNorm.weight"
    for name, parameter in straight.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name
    assert straight.model.get_parameter(norm).norm() < plain.model.get_parameter(norm).norm()


@pytest.mark.parametrize(
    "methods", [{"layerdrop": {"p": 0.5}}, {"stacking": {"depth": 2, "at": [0.25]}}], ids=["layerdrop", "stacking"]
)
def test_a_resumed_run_repeats_the_straight_one(tmp_path, methods):
    settings = {**PUBLISHED, "multiply_warmup": True, "save_strategy": "steps", "save_steps": 4}
    straight = tiny.trainer(tmp_path, methods, **settings)
    straight.train()
    again = tiny.trainer(tmp_path, methods, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    resumed = tiny.weights(again.model)
    assert all(torch.equal(value, resumed[name]) for name, value in tiny.weights(straight.model).items())
    averages = [[state["exp_avg_sq"] for state in run.optimizer.state.values()] for run in (straight, again)]
    assert len(averages[0]) == len(averages[1]) > 10
    assert all(torch.equal(*pair) for pair in zip(*averages, strict=True))


def test_reference_time_tells_it_from_the_stock_optimizer_and_leaves_it_as_it_was(tmp_path):
    trainer = tiny.trainer(tmp_path, **PUBLISHED, budget="2steps", warmup_steps=0.5)
    trainer.train()
    model, optimizer = trainer.model, trainer.optimizer.optimizer
    assert optimizer_operation(model, optimizer) != optimizer_operation(
        model, tiny.trainer(tmp_path).create_optimizer()
    )
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    weights, averages = tiny.weights(model), [state["exp_avg"].clone() for state in optimizer.state.values()]
    assert time_optimizer(model, optimizer, 1.0) > 0
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())
    assert all(map(torch.equal, averages, [state["exp_avg"] for state in optimizer.state.values()]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim": "adafactor"}, "`training.optim` is 'adafactor', .* only with `bias_correction` true"),
        ({"optim_args": "amsgrad=True"}, "`training.optim_args` is 'amsgrad=True'.*leave `optim_args`"),
    ],
)
def test_another_optimizer_beside_it_is_refused(tmp_path, changes, words):
    tiny.arguments(tmp_path, **changes)
    with pytest.raises(EffptError, match=words):
        tiny.arguments(tmp_path, bias_correction=False, **changes)
