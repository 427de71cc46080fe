"""Invariant 2: the masked-only head gives the loss and the gradients of the full head."""

import pytest
import torch

from hf_effpt.data.masking import DataCollatorForMaskedLM
from tests import tiny


def batch():
    rows = tiny.rows(6)
    return DataCollatorForMaskedLM(tiny.tokenizer())([{"input_ids": ids} for ids in rows["input_ids"]])


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", [True, False])
def test_loss_and_gradients_equal_those_of_all_positions(positions, attention, backbone):
    torch.manual_seed(3)
    ours = tiny.masked_lm(backbone).eval()
    stock = type(ours).stock_class(ours.config.stock()).eval()
    for model in (stock, ours):
        model.set_attn_implementation(attention)
    ours.load_state_dict(stock.state_dict())
    inputs = batch()
    given = inputs.pop("masked_positions")
    full = stock(**inputs)
    masked = ours(**inputs, masked_positions=given if positions else None)
    full.loss.backward()
    masked.loss.backward()
    assert torch.allclose(full.loss, masked.loss, atol=1e-5)
    for (name, left), (_, right) in zip(stock.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.allclose(left.grad, right.grad, atol=1e-5), name
    assert torch.equal(full.logits, ours(input_ids=inputs["input_ids"]).logits)


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_no_logits_of_all_positions_are_made(backbone):
    """The decoder sees the masked positions only."""
    model = tiny.masked_lm(backbone)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    inputs = batch()
    model(**inputs)
    assert seen == [torch.Size([inputs["masked_positions"].numel(), tiny.VOCAB])]


def test_positions_without_a_label_are_ignored():
    model = tiny.model().eval()
    inputs = batch()
    expected = model(**inputs).loss
    positions = inputs["masked_positions"]
    free = next(p for p in range(tiny.LENGTH) if (inputs["labels"][:, p] == -100).all())
    inputs["masked_positions"] = torch.cat([positions, torch.full((len(positions), 1), free)], dim=1)
    assert torch.allclose(model(**inputs).loss, expected, atol=1e-6)
