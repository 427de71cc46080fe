"""The head of a new model begins at the frequencies of tokens."""

import numpy as np
import pytest
import torch

from hf_effpt import set_unigram_bias
from hf_effpt.core.errors import EffptError
from hf_effpt.data.packed_rows import PackedRows
from hf_effpt.data.token_frequencies import token_frequencies
from hf_effpt.evaluation.held_out_loss import fixed_mask_batches, held_out_loss, unigram_floor
from tests import tiny


def test_frequencies_are_those_of_the_rows_and_leave_special_tokens_out():
    rows = PackedRows(tiny.rows(40))
    counts = np.bincount(rows.rows(np.arange(40))["input_ids"].ravel(), minlength=tiny.VOCAB)
    found = token_frequencies(rows, tiny.VOCAB, [0, 1, 2, 3, 4])
    assert found[:5].tolist() == [0.0] * 5
    assert found[5:] == pytest.approx((counts[5:] + 1) / (counts[5:] + 1).sum())


@pytest.mark.parametrize("kind", [*tiny.BACKBONES, "electra", "mcbert"])
def test_every_head_over_the_vocabulary_begins_there(kind):
    model = tiny.masked_lm(kind) if kind in tiny.BACKBONES else tiny.joint(kind)
    set_unigram_bias(model, tiny.rows(), tiny.tokenizer())
    part = model if kind in tiny.BACKBONES else model.generator
    bias = part.get_output_embeddings().bias
    shares = token_frequencies(PackedRows(tiny.rows()), model.config.vocab_size, tiny.tokenizer().all_special_ids)
    logs = torch.from_numpy(np.log(np.maximum(shares, 1e-3 * shares[shares > 0].min()))).float()
    assert torch.allclose(bias, logs)
    exported = model.export() if kind in tiny.BACKBONES else model.export_generator()
    assert torch.allclose(exported.get_output_embeddings().bias, logs)


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_the_loss_then_begins_at_the_floor(backbone):
    """With embeddings near zero, exactly; as they are drawn, nearly."""
    rows, held_out = tiny.rows(64), tiny.rows(24, seed=1)
    model = tiny.masked_lm(backbone)
    set_unigram_bias(model, rows, tiny.tokenizer())
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e-4)
    found = held_out_loss(model.export(), fixed_mask_batches(held_out, tiny.tokenizer(), 8))
    floor = unigram_floor(PackedRows(rows), found.label_counts, tiny.tokenizer().all_special_ids)
    assert found.total / found.masked == pytest.approx(floor, abs=1e-3)


def test_a_model_without_such_a_head_is_refused():
    class Headless:
        config = tiny.config()

        def get_output_embeddings(self):
            return None

    with pytest.raises(EffptError, match="`Headless` has no head with a bias for each token"):
        set_unigram_bias(Headless(), tiny.rows(), tiny.tokenizer())
