"""Any accepted settings of a method train: losses are finite, and the export is whole. Others are refused before."""

import math

import numpy as np
import torch
from datasets import Dataset, Features, Sequence, Value
from hypothesis import given
from hypothesis import strategies as st

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import METHODS
from hf_effpt.data.masking import DataCollatorForMaskedLM
from tests import tiny

from .test_recipes import changes, check_said

# Which need a trained model, or a file, of their own.
FILES = {"holdout", "table", "ticket", "teacher"}
LEDGERS = st.sampled_from(sorted(METHODS)).flatmap(
    lambda name: changes(METHODS[name]).map(
        lambda settings: {name: {key: value for key, value in settings.items() if key not in FILES}}
    )
)


def test_any_method_trains_or_is_refused(cases, tally, tmp_path):
    trained = []

    @cases(0.2)
    @given(LEDGERS, st.sampled_from(tiny.BACKBONES), st.integers(1, 5))
    def check(ledger, backbone, layers):
        try:
            trainer = tiny.trainer(
                tmp_path, ledger, backbone=backbone, layers=layers, budget="6steps", dropout=0.1, logging_steps=1
            )
        except EffptError as error:
            check_said(error, ledger)
            tally("refused")
            return
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(losses) == 6, ledger
        assert all(map(math.isfinite, losses)), ledger
        exported = trainer.model.export()
        assert all(bool(weight.isfinite().all()) for weight in exported.state_dict().values()), ledger
        ids = torch.tensor(tiny.rows(2)["input_ids"])
        assert exported(ids).logits.shape == (2, tiny.LENGTH, tiny.VOCAB), ledger
        trained.append(next(iter(ledger)))
        tally("accepted")

    check()
    assert len(set(trained)) > 3  # not all are refused


def test_rows_and_masks(cases, tally):
    """Any rows of tokens: as many masks as asked for, none on special tokens, and the original can be had again."""

    @cases(0.1)
    @given(
        st.lists(st.lists(st.integers(0, tiny.VOCAB - 1), min_size=1, max_size=40), min_size=1, max_size=5),
        st.floats(0.01, 0.99), st.integers(0, 2**31), st.booleans(),
    )  # fmt: skip
    def check(rows, rate, seed, keyed):
        length = max(map(len, rows))
        ids = np.array([row + [0] * (length - len(row)) for row in rows])
        collator = DataCollatorForMaskedLM(tiny.tokenizer(), rate, seed=seed)
        collator.keyed = keyed
        batch = {"input_ids": ids, "example_id": np.arange(len(ids)), "epoch": np.zeros(len(ids), int)}
        masked = collator(batch)
        labels, special = masked["labels"].numpy(), np.isin(ids, tiny.tokenizer().all_special_ids)
        assert not (labels != -100)[special].any()
        assert (np.where(labels != -100, labels, masked["input_ids"].numpy()) == ids).all()
        real = (ids != 0).sum(axis=1)
        wanted = np.minimum(np.maximum(np.rint(rate * real), 1), (~special).sum(axis=1))
        assert ((labels != -100).sum(axis=1) == wanted).all()
        if keyed:
            assert (collator.original(masked)["input_ids"] == ids).all()
        tally("accepted")

    check()


def test_datasets_of_any_shape(cases, tally, tmp_path):
    """A dataset that is too small, or whose rows have another length than the model reads, is refused."""

    @cases(0.02)
    @given(st.integers(0, 12), st.integers(1, 40))
    def check(number, length):
        ids = np.full((number, length), 7, np.uint16)
        rows = Dataset.from_dict(
            {"input_ids": ids}, features=Features({"input_ids": Sequence(Value("uint16"), length=length)})
        )
        try:
            trainer = tiny.EffptTrainer(
                tiny.model(),
                tiny.arguments(tmp_path, budget="2steps"),
                train_dataset=rows,
                processing_class=tiny.tokenizer(),
            )
        except EffptError as error:
            check_said(error, (number, length))
            tally("refused")
            return
        trainer.train()
        assert trainer.state.global_step == 2
        tally("accepted")

    check()
