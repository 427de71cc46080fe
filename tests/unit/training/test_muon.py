"""Arithmetic of Muon, and the weights that it takes."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_effpt.training import muon
from hf_effpt.training.muon import Muon, body_matrices
from tests import tiny

RATES = {"lr": 0.02, "weight_decay": 0.1}


def parameters(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def with_gradients(weights, seed):
    for weight, other in zip(weights, parameters(*(w.shape for w in weights), seed=seed), strict=True):
        weight.grad = other.detach().clone()


def group(weights, matrices=1):
    return {"params": weights, "matrices": matrices}


def published(weight, gradients, lr, weight_decay, momentum=0.95, nesterov=True, steps=5):
    """The update of one matrix, as it is written in the papers."""
    weight, average = weight.detach().clone(), torch.zeros_like(weight)
    for gradient in gradients:
        average = momentum * average + (1 - momentum) * gradient
        x = (1 - momentum) * gradient + momentum * average if nesterov else average
        x = x / x.norm()
        for _ in range(steps):
            x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
        weight = weight - lr * (0.2 * max(weight.shape) ** 0.5 * x + weight_decay * weight)
    return weight


def names_of(model, weights):
    own = {id(weight) for weight in weights}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (8, 8), (1, 8)])
@pytest.mark.parametrize("settings", [{}, {"nesterov": False}, {"momentum": 0.5, "ns_steps": 3}], ids=str)
def test_one_matrix_follows_the_published_update(shape, settings):
    (weight,) = parameters(shape)
    gradients = [each.detach() for seed in range(3) for each in parameters(shape, seed=5 + seed)]
    steps = {"steps": settings["ns_steps"]} if "ns_steps" in settings else {}
    others = {name: value for name, value in settings.items() if name != "ns_steps"}
    expected = published(weight, gradients, **RATES, **others, **steps)
    optimizer = Muon([group([weight])], **RATES, **settings)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_equals_that_of_torch_for_separate_matrices(monkeypatch):
    monkeypatch.setattr(muon, "precision_on", lambda device: torch.bfloat16)
    shapes = [(16, 16), (16, 40), (40, 16), (16, 16), (40, 16)]
    ours, theirs = parameters(*shapes), parameters(*shapes)
    own = Muon([group(ours)], **RATES)
    stock = torch.optim.Muon(theirs, **RATES, adjust_lr_fn="match_rms_adamw")
    for seed in range(1, 6):
        for optimizer, weights in ((own, ours), (stock, theirs)):
            with_gradients(weights, seed)
            optimizer.step()
    for mine, other, begun in zip(ours, theirs, parameters(*shapes), strict=True):
        assert (mine - other).norm() < 0.02 * (other - begun).norm()
        torch.testing.assert_close(own.state[mine], dict(stock.state[other]))


def test_the_size_of_updates_is_a_setting():
    (twice, once), (begun,) = parameters((16, 40), (16, 40)), parameters((16, 40))
    for weight, settings in ((twice, {"rms": 0.4}), (once, {})):
        weight.data.copy_(begun)
        optimizer = Muon([group([weight])], lr=0.1, weight_decay=0.0, **settings)
        weight.grad = torch.linspace(-1, 1, 640).view(16, 40).sin()
        optimizer.step()
    torch.testing.assert_close(twice - begun, 2 * (once - begun))


def test_all_else_is_updated_as_by_torch():
    shapes = [(8, 4), (8,), ()]
    ours, theirs, (matrix,) = parameters(*shapes), parameters(*shapes), parameters((8, 8))
    settings = {**RATES, "betas": (0.8, 0.9), "eps": 1e-6, "fused": True}
    own, stock = Muon([{"params": ours}, group([matrix])], **settings), torch.optim.AdamW(theirs, **settings)
    for seed in range(1, 4):
        with_gradients([*ours, matrix], seed)
        with_gradients(theirs, seed)
        own.step()
        stock.step()
    assert all(map(torch.equal, ours, theirs))
    assert own.state[ours[0]].keys() == stock.state[theirs[0]].keys()
    assert own.state[matrix].keys() == {"momentum_buffer"}


@pytest.mark.parametrize("shapes", [[(8, 12)] * 3, [(24, 12)] * 2], ids=["lying", "standing"])
def test_matrices_in_one_weight_are_updated_apart(shapes):
    apart = parameters(*shapes)
    (fused,) = [torch.nn.Parameter(torch.cat([weight.detach() for weight in apart]))]
    with_gradients(apart, 3)
    fused.grad = torch.cat([weight.grad for weight in apart])
    Muon([group(apart)], **RATES).step()
    Muon([group([fused], matrices=len(shapes))], **RATES).step()
    torch.testing.assert_close(fused.detach(), torch.cat([weight.detach() for weight in apart]))


@pytest.mark.parametrize(("shape", "matrices"), [((64, 64), 1), ((32, 128), 1), ((192, 64), 3), ((256, 64), 2)])
def test_updates_have_the_root_mean_square_of_those_of_adamw(shape, matrices):
    (weight,) = parameters(shape)
    begun = weight.detach().clone()
    with_gradients([weight], 1)
    Muon([group([weight], matrices)], lr=1e-3, weight_decay=0.0).step()
    assert 0.15e-3 < (weight.detach() - begun).square().mean().sqrt() < 0.25e-3


def test_a_weight_without_gradient_or_without_heads_stays_as_it_is():
    absent, empty, zero = parameters((8, 4), (0, 4), (4, 8))
    begun = absent.detach().clone(), zero.detach().clone()
    empty.grad, zero.grad = torch.zeros(0, 4), torch.zeros(4, 8)
    optimizer = Muon([group([absent, empty, zero], matrices=1)], lr=0.1, weight_decay=0.0)
    optimizer.step()
    assert absent not in optimizer.state
    assert torch.equal(absent, begun[0])
    assert torch.equal(zero, begun[1])


@pytest.mark.parametrize("layers", [1, 3])
def test_matrices_of_one_shape_are_multiplied_together(layers, monkeypatch):
    """Two shapes, three products a step of the iteration, however many layers there are."""
    model = tiny.model(num_hidden_layers=layers)
    optimizer = Muon([group(list(body_matrices(model)))])
    with_gradients([*body_matrices(model)], 1)
    calls = []
    for name in ("bmm", "baddbmm"):
        stock = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *args, stock=stock, **kw: calls.append(args) or stock(*args, **kw))
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert len(calls) == 2 * 5 * 3
    assert {tuple(args[0].shape) for args in calls} == {
        (4 * layers, 32, 32), (2 * layers, 32, 64), (2 * layers, 32, 32)
    }  # fmt: skip
    assert counter.get_total_flops() == optimizer.take_flops() > 0
    assert optimizer.take_flops() == 0


@pytest.mark.parametrize(
    ("backbone", "objective", "methods"),
    [
        ("bert", "electra", {"tnf": {"k": 2, "min_count": 5, "max_count": 7}, "layerskip": {}}),
        ("modernbert", "mcbert", {"lottery": {"rounds": 2}}),
        ("bert", "mlm", {"compress": {"head_keep": 0.5, "ffn_keep": 0.5, "importance": "gates", "at": 0.5}}),
        ("bert", "mlm", {"selection": {"strategy": "perceptron_ensemble"}}),
    ],
    ids=["electra", "modern mcbert", "gates of width", "perceptrons"],
)
def test_takes_the_matrices_of_layers_and_nothing_else(tmp_path, backbone, objective, methods):
    trainer = tiny.trainer(tmp_path, methods, backbone=backbone, objective=objective, optim="muon", weight_decay=0.03)
    groups = trainer.create_optimizer().param_groups
    taken = names_of(trainer.model, [weight for one in groups if one["matrices"] for weight in one["params"]])
    kinds = {"query", "key", "value", "dense"} if backbone == "bert" else {"Wqkv", "Wo", "Wi"}
    expected = {
        name
        for name, parameter in trainer.model.named_parameters()
        if (".layer." in name or ".layers." in name) and parameter.ndim == 2 and name.split(".")[-2] in kinds
    }
    assert taken == expected
    assert len(taken) >= 4 * len(kinds) - 4
    assert not [name for name in taken if "gates" in name or "selector" in name or "masks" in name]
    everything = [weight for one in groups for weight in one["params"]]
    assert len(everything) == len({*everything}) == len([*trainer.model.parameters()])
    assert {one["weight_decay"] for one in groups if one["matrices"]} == {0.03}
    assert {one["matrices"] for one in groups} == ({0, 1} if backbone == "bert" else {0, 1, 2, 3})
    if objective != "mlm":
        assert {name.split(".")[0] for name in taken} == {"generator", trainer.model.base_model_prefix}


def test_state_and_settings_are_loaded_and_copied():
    weights, others = parameters((8, 4), (4, 8), (4,)), parameters((8, 4), (4, 8), (4,))
    groups = [[group(one[:2]), {"params": one[2:]}] for one in (weights, others)]
    saved, loaded = Muon(groups[0], lr=0.1, momentum=0.8, nesterov=False, ns_steps=3), Muon(groups[1], lr=0.2)
    with_gradients(weights, 1)
    saved.step()
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    copied = copy.deepcopy(saved)
    for weight, other in zip(weights, others, strict=True):
        other.data.copy_(weight.detach())
    copies = [weight for one in copied.param_groups for weight in one["params"]]
    for optimizer, own in ((saved, weights), (loaded, others), (copied, copies)):
        with_gradients(own, 2)
        optimizer.step()
    assert all(map(torch.equal, weights, others))
    assert all(map(torch.equal, weights, copies))


@pytest.mark.parametrize("fused", [True, False])
def test_the_scale_of_fp16_losses_changes_nothing(fused):
    """Nor does a step whose gradients are infinite."""
    plain, scaled = parameters((8, 4), (4,)), parameters((8, 4), (4,))
    own, other = (Muon([group(one[:1]), {"params": one[1:]}], fused=fused) for one in (plain, scaled))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(torch.ones(()))
    for seed in range(3):
        with_gradients(plain, seed)
        own.step()
        with_gradients(scaled, seed)
        for weight in scaled:
            weight.grad *= scaler.get_scale()
        scaler.step(other)
        scaler.update()
        begun = [weight.detach().clone() for weight in scaled]
        for weight in scaled:
            weight.grad = torch.full_like(weight, torch.inf)
        scaler.step(other)
        scaler.update()
        assert all(map(torch.equal, scaled, begun))
    assert all(map(torch.equal, plain, scaled))


def test_hooks_and_closures_are_called_once():
    weights = parameters((8, 4), (4,))
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])  # makes torch watch the step of the class below
    optimizer = Muon([group(weights[:1]), {"params": weights[1:]}], lr=0.1)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure():
        loss = sum((weight**2).sum() for weight in weights)
        loss.backward()
        seen.append("loss")
        return loss

    begun = [weight.detach().clone() for weight in weights]
    assert optimizer.step(closure) > 0
    assert seen == ["loss", "after"]
    assert not any(map(torch.equal, weights, begun))
