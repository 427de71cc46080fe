"""The main loss, token by token, for those who ask: it is the loss, and weights change nothing else."""

import pytest
import torch

from hf_effpt.core.token_losses import observe_losses, observers_of, recording_losses, row_losses
from tests import tiny

PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
OBJECTIVES = ["mlm", "electra", "electra_15", "replace_mlm", "all_tokens_mlm", "mcbert", "mcbert masked"]
JOINT = OBJECTIVES[1:]


def made(objective):
    torch.manual_seed(0)
    name, *changes = objective.split()
    if name == "mlm":
        return tiny.model(**PLAIN, num_hidden_layers=2).train()
    return tiny.joint(name, num_hidden_layers=2, **({"candidates_at": "masked"} if changes else {})).train()


def batch(objective, rows=6):
    """Rows of two documents and padding, some of which have no labels."""
    inputs = tiny.batch(rows, objective=objective.split()[0])
    inputs["document_ids"] = torch.tensor([[1] * 7 + [2] * 6 + [0] * 3] * rows)
    padding = inputs["document_ids"] == 0
    inputs["labels"][padding] = -100
    inputs["labels"][-1, :6] = -100
    inputs["input_ids"][padding] = 0
    return inputs


def main_loss(objective, output):
    return output.loss if objective == "mlm" else output.main_loss


def told(model, inputs):
    with recording_losses(model.backbone) as heard:
        output = model(**inputs)
    return heard, output


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(left, right, tolerance=1e-6):
    assert left.keys() == right.keys()
    assert any(value.abs().sum() > 0 for value in left.values())
    for name in left:
        assert torch.allclose(left[name], right[name], atol=tolerance), name


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_add_up_to_the_loss(objective, positions):
    model, inputs = made(objective), batch(objective)
    if not positions:
        del inputs["masked_positions"]
    (*_, losses), output = told(model, inputs)
    sums, counts = losses.by_row()
    asked_BL = inputs["document_ids"] > 0 if objective in ("electra", "all_tokens_mlm", "mcbert") else None
    asked_BL = inputs["labels"] != -100 if asked_BL is None else asked_BL
    assert torch.equal(counts.long(), asked_BL.sum(dim=1))
    total = output.loss * counts.sum() if objective == "mlm" else output.sums["main_loss"]
    assert torch.allclose(sums.sum(), total, rtol=1e-5)
    assert (losses.losses_N[~losses.labelled_N] == 0).all()
    assert not losses.losses_N.requires_grad


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_row_has_the_loss_that_it_has_alone(objective):
    model, inputs = made(objective).eval(), batch(objective)
    alone = []
    for row in range(6):
        output = model(**{name: values[row : row + 1] for name, values in inputs.items()})
        if objective == "mcbert masked":
            alone.append(output.sums["main_loss"] / output.sums["masked"].clamp(min=1))
        else:
            alone.append(main_loss(objective, output).detach())
    assert torch.allclose(row_losses(model, inputs), torch.stack(alone), atol=1e-5)


def test_positions_that_are_not_given_are_found():
    model, inputs = made("mlm"), batch("mlm")
    (given,), _ = told(model, inputs)
    chosen = inputs["labels"].gather(1, inputs.pop("masked_positions")) != -100
    (found,), _ = told(model, inputs)
    assert torch.equal(given.labelled_N.view(6, 2), chosen)
    assert found.labelled_N.sum() == given.labelled_N.sum()
    assert torch.allclose(given.losses_N[given.labelled_N], found.losses_N[found.labelled_N], atol=1e-5)
    assert torch.equal(given.row_N[given.labelled_N], found.row_N[found.labelled_N])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_who_only_listens_changes_nothing(objective):
    model, inputs = made(objective), batch(objective)
    loss = model(**inputs).loss
    before = gradients(model, loss)
    seen = []
    observe_losses(model.backbone, "test", lambda losses: seen.append(losses))
    again = model(**inputs).loss
    assert torch.equal(loss, again)
    assert all(torch.equal(before[name], value) for name, value in gradients(model, again).items())
    assert len(seen) == 1  # of the generator's loss nobody is told
    model.eval()(**inputs)
    assert len(seen) == 1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_without_anyone_who_asks_nothing_is_computed(objective, monkeypatch):
    model, inputs = made(objective), batch(objective)
    observe_losses(model.backbone, "test", lambda losses: None)
    observe_losses(model.backbone, "test", None)
    assert not observers_of(model.backbone)
    monkeypatch.setattr("hf_effpt.core.token_losses.TokenLosses", lambda *_: 1 / 0)
    model(**inputs).loss.backward()


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_weights_of_one_are_no_weights(objective, positions):
    model, inputs = made(objective), batch(objective)
    if not positions:
        del inputs["masked_positions"]
    loss = model(**inputs).loss
    before = gradients(model, loss)
    observe_losses(model.backbone, "test", lambda losses: torch.ones_like(losses.losses_N))
    weighted = model(**inputs).loss
    assert torch.allclose(loss, weighted, rtol=1e-6)
    assert_close(before, gradients(model, weighted))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_of_weight_zero_teach_nothing(objective):
    model, inputs = made(objective), batch(objective)
    per = {"num_items_in_batch": model.count_items(inputs)}
    observe_losses(model.backbone, "test", lambda losses: (losses.row_N != 1).float())
    weighted = gradients(model, main_loss(objective, model(**inputs, **per)))
    observe_losses(model.backbone, "test", None)
    others = {name: values[torch.arange(6) != 1] for name, values in inputs.items()}
    expected = gradients(model, main_loss(objective, model(**others, **per)))
    if objective == "mcbert masked":  # replaced tokens are detected everywhere, whatever the weights
        head = [name for name in expected if name.startswith("generator_predictions.")]
        expected, weighted = ({name: found[name] for name in head} for found in (expected, weighted))
    assert_close(expected, weighted)


@pytest.mark.parametrize("objective", JOINT)
def test_the_generator_learns_the_same_whatever_the_weights(objective):
    model, inputs = made(objective), batch(objective)
    before = gradients(model, model(**inputs).loss)
    observe_losses(model.backbone, "test", lambda losses: torch.zeros_like(losses.losses_N))
    output = model(**inputs)
    after = gradients(model, output.loss)
    own = [name for name in before if name.startswith("generator.electra.encoder")]
    assert own
    assert_close({name: before[name] for name in own}, {name: after[name] for name in own})
    if objective != "mcbert masked":
        assert output.main_loss.item() == 0.0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_hints_reach_who_asks_and_nobody_else(objective):
    model, inputs = made(objective), batch(objective)
    hints, seen = torch.arange(6.0), []
    plain = model(**inputs).loss
    assert torch.equal(plain, model(**inputs, loss_weight_inputs=hints).loss)
    observe_losses(model.backbone, "test", lambda losses: seen.append(losses.weight_inputs))
    model(**inputs, loss_weight_inputs=hints)
    model(**inputs)
    assert seen[0] is hints
    assert seen[1] is None


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_waits_for_values(objective):
    """On the meta device there are none."""
    model = made(objective).to("meta")
    observe_losses(model.backbone, "test", lambda losses: losses.losses_N / losses.by_row()[0].sum())
    loss = model(**{name: values.to("meta") for name, values in batch(objective).items()}).loss
    loss.backward()
    assert loss.shape == ()


def test_weights_of_several_methods_are_multiplied():
    model, inputs = made("mlm"), batch("mlm")
    loss = model(**inputs).loss
    for name, factor in (("one", 2.0), ("two", 1.5)):
        observe_losses(model.bert, name, lambda losses, factor=factor: torch.full_like(losses.losses_N, factor))
    observe_losses(model.bert, "three", lambda losses: None)
    assert torch.allclose(model(**inputs).loss, 3 * loss)
    with recording_losses(model.bert) as heard:
        assert torch.equal(model(**inputs).loss, loss)  # who listens has it unweighted
    assert len(heard) == 1
