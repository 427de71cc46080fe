"""Masks by rates of tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from hf_effpt.core.errors import EffptError
from hf_effpt.data import DataCollatorForMaskedLM
from tests.unit.data.to_mask import (
    BATCHES,
    COLLATORS,
    TOKENIZER,
    VOCAB,
    assert_equal,
    make_batch,
    packed_batch,
    row_of,
)


@settings(deadline=None)
@given(COLLATORS, BATCHES)
def test_equal_rates_change_nothing(collator, shape):
    batch = make_batch(*shape)
    plain = collator(batch)
    for rate in (1.0, 0.3):
        assert_equal(plain, collator(batch, token_rates=np.full(VOCAB, rate)))
    more = np.append(np.ones(VOCAB), 5.0)  # of a row of the model's table that no token has
    assert_equal(plain, collator(batch, token_rates=more))


@settings(deadline=None)
@given(COLLATORS, BATCHES)
def test_rates_change_neither_counts_nor_what_masks_depend_on(collator, shape):
    batch, rates = make_batch(*shape), np.random.default_rng(3).uniform(0.1, 10, VOCAB)
    plain, out = collator(batch), collator(batch, token_rates=rates)
    assert torch.equal((plain["labels"] != -100).sum(1), (out["labels"] != -100).sum(1))
    assert (out["masked_positions"].diff(dim=1) > 0).all()
    labelled = out["labels"] != -100
    assert (out["labels"][labelled] == torch.from_numpy(batch["input_ids"])[labelled]).all()
    assert (out["labels"][labelled] >= 5).all()
    assert_equal(out, collator(batch, token_rates=2 * rates))
    for row in range(shape[0]):
        alone = collator({name: values[row : row + 1] for name, values in batch.items()}, token_rates=rates)
        assert_equal(row_of(out, row), alone)


def test_tokens_are_drawn_without_replacement_in_the_proportions_of_their_rates():
    number = 20_000
    rows = np.tile([2, 5, 6, 7, 3], (number, 1))
    rates = np.ones(VOCAB)
    rates[[5, 6, 7]] = 4, 2, 1
    batch = {"input_ids": rows, "example_id": np.arange(number)}
    one = (DataCollatorForMaskedLM(TOKENIZER, 0.2)(batch, token_rates=rates)["labels"] != -100).double().mean(0)
    assert one.tolist() == pytest.approx([0, 4 / 7, 2 / 7, 1 / 7, 0], abs=0.012)
    two = (DataCollatorForMaskedLM(TOKENIZER, 0.4)(batch, token_rates=rates)["labels"] != -100).double().mean(0)
    # The one that is left over: each order of the others, the second drawn from what the first leaves.
    left = [2 / 7 * 1 / 5 + 1 / 7 * 2 / 6, 4 / 7 * 1 / 3 + 1 / 7 * 4 / 6, 4 / 7 * 2 / 3 + 2 / 7 * 4 / 5]
    assert two[1:4].tolist() == pytest.approx([1 - share for share in left], abs=0.012)


def test_what_a_token_becomes_does_not_depend_on_its_rate():
    batch, rates = packed_batch(1000), np.ones(VOCAB)
    rates[5:30] = 20.0
    out = DataCollatorForMaskedLM(TOKENIZER)(batch, token_rates=rates)
    labelled = out["labels"] != -100
    new, old = out["input_ids"][labelled], out["labels"][labelled]
    assert (old < 30).double().mean() > 0.9
    assert (new == 4).double().mean() == pytest.approx(0.8, abs=0.01)
    assert ((new != 4) & (new != old)).double().mean() == pytest.approx(0.1, abs=0.01)


def test_a_whole_word_has_the_rate_of_its_first_token():
    batch = packed_batch(200)
    ids = batch["input_ids"]
    ids[ids >= 30] = 41
    ids[:, 1:6] = 8, 40, 40, 40, 9
    ids[:100, 1] = 40  # these rows begin in the middle of a word
    collator = DataCollatorForMaskedLM(TOKENIZER, whole_word=True)
    rates = np.ones(VOCAB)
    rates[[*range(5), 41]] = 1e6  # of no token that is the first of a word
    assert_equal(collator(batch), collator(batch, token_rates=rates))
    rates[40] = 1e6
    masked = (collator(batch, token_rates=rates)["labels"] != -100)[:, 1:5]
    assert masked[:100].all()
    assert masked[100:].double().mean() < 0.3


@pytest.mark.parametrize(
    "rates",
    [np.ones(0), np.ones(VOCAB - 1), np.zeros(VOCAB), np.full(VOCAB, np.inf), -np.ones(VOCAB), np.full(VOCAB, np.nan)],
)
def test_impossible_token_rates(rates):
    with pytest.raises(EffptError, match="must be one finite number above 0 for each of the tokenizer's 60 tokens"):
        DataCollatorForMaskedLM(TOKENIZER)(packed_batch(1), token_rates=rates)
