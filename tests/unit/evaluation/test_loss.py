import math

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Sequence, Value
from torch import nn
from transformers import (
    BertModel,
    ElectraConfig,
    ElectraForMaskedLM,
    MPNetConfig,
    MPNetForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hf_effpt.core.errors import EffptError
from hf_effpt.data.packing import PackedRows
from hf_effpt.evaluation.held_out_loss import fixed_mask_batches, held_out_loss, unigram_floor
from tests import tiny


def isolated_rows() -> Dataset:
    """Rows of two documents each and two positions of padding."""
    ids = np.array(tiny.rows(12)["input_ids"])
    ids[:, 6], ids[:, 7], ids[:, 13] = 3, 2, 3
    ids[:, 14:] = 0
    documents = np.repeat([[1] * 7 + [2] * 7 + [0] * 2], 12, axis=0)
    column = Sequence(Value("uint16"), length=tiny.LENGTH)
    return Dataset.from_dict(
        {"input_ids": ids.astype(np.uint16), "document_ids": documents.astype(np.uint16)},
        features=Features({"input_ids": column, "document_ids": column}),
    )


def varied(model):
    """With weights large enough for every token in sight to matter."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    return model


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


@pytest.mark.parametrize("rows", [tiny.rows(12), isolated_rows()], ids=["stream", "isolated"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_exported_model_costs_what_the_training_model_does(rows, attention):
    model = varied(tiny.model(attn_implementation=attention))
    stock = model.export()
    stock.set_attn_implementation(attention)
    own, exported = (held_out_loss(one, fixed_mask_batches(rows, tiny.tokenizer(), 5)) for one in (model, stock))
    assert exported.total / exported.masked == pytest.approx(own.total / own.masked, abs=1e-5)
    assert (exported.label_counts == own.label_counts).all()
    assert own.masked > 12


def test_a_stock_model_without_named_positions():
    model = varied(RobertaForMaskedLM(RobertaConfig(**tiny.SHAPE)))
    batches = list(fixed_mask_batches(tiny.rows(6), tiny.tokenizer(), 6))
    batches[0]["labels"][0] = -100  # rows with fewer labels than others, and with none
    bare = [{name: batch[name] for name in ("input_ids", "labels")} for batch in batches]
    logits = model.eval()(batches[0]["input_ids"]).logits
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), batches[0]["labels"].flatten(), reduction="sum")
    for given in (batches, bare):
        assert held_out_loss(model, given).total == pytest.approx(expected.item(), rel=1e-5)


def test_documents_are_apart_for_electra_and_refused_where_they_cannot_be():
    rows, words = isolated_rows(), tiny.tokenizer()
    electra = varied(ElectraForMaskedLM(ElectraConfig(embedding_size=16, **tiny.SHAPE)))
    alone = held_out_loss(electra, fixed_mask_batches(rows, words, 12))
    other = rows.map(lambda row: {"input_ids": row["input_ids"][:8] + [9] * 5 + row["input_ids"][13:]})
    batch, changed = (next(fixed_mask_batches(one, words, 12)) for one in (rows, other.cast(rows.features)))
    for one in (batch, changed):  # the same labels in the first document, none in the second, which is another text
        one["labels"][:, 7:] = -100
    changed["input_ids"][:, :7], changed["labels"] = batch["input_ids"][:, :7], batch["labels"]
    changed["masked_positions"] = batch["masked_positions"]
    assert not torch.equal(batch["input_ids"], changed["input_ids"])
    first, same = (held_out_loss(electra, [one]).total for one in (batch, changed))
    assert 0 < first < alone.total
    assert same == pytest.approx(first, abs=1e-4)
    other = MPNetForMaskedLM(MPNetConfig(**tiny.SHAPE))
    with pytest.raises(EffptError, match=r"MPNetForMaskedLM` cannot keep the documents.*without `isolate_documents`"):
        held_out_loss(other, fixed_mask_batches(rows, words, 12))


def test_refuses_a_model_without_a_head():
    with pytest.raises(EffptError, match="BertModel` predicts no masked tokens"):
        held_out_loss(BertModel(tiny.config().stock()), [])


@pytest.mark.parametrize("size", [4, 5, 64])
@pytest.mark.parametrize("rows", [tiny.rows(12), tiny.rows(12).shuffle(seed=3), isolated_rows()])
def test_batches_are_those_of_the_trainer(rows, size, tmp_path):
    trainer = tiny.trainer(tmp_path, per_device_eval_batch_size=size)
    expected, got = list(trainer.get_eval_dataloader(rows)), list(fixed_mask_batches(rows, tiny.tokenizer(), size))
    assert len(got) == len(expected) == math.ceil(12 / size)
    for one, other in zip(got, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_refuses_at_once_what_makes_no_batches():
    with pytest.raises(EffptError, match="packed"):
        fixed_mask_batches(Dataset.from_dict({"text": ["a"]}), tiny.tokenizer(), 4)
    with pytest.raises(EffptError, match="batch_size=0"):
        fixed_mask_batches(tiny.rows(4), tiny.tokenizer(), 0)
