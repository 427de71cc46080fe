"""One rule for the shares of all methods: equal shares of equal wholes are equal numbers."""

import numpy as np
import pytest
import torch

from hf_effpt.core.gates import gate_scores
from hf_effpt.core.registry import build_methods
from hf_effpt.core.shares import part_of
from hf_effpt.data.document_selection import in_band
from hf_effpt.methods.earlybert.drawing import best
from hf_effpt.methods.selection.strategies.weighing import highest
from hf_effpt.models.build import config_for
from tests import tiny

WHOLE = 8


def heads_of_earlybert(share):
    model = tiny.model({"earlybert": {}}, num_attention_heads=WHOLE)
    return best(gate_scores(model.bert), share, 0.5).widths[0][0]


def heads_of_compress(share):
    config = tiny.config({"compress": {"head_keep": share}}, num_attention_heads=WHOLE)
    return build_methods(config.methods)[0].sizes(config)[1].heads


def documents(share):
    return int(in_band(np.arange(float(WHOLE)), share, "low").sum())


def tokens(share):
    return int((highest(torch.arange(float(WHOLE)), torch.ones(WHOLE, dtype=torch.bool), share) > 0).sum())


def width_of_a_generator(share):
    return config_for("electra", **tiny.SHAPE | {"hidden_size": WHOLE, "generator_size": share}).generator_config()


@pytest.mark.parametrize("share", [0.2, 0.3, 0.4, 0.5625, 2 / 3, 0.7, 0.8125])
def test_equal_shares_of_equal_wholes_are_equal_numbers(share):
    part = part_of(share, WHOLE)
    assert [keeps(share) for keeps in (heads_of_earlybert, heads_of_compress, documents, tokens)] == [part] * 4
    assert width_of_a_generator(share).hidden_size == part
