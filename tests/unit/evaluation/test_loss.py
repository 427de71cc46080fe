import math

import numpy as np
import pytest
import torch

from hf_effpt.data.packing import PackedRows
from hf_effpt.evaluation.loss import held_out_loss, unigram_floor
from tests import tiny


def test_sums_over_tokens_whatever_the_batches():
    model = tiny.model()
    ids = torch.randint(5, tiny.VOCAB, (6, tiny.LENGTH))
    labels = torch.full_like(ids, -100)
    for row in range(6):
        labels[row, 1 : 2 + row] = ids[row, 1 : 2 + row]
    whole = held_out_loss(model, [{"input_ids": ids, "labels": labels}])
    parts = held_out_loss(model, [{"input_ids": ids[i : i + 4], "labels": labels[i : i + 4]} for i in (0, 4)])
    assert whole.masked == parts.masked == 21
    assert parts.total == pytest.approx(whole.total, abs=1e-4)
    logits = model.eval()(ids).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert whole.total == pytest.approx(expected.item(), abs=1e-4)


def test_leaves_the_model_in_the_mode_it_was_in():
    for training in (True, False):
        model = tiny.model().train(training)
        held_out_loss(model, [])
        assert model.training is training


def test_floor_of_a_known_distribution():
    rows = PackedRows(tiny.rows(48))
    ids = rows.rows(np.arange(48))["input_ids"]
    counts = np.bincount(ids.ravel(), minlength=tiny.VOCAB) + 1.0
    counts[:5] = 0  # never masked, so a predictor of masked tokens gives them nothing
    labels = np.zeros(tiny.VOCAB, dtype=np.int64)
    labels[7], labels[9] = 3, 1
    expected = -(3 * math.log(counts[7] / counts.sum()) + math.log(counts[9] / counts.sum())) / 4
    assert unigram_floor(rows, labels, range(5)) == pytest.approx(expected)
