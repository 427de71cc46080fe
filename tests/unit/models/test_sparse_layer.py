"""The last layer at masked positions only: the same numbers from less work, and only where nobody can tell."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from hf_effpt.core.depth import stack_of
from hf_effpt.evaluation.held_out_loss import stock_loss
from tests import tiny


def batch(rows=3, masked=4):
    ids = torch.randint(5, tiny.VOCAB, (rows, tiny.LENGTH))
    positions = torch.stack([torch.randperm(tiny.LENGTH)[:masked].sort().values for _ in range(rows)])
    labels = torch.full_like(ids, -100).scatter(1, positions, ids.gather(1, positions))
    return {"input_ids": ids, "labels": labels, "masked_positions": positions}


def outputs_of_last_layer(model, **inputs):
    """How many positions the feed-forward block of the last layer computes."""
    seen = []
    hook = model.bert.encoder.layer[3].output.register_forward_hook(lambda *parts: seen.append(parts[2].shape[1]))
    loss = model(**inputs).loss
    hook.remove()
    return loss, seen


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("documents", [None, "padding", "isolated"])
def test_same_loss_and_gradients_from_fewer_outputs(attention, documents):
    model = tiny.model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    model.set_attn_implementation(attention)
    inputs = batch()
    if documents == "padding":
        inputs["attention_mask"] = (torch.arange(tiny.LENGTH) < torch.tensor([[16], [12], [9]])).long()
    elif documents == "isolated":
        inputs["document_ids"] = torch.tensor([[1] * 7 + [2] * 6 + [0] * 3] * 3)
    sparse, seen = outputs_of_last_layer(model, **inputs)
    sparse.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    whole, seen_whole = outputs_of_last_layer(model, **inputs, output_hidden_states=True)
    whole.backward()
    assert (seen, seen_whole) == ([4], [tiny.LENGTH])
    assert torch.allclose(sparse, whole, atol=1e-6)
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-6), name


def test_with_dropout_in_training_draws_are_those_of_the_stock_class():
    torch.manual_seed(4)
    stock = BertForMaskedLM(BertConfig(**tiny.SHAPE)).train()
    ours = tiny.model().train()
    ours.load_state_dict(stock.state_dict())
    inputs = batch()
    torch.manual_seed(9)
    expected = stock(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss
    after = torch.get_rng_state()
    torch.manual_seed(9)
    loss, seen = outputs_of_last_layer(ours, **inputs)
    assert seen == [tiny.LENGTH]
    assert torch.allclose(loss, expected, atol=1e-5)
    assert torch.equal(after, torch.get_rng_state())


def test_when_every_layer_is_dropped_the_embeddings_are_read_at_the_masked_positions():
    model = tiny.model({"layerdrop": {"p": 0.5}}, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    stack_of(model.bert).dropped = frozenset(range(4))
    inputs = batch()
    loss = model(**inputs).loss
    embedded = model.bert.embeddings(inputs["input_ids"])
    mask = inputs["labels"] != -100
    expected = torch.nn.functional.cross_entropy(model.cls(embedded[mask]), inputs["labels"][mask])
    assert torch.allclose(loss, expected, atol=1e-6)


def test_the_last_layer_is_whole_again_after_an_error():
    model = tiny.model().eval()
    with pytest.raises(RuntimeError):
        model(**{**batch(), "masked_positions": torch.full((3, 1), 99)})
    assert stack_of(model.bert).last is None


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_a_position_that_is_named_twice_counts_once(backbone):
    model, inputs = tiny.masked_lm(backbone).train(), batch(rows=2, masked=3)
    named = inputs["masked_positions"]
    twice = torch.stack([torch.cat([named[0], named[0, :2]]), torch.cat([named[1, :1], named[1], named[1, 2:]])])
    more = {**inputs, "masked_positions": twice}
    torch.testing.assert_close(model(**more).loss, model(**inputs).loss)
    for of in (inputs, more):
        assert (model.head_inputs(of).labels_BM != -100).sum() == 6
    stock = model.export()
    torch.testing.assert_close(stock_loss(stock, more), stock_loss(stock, inputs))
