"""Batches in which each token predicts the next one of its document."""

import numpy as np
import torch

from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.data.next_tokens import DataCollatorForNextTokens
from tests import tiny

PAD, UNKNOWN, CLS, SEP = 0, 1, 2, 3


def batch_of(ids, documents=None):
    collate = DataCollatorForNextTokens(DataCollatorForMaskedLM(tiny.tokenizer()))
    columns = {} if documents is None else {"document_ids": np.array(documents)}
    return collate({"input_ids": np.array(ids), "example_id": np.arange(len(ids)), **columns})


def test_labels_are_the_next_tokens_up_to_the_end_of_a_document():
    found = batch_of([[CLS, 10, 11, SEP, 12, UNKNOWN, 13, SEP]])
    assert found["input_ids"].tolist() == [[CLS, 10, 11, SEP, 12, UNKNOWN, 13, SEP]]
    assert found["labels"].tolist() == [[10, 11, -100, -100, -100, 13, -100, -100]]
    assert set(found) == {"input_ids", "labels", "causal"}


def test_documents_kept_apart_have_no_label_across_and_padding_none_at_all():
    ids = [[CLS, 10, 11, SEP, CLS, 12, SEP, PAD], [10, 11, 12, 13, 14, 15, PAD, PAD]]
    found = batch_of(ids, [[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 2, 2, 2, 0, 0]])
    assert found["labels"].tolist() == [
        [10, 11, -100, -100, 12, -100, -100, -100],
        [11, 12, -100, 14, 15, -100, -100, -100],
    ]


def test_what_is_labelled_is_what_masking_could_choose():
    """All tokens that are not special, but for the first of a document and of a row."""
    ids = np.array(tiny.rows(6)["input_ids"])
    labels = batch_of(ids)["labels"]
    assert torch.equal(labels[:, :-2], torch.from_numpy(ids[:, 1:-1]).long())
    assert (labels[:, -2:] == -100).all()


def test_padding_that_no_column_tells_is_told_the_model():
    found = batch_of([[CLS, 10, 11, SEP, PAD, PAD]])
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0]]
    assert found["labels"].tolist() == [[10, 11, -100, -100, -100, -100]]
