"""Invariant 4: with every method off, three training steps equal the stock class's, bit for bit."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from hf_effpt.models import EffptBertConfig, EffptBertForMaskedLM, EffptBertForSequenceClassification, EffptBertModel
from tests import tiny

OFF = [
    pytest.param({}, id="no method"),
    pytest.param({"layerdrop": {"p": 0.0}}, id="layerdrop at p=0"),
    pytest.param({"tnf": {}}, id="tnf without a dictionary"),
]


def three_steps(model_class, config):
    """Weights, losses, gradients and generator state after three steps with dropout."""
    torch.manual_seed(11)
    model = model_class(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seen = []
    for step in range(3):
        ids = torch.randint(5, tiny.VOCAB, (4, tiny.LENGTH), generator=torch.Generator().manual_seed(step))
        for method in getattr(model, "methods", []):
            method.schedule(model.backbone, step, step / 3, seed=0)
        logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
        loss.backward()
        seen += [loss.detach(), logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
        optimizer.step()
        optimizer.zero_grad()
    return model, seen, torch.get_rng_state()


@pytest.mark.parametrize("ledger", OFF)
def test_bit_equal_to_stock(ledger):
    stock, expected, generator = three_steps(BertForMaskedLM, BertConfig(**tiny.SHAPE))
    ours, seen, our_generator = three_steps(EffptBertForMaskedLM, EffptBertConfig(**tiny.SHAPE, methods=ledger))
    assert list(stock.state_dict()) == list(ours.state_dict())
    assert all(torch.equal(left, right) for left, right in zip(expected, seen, strict=True))
    assert torch.equal(generator, our_generator)
    for name, weight in stock.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[name]), name


@pytest.mark.parametrize("cls", [EffptBertModel, EffptBertForMaskedLM, EffptBertForSequenceClassification])
def test_same_weights_from_the_same_seed(cls):
    torch.manual_seed(5)
    stock = cls.stock_class(BertConfig(**tiny.SHAPE))
    after = torch.get_rng_state()
    torch.manual_seed(5)
    ours = cls(tiny.config())
    assert torch.equal(after, torch.get_rng_state())
    for name, weight in stock.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[name]), name
