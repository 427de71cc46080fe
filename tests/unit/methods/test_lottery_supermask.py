"""Supermasks: what the scores learn from, what is drawn, and what comes out."""

import pytest
import torch
from torch import nn

from hf_effpt.core.context import RunContext
from hf_effpt.core.registry import build_methods
from hf_effpt.methods.lottery.masks import MaskedLinear, prunable
from hf_effpt.methods.lottery.supermask import Supermask
from hf_effpt.models import EffptBertForMaskedLM
from tests import tiny

LEARN = {"learn": "supermask"}


def single(rescale=False):
    """A masked 1 x 3 matrix with weights (2, -1, 4), of which the first and the last have been drawn."""
    masks = Supermask(tiny.model().bert, 0.1, rescale)
    linear = nn.Linear(3, 1, bias=False)
    linear.weight.data = torch.tensor([[2.0, -1.0, 4.0]])
    masks.names[0] = "m"
    masks.register_buffer("m", torch.tensor([[True, False, True]]), persistent=False)
    masks.scores[0] = nn.Parameter(torch.tensor([[0.3, -0.2, 0.0]]))
    linear.__class__ = MaskedLinear
    linear.__dict__.update(masks=masks, masked_as="m")
    return linear, masks.train()


def test_gradient_of_the_scores_by_hand():
    """dL/ds = dL/dy x w sigma'(s), of weights that were drawn and of those that were not; weights learn nothing."""
    linear, masks = single()
    x = torch.tensor([[1.0, 3.0, -1.0]])
    y = linear(x)
    assert y.item() == 2.0 - 4.0
    (5 * y).sum().backward()
    p = torch.tensor([[0.3, -0.2, 0.0]]).sigmoid()
    expected = 5 * x * linear.weight.data * p * (1 - p)
    assert torch.allclose(masks.scores[0].grad, expected)
    assert linear.weight.grad is None


def test_rescaling_divides_by_the_share_that_is_kept():
    linear, masks = single(rescale=True)
    x = torch.tensor([[1.0, 3.0, -1.0]])
    y = linear(x)
    assert y.item() == pytest.approx(-2.0 * 3 / 2)
    y.sum().backward()
    p = torch.tensor([[0.3, -0.2, 0.0]]).sigmoid()
    assert torch.allclose(masks.scores[0].grad, x * linear.weight.data * p * (1 - p) * 3 / 2)


def test_evaluation_keeps_what_is_at_least_as_probable_as_not():
    linear, masks = single()
    masks.eval()
    assert linear(torch.ones(1, 3)).item() == 2.0 + 4.0
    masks.scores[0].data.fill_(-1.0)
    assert linear(torch.ones(1, 3)).item() == 0.0
    masks.rescale = True
    assert linear(torch.ones(1, 3)).item() == 0.0  # and no division by zero


def supermasked(**settings):
    """A model whose scores are spread."""
    torch.manual_seed(3)
    model = tiny.model({"lottery": {**LEARN, **settings}})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for score in model.bert.masks.scores:
            score.normal_(generator=generator)
    return model


def drawn(model):
    return torch.cat([mask.flatten().clone() for mask in model.bert.masks.buffers()])


def test_draws_are_a_function_of_seed_and_step():
    model = supermasked()
    (method,) = model.methods
    before = torch.get_rng_state()
    found = []
    for step, seed in ((3, 7), (4, 7), (3, 8), (3, 7)):
        method.schedule(model.bert, RunContext(step, 0.5, seed))
        found.append(drawn(model))
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(before, torch.get_rng_state())
    p = torch.cat([score.flatten() for score in model.bert.masks.scores]).sigmoid()
    for low, high in ((0.0, 0.4), (0.4, 0.6), (0.6, 1.0)):
        inside = (low <= p) & (p < high)
        assert found[0][inside].double().mean() == pytest.approx(p[inside].mean().item(), abs=0.02)


@pytest.mark.parametrize("rescale", [False, True])
def test_evaluation_draws_nothing_and_is_what_is_exported(rescale):
    model = supermasked(rescale=rescale).eval()
    (method,) = model.methods
    ids = torch.randint(5, tiny.VOCAB, (3, tiny.LENGTH))
    outputs = []
    with torch.no_grad():
        for step in (1, 2):
            method.schedule(model.bert, RunContext(step, 0.5, 7))
            outputs.append(model(ids).logits)
    assert torch.equal(*outputs)
    exported = model.export()
    assert type(exported.bert.encoder.layer[0].intermediate.dense) is nn.Linear
    assert torch.allclose(exported(ids).logits, outputs[0], atol=1e-6)
    for name, linear in prunable(exported.bert).items():
        assert torch.equal(linear.weight != 0, model.bert.masks.kept()[name])


def test_a_run_moves_scores_and_all_but_the_masked_matrices(tmp_path):
    trainer = tiny.trainer(tmp_path, {"lottery": {**LEARN, "score_learning_rate": 0.5}}, warmup_steps=0)
    before = tiny.weights(trainer.model)
    trainer.train()
    frozen = {id(linear.weight) for linear in prunable(trainer.model.bert).values()}
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) in frozen), name
    groups = trainer.optimizer.param_groups
    assert len(groups) == 3
    assert {id(p) for p in groups[2]["params"]} == {id(p) for p in trainer.model.bert.masks.scores}
    assert groups[2]["weight_decay"] == 0.0
    assert groups[2]["initial_lr"] == 0.5
    assert trainer.model.config.events is None
    sparsity = [entry["lottery_sparsity"] for entry in trainer.state.log_history if "lottery_sparsity" in entry]
    assert len(sparsity) == 8
    assert all(0.3 < value < 0.7 for value in sparsity)


def test_weights_are_constants_from_the_start_and_stay_them(tmp_path):
    trainer = tiny.trainer(tmp_path, {"lottery": {**LEARN, "signs": "keep_sign"}}, save_strategy="steps", save_steps=4)
    first = {name: linear.weight.detach().clone() for name, linear in prunable(trainer.model.bert).items()}
    trainer.train()
    for name, linear in prunable(trainer.model.bert).items():
        assert torch.equal(linear.weight, first[name].sign() * first[name].std(correction=0))
    (event,) = trainer.model.config.events
    assert (event["step"], event["what"]) == (0, "began with constant weights, keep_sign")
    again = EffptBertForMaskedLM.from_pretrained(tmp_path / "checkpoint-4")
    (method,) = again.methods
    before = tiny.weights(again)
    method.schedule(again.bert, RunContext(0, 0.0, 7))
    for name, weight in tiny.weights(again).items():  # they do not become constants a second time
        assert torch.equal(weight, before[name])


def test_scores_find_the_mask_of_a_linear_map():
    """y = (w m) x with a mask m that is known: after enough steps it is the one of evaluation, from draws alone."""
    generator = torch.Generator().manual_seed(2)
    masks = Supermask(tiny.model().bert, 0.1)
    linear = nn.Linear(16, 1, bias=False)
    linear.weight.data = torch.randn(1, 16, generator=generator).sign()
    wanted = torch.rand(1, 16, generator=generator) < 0.5
    masks.names, masks.scores = ["m"], nn.ParameterList([nn.Parameter(torch.zeros(1, 16))])
    for name in list(masks._buffers):
        del masks._buffers[name]
    masks.register_buffer("m", torch.ones(1, 16, dtype=torch.bool), persistent=False)
    linear.__class__ = MaskedLinear
    linear.__dict__.update(masks=masks.train(), masked_as="m")
    optimizer = torch.optim.Adam(masks.parameters(), lr=masks.learning_rate)
    for step in range(200):
        masks.draw(["m"], step, 0)
        x = torch.randn(64, 16, generator=generator)
        (linear(x) - x @ (linear.weight.data * wanted).T).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(masks.kept()["m"], wanted)
    assert masks.scores[0].sigmoid()[wanted].min() > 0.9


def test_scores_stay_exact_and_begin_anew_where_there_are_none(tmp_path):
    model = supermasked().to(torch.bfloat16)
    assert all(score.dtype == torch.float32 for score in model.bert.masks.scores)
    assert model.bert.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
    assert model.train()(**tiny.batch(2, objective="mlm")).loss.isfinite()
    tiny.model().export().save_pretrained(tmp_path)
    loaded = EffptBertForMaskedLM.from_pretrained(tmp_path, config=tiny.config({"lottery": LEARN}))
    assert not any(score.any() for score in loaded.bert.masks.scores)
    assert drawn(loaded).all()


def test_nothing_is_rewound():
    (method,) = build_methods({"lottery": LEARN}, tiny.config())
    assert not method.needs_snapshot
    assert tiny.model({"lottery": LEARN}).snapshot is None
