"""The deciding tests of learned layer skipping: what runs, what comes out, and what the gates learn from."""

from types import SimpleNamespace

import pytest
import torch

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from hf_effpt.methods.layerskip.routing import Pass
from tests import tiny
from tests.stock import assert_learns_as_stock

from .skipping import HALF, OPEN, SHUT, decisions, gated, lean, plain_like, ragged, ran, spread

ESTIMATORS = ["ste_full", "ste_executed", "ste_reweighted", "reinforce"]


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if ".gates." not in name}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_open_gates_are_stock(estimator):
    """The skip is around the post-LN block: were it inside, a fully open gate would already change the outputs."""
    model = gated(OPEN, estimator=estimator)
    plain = plain_like(model)
    losses = [m(**ragged()).loss for m in (model, plain)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for name, gradient in gradients(plain).items():
        assert torch.equal(gradient, gradients(model)[name]), name
    assert model.bert.gates.share == 1.0


@pytest.mark.parametrize("estimator", ["ste_executed", "ste_reweighted", "reinforce"])
def test_shut_gates_run_the_first_and_the_last_layer_only(estimator):
    model = gated(SHUT, layers=5, estimator=estimator)
    assert ran(model, **ragged()) == [(0, 8), (4, 8)]
    shallow = plain_like(model, layers=5)
    stack_of(shallow.bert).order = (0, 4)
    loss = model(**ragged()).loss
    assert torch.equal(loss, shallow(**ragged()).loss)
    loss.backward()
    for name, gradient in gradients(model).items():  # none, not zero: then moments and weight decay rest
        assert (gradient is None) == any(f".layer.{index}." in name for index in (1, 2, 3)), name
    assert model.bert.gates.share == 0.0


def test_first_and_last_are_told_by_position():
    """After a growth that adds layers between, they have other numbers than their place."""
    model = gated(SHUT)
    stack_of(model.bert).order = (2, 0, 3, 1)
    assert ran(model, **ragged()) == [(2, 8), (1, 8)]


class Multiply:
    """The multiply form x + g (F(x) - x) for gates that are known; computes all rows."""

    share, forced = 1.0, None

    def __init__(self, open_PB):
        self.open_PB = open_PB

    def __call__(self, layers):
        def run(layer, gate_B, hidden, *args, **kwargs):
            return hidden + gate_B[:, None, None] * (layer(hidden, *args, **kwargs) - hidden)

        inner = [
            lambda *args, layer=layer, gate=gate, **kwargs: run(layer, gate, *args, **kwargs)
            for layer, gate in zip(layers[1:-1], self.open_PB, strict=True)
        ]
        return [layers[0], *inner, layers[-1]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gathered_rows_equal_the_multiply_form(estimator, attention):
    """With ragged rows, so that a mask that is not gathered with them shows; outputs, weight and gate gradients."""
    model = gated(HALF, layers=6, estimator=estimator)
    plain = plain_like(model, layers=6)
    for each in (model, plain):
        each.set_attn_implementation(attention)
    loss = model(**ragged()).loss
    open_PB, logits = decisions(model), model.bert.gates._pass.logits
    assert 0 < open_PB.mean() < 1
    gates = open_PB.clone().requires_grad_()
    stack_of(plain.bert).router = Multiply(gates)
    expected = plain(**ragged()).loss
    assert torch.allclose(loss, expected, atol=2e-7)
    expected.backward()
    for logit in logits:
        logit.retain_grad()
    loss.backward()
    for name, gradient in gradients(plain).items():
        assert torch.allclose(gradient, gradients(model)[name], atol=1e-6), name
    if estimator == "reinforce":
        assert all(logit.grad is None for logit in logits)
        return
    of_p = gates.grad * 0.25  # d p / d logit at p = 1/2
    ours = torch.stack([torch.zeros(8) if logit.grad is None else logit.grad for logit in logits])
    if estimator != "ste_full":
        assert not ours[open_PB == 0].any()
        of_p = of_p * open_PB
    if estimator == "ste_reweighted":
        of_p = of_p / 0.5
    assert torch.allclose(ours, of_p, atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "p", "expected"),
    [("ste_reweighted", 0.3, 1.0), ("ste_executed", 0.3, 0.3), ("ste_reweighted", 0.05, 0.5), ("ste_full", 0.3, 1.0)],
)
def test_mean_of_the_estimator_over_draws(estimator, p, expected):
    """On L = w * y with y = x + g (F(x) - x): unbiased means w (F - x); below p = 0.1 the floor holds the gradient."""
    rows, w, x, out = 40_000, 1.7, 0.4, 2.0
    logits = torch.full((rows,), torch.logit(torch.tensor(p)).item(), requires_grad=True)
    gates = SimpleNamespace(
        decide=lambda hidden, state: (logits, None),
        finish=lambda passing, hidden: hidden,
        reading=SimpleNamespace(keys_B=torch.arange(rows)),
        **{"estimator": estimator, "routing": "bernoulli", "training": True, "forced": None, "seed": 1, "step": 2},
    )
    y = Pass(gates, 1).run(lambda hidden: torch.full_like(hidden, out), 1, torch.full((rows, 1, 1), x))
    (w * y).sum().backward()
    of_p = logits.grad / (p * (1 - p))
    assert of_p.mean() == pytest.approx(expected * w * (out - x), rel=0.06)


def test_padding_does_not_change_the_gates():
    model = gated(layers=6)
    spread(model)
    inputs = ragged()
    model(**inputs)
    logits, drawn = model.bert.gates._pass.logits, decisions(model)
    assert torch.stack(logits).std(dim=1).min() > 0.1  # rows differ by what is in them
    other = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], 77)
    model(**{**inputs, "input_ids": other})
    assert torch.equal(torch.stack(logits), torch.stack(model.bert.gates._pass.logits))
    assert torch.equal(drawn, decisions(model))
    # Without a mask the padding token tells, of packed documents for example.
    documents = inputs["attention_mask"]
    model(input_ids=inputs["input_ids"], labels=inputs["labels"], document_ids=documents)
    assert torch.allclose(torch.stack(logits), torch.stack(model.bert.gates._pass.logits), atol=1e-4)


def test_before_the_start_it_is_stock_bit_for_bit():
    _, model = assert_learns_as_stock({"layerskip": {"after": 0.5, "estimator": "reinforce"}}, own=".gates.")
    assert all(p.grad is None for p in model.bert.gates.parameters())


def test_evaluation_runs_all_layers():
    model = gated(SHUT).eval()
    assert torch.equal(model(**ragged()).loss, plain_like(model).eval()(**ragged()).loss)
    assert ran(model, **ragged()) == [(0, 8), (1, 8), (2, 8), (3, 8)]


def test_draws_are_a_function_of_seed_step_row_and_position():
    model = gated(HALF, layers=6)
    inputs = ragged()
    before = torch.get_rng_state()
    model(**inputs)
    whole = decisions(model)
    parts = []
    for rows in (slice(0, 3), slice(3, 8)):
        model(**{name: value[rows] for name, value in inputs.items()})
        parts.append(decisions(model))
    assert torch.equal(torch.cat(parts, dim=1), whole)
    others = []
    for step, seed in ((4, 7), (3, 8)):
        model.methods[0].schedule(model.bert, RunContext(step, 0.9, seed))
        model(**inputs)
        others.append(decisions(model))
    assert not torch.equal(others[0], whole)
    assert not torch.equal(others[1], whole)
    assert not torch.equal(whole[0], whole[1])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("penalty", [{"alpha": 2.0}, {"beta": 0.045}])
def test_too_much_is_penalised_and_too_little_rewarded(penalty):
    """The paper's code rewards executing by default; here the sign follows what ran."""
    signs = []
    for logit in (OPEN, SHUT):
        model = gated(logit, target=0.6, **penalty)
        model(**ragged())
        model.methods[0].advance(model.bert, RunContext(4, 0.9))
        lean(model, HALF)
        model(**ragged())
        model.methods[0].penalty(model.bert).backward()
        signs.append(model.bert.gates.out.bias.grad.item())
    too_much, too_little = signs
    assert too_much > 0 > too_little  # descent lowers what has a positive gradient
    expected = (2 * 2.0 * 0.4, -2 * 2.0 * 0.6) if "alpha" in penalty else (0.045, -0.045)
    assert signs == pytest.approx([0.25 * slope for slope in expected])


def test_what_gates_read_learns_nothing_from_them():
    model = gated(HALF)
    model(**ragged())
    model.methods[0].penalty(model.bert).backward()
    assert model.bert.gates.narrow.weight.grad is not None
    assert all(gradient is None for gradient in gradients(model).values())


def test_reinforce_is_the_reward_times_the_gradient_of_the_log_probability():
    model = gated(HALF, estimator="reinforce", alpha=0.0)
    gates, inputs = model.bert.gates, ragged()
    model(**inputs)
    assert model.methods[0].penalty(model.bert).item() == 0.0  # nothing is usual yet
    model.methods[0].advance(model.bert, RunContext(4, 0.9))
    usual = gates.baseline.item()
    rows = [{name: value[row : row + 1] for name, value in inputs.items()} for row in range(8)]
    losses = torch.stack([model(**row).loss for row in rows]).detach()
    assert losses.mean().item() == pytest.approx(usual, abs=1e-5)
    model(**inputs, num_items_in_batch=1000)  # the reward is a row's own mean, whatever the loss is divided by
    gates._pass.logits[0].retain_grad()
    logits, open_PB = gates._pass.logits, decisions(model)
    model.methods[0].penalty(model.bert).backward()
    expected = (losses - usual) * (open_PB[0] - 0.5) / 8
    assert torch.allclose(logits[0].grad, expected, atol=1e-6)


def test_row_losses_are_the_same_with_positions_and_only_told_to_whom_asks(monkeypatch):
    model = gated(HALF, estimator="reinforce")
    batch = tiny.batch(8, objective="mlm")
    model(**batch)
    with_positions = model.bert.gates._losses[0]
    model(input_ids=batch["input_ids"], labels=batch["labels"])
    assert torch.allclose(with_positions, model.bert.gates._losses[0], atol=1e-5)
    monkeypatch.setattr("hf_effpt.core.token_losses.TokenLosses", lambda *_: 1 / 0)
    gated(HALF)(**batch)
    model.eval()(**batch)


def test_a_row_without_labels_earns_nothing():
    model = gated(HALF, estimator="reinforce", alpha=0.0)
    gates, inputs = model.bert.gates, ragged()
    inputs["labels"][2] = -100
    for _ in range(2):
        model(**inputs)
        gates._pass.logits[0].retain_grad()
        logits = gates._pass.logits[0]
        penalty = model.methods[0].penalty(model.bert)
        model.methods[0].advance(model.bert, RunContext(4, 0.9))
    penalty.backward()
    assert logits.grad[2] == 0.0
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("share", "rows", "least"), [(0.6, 5, 3), (0.7, 10, 7), (0.6, 8, 5), (0.3, 8, 2), (0.01, 8, 1), (1.0, 8, 8)]
)
def test_topk_runs_the_same_number_of_rows_in_each_layer(share, rows, least):
    model = gated(layers=6, routing="topk", target=share)
    spread(model)
    inputs = {name: value[:rows] for name, value in ragged(rows=max(rows, 8)).items()}
    assert [count for _, count in ran(model, **inputs)] == [rows, *[least] * 4, rows]
    open_PB, logits_PB = decisions(model), torch.stack(model.bert.gates._pass.logits)
    for open_B, logits_B in zip(open_PB, logits_PB, strict=True):
        chosen = open_B.bool()
        assert chosen.all() or logits_B[chosen].min() >= logits_B[~chosen].max()
    assert model.methods[0].learns_by == "ste_executed"
    assert model.methods[0].penalty(model.bert).item() == 0.0  # the budget is kept by itself
    assert model.bert.gates.share == pytest.approx(least / rows)


def test_topk_waits_for_no_values():
    """On the meta device there are none, so any need of them would raise."""
    model = gated(routing="topk", target=0.5).to("meta")
    inputs = {name: value.to("meta") for name, value in tiny.batch(8, objective="mlm").items()}
    assert model(**inputs).loss.device.type == "meta"
    assert ran(model, **inputs) == [(0, 8), (1, 4), (2, 4), (3, 8)]


def test_threshold_runs_rows_above_one_half_in_evaluation():
    model = gated(layers=6, evaluation="threshold")
    spread(model)
    model.eval()
    seen = []
    decide = model.bert.gates.decide
    model.bert.gates.decide = lambda *args: seen.append(decide(*args)) or seen[-1]
    counts = ran(model, **ragged())
    expected = [int((logits > 0).sum()) for logits, _ in seen]
    assert [count for _, count in counts][1:-1] == [count for count in expected if count]
    assert 0 < sum(expected) < 32
