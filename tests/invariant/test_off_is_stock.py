"""Invariant 4: with every method off, three training steps equal the stock class's, bit for bit."""

import pytest
import torch

import hf_effpt
from tests import tiny
from tests.stock import assert_learns_as_stock

OFF = [
    pytest.param({}, id="no method"),
    pytest.param({"layerdrop": {"p": 0.0}}, id="layerdrop at p=0"),
    pytest.param({"tnf": {}}, id="tnf without a dictionary"),
]


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
@pytest.mark.parametrize("ledger", OFF)
def test_bit_equal_to_stock(ledger, backbone):
    stock, ours = assert_learns_as_stock(ledger, until=1.0, backbone=backbone)
    assert list(stock.state_dict()) == list(ours.state_dict())


@pytest.mark.parametrize("config", [tiny.config, tiny.modern_config])
@pytest.mark.parametrize("part", ["Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])
def test_same_weights_from_the_same_seed(config, part):
    cls = getattr(hf_effpt, type(config()).__name__.removesuffix("Config") + part)
    torch.manual_seed(5)
    stock = cls.stock_class(config().stock())
    after = torch.get_rng_state()
    torch.manual_seed(5)
    ours = cls(config())
    assert torch.equal(after, torch.get_rng_state())
    tiny.assert_same_weights(stock, ours)
