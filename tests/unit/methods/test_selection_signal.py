"""Spec test 10: does selection do anything? A signal that is planted in the rows, and who finds it."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Sequence, Value
from transformers import set_seed

from tests import tiny
from tests.picking import Watched, selection, trained

NOISE = 0.3
SCHOOL = {"per_device_train_batch_size": 16, "budget": "40steps", "learning_rate": 5e-3, "logging_steps": 1000}


def dataset(ids):
    features = Features({"input_ids": Sequence(Value("uint16"), length=tiny.LENGTH)})
    return Dataset.from_dict({"input_ids": np.asarray(ids).astype(np.uint16)}, features=features)


def clean(number, seed):
    """Rows of four words one after the other, which a model learns in a few steps."""
    ids, start = np.array(tiny.rows(number)["input_ids"]), np.random.default_rng(seed).integers(0, 4, (number, 1))
    ids[:, 1:-1] = 5 + (start + np.arange(tiny.LENGTH - 2)) % 4
    return ids


def noisy(number=96):
    """Rows of which 30 % are uniform noise, and which of them are."""
    generator = np.random.default_rng(5)
    ids, is_noise = clean(number, 2), np.arange(number) < NOISE * number
    ids[is_noise, 1:-1] = generator.integers(5, tiny.VOCAB, (is_noise.sum(), tiny.LENGTH - 2))
    return dataset(ids), is_noise


@pytest.fixture(scope="module")
def holdout(tmp_path_factory):
    """A model that has learned from other rows, all of them clean."""
    torch.set_num_threads(1)
    return trained(tmp_path_factory.mktemp("clean"), dataset(clean(96, 3)), **SCHOOL, warmup_steps=0)


def kept_share(out, rows, marked, ledger, budget="16steps", late=0.5, **settings):
    """What share of the rows kept, in the later part of a run, is of those that are marked."""
    set_seed(7)
    shape = {"num_hidden_layers": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    given = {**SCHOOL, "budget": budget, "per_device_train_batch_size": 8, "warmup_steps": 0, **settings}
    trainer = Watched(
        model=tiny.model(ledger, **shape), args=tiny.arguments(out, **given), train_dataset=rows,
        processing_class=tiny.tokenizer(),
    )  # fmt: skip
    trainer.train()
    kept = [row for step in trainer.kept[round(late * len(trainer.kept)) :] for row in step]
    return float(np.mean(marked[kept]))


def test_spec_10_the_highest_losses_are_mostly_noise_once_something_is_learned(tmp_path):
    rows, is_noise = noisy()
    ledger = selection("highest_loss", keep=0.25, start=0.7, explore=0.0)
    assert kept_share(tmp_path, rows, is_noise, ledger, budget="40steps", late=0.75) > 0.8


def test_spec_10_a_reference_model_keeps_noise_out(tmp_path, holdout):
    rows, is_noise = noisy()
    ledger = selection("rho", keep=0.25, explore=0.0, holdout=str(holdout))
    assert kept_share(tmp_path, rows, is_noise, ledger) < 0.1


def test_spec_10_selective_backprop_keeps_more_noise_than_there_is(tmp_path):
    rows, is_noise = noisy()
    ledger = selection("selective_backprop", keep=0.25, start=0.7)
    assert kept_share(tmp_path, rows, is_noise, ledger, budget="40steps", late=0.75) > NOISE + 0.1


@pytest.mark.parametrize(("name", "least", "most"), [("core_set", 0.0, 0.15), ("random", 0.4, 0.6)])
def test_spec_10_rows_far_from_those_trained_on_are_no_duplicates(tmp_path, name, least, most):
    """In a window of 64 rows, 20 times; of those with more than 32 duplicates some have to be kept."""
    generator = np.random.default_rng(1)
    different = clean(640, 2)
    different[:, 1:-1] = generator.integers(5, tiny.VOCAB, (640, tiny.LENGTH - 2))
    ids = np.concatenate([different, np.repeat(different[:10], 64, axis=0)])
    marked = np.arange(1280) >= 640
    ledger = selection(name, keep=0.5, explore=0.0)
    settings = {"per_device_train_batch_size": 32, "learning_rate": 5e-4}
    assert least <= kept_share(tmp_path, dataset(ids), marked, ledger, "20steps", late=0.1, **settings) <= most
