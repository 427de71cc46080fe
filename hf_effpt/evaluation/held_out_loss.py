"""Held-out loss, summed exactly over masked tokens, and the unigram floor to get below."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    BertModel,
    CamembertModel,
    DistilBertModel,
    ElectraModel,
    ModernBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaModel,
    XLMRobertaModel,
)

from hf_effpt.core.errors import EffptError
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.data.packing import PackedRows
from hf_effpt.data.token_frequencies import token_frequencies
from hf_effpt.models.base import EffptMixin
from hf_effpt.models.encoder_inputs import encoder_inputs
from hf_effpt.models.masked_lm import label_count, token_loss
from hf_effpt.models.sparse_layer import labels_at, positions_of

from .masked_logits import evaluation_mode, masked_logits, predicts_masked_tokens

# Encoders that take a mask and positions which keep the documents of a row apart.
APART = (
    BertModel, CamembertModel, DistilBertModel, ElectraModel, ModernBertModel, RobertaModel, XLMRobertaModel,
)  # fmt: skip


@dataclass
class HeldOut:
    """Loss of a model on held-out text.

    `total` is in nats, summed over all masked tokens; `label_counts`, of shape `(vocab_size,)`, is the number of times
    each token was masked.
    """

    total: float
    label_counts: np.ndarray

    @property
    def masked(self) -> int:
        """Number of masked tokens."""
        return int(self.label_counts.sum())


def held_out_loss(model: PreTrainedModel, batches: Iterable[dict[str, Tensor]]) -> HeldOut:
    """Sums the loss over masked tokens in evaluation mode; every token has the same weight in whatever batch.

    `model` is a masked language model of this package or a stock class. Batches hold `input_ids`, `labels` (-100 at
    positions not masked) and, optionally, further inputs of this package's models; [`fixed_mask_batches`] makes them.
    Raises an `EffptError` if the model predicts no masked tokens, or cannot keep apart the documents of a row.
    """
    if not predicts_masked_tokens(model):
        raise EffptError(
            f"`{type(model).__name__}` predicts no masked tokens, so it has no held-out loss; load the weights with "
            "`AutoModelForMaskedLM.from_pretrained(…)`."
        )
    own = isinstance(model, EffptMixin)
    total = torch.zeros((), dtype=torch.float64, device=model.device)  # read once, at the end
    counts = np.zeros(model.config.vocab_size, dtype=np.int64)
    with evaluation_mode(model):
        for inputs in _counted(batches, counts, model.device):
            total += model(**inputs, num_items_in_batch=1).loss if own else stock_loss(model, inputs, 1)
    return HeldOut(total.item(), counts)


def held_out_sums(model: Any, batches: Iterable[dict[str, Tensor]]) -> tuple[dict[str, float], np.ndarray]:
    """Sums the metrics of a model with a generator in evaluation mode, over batches as its collator makes them.

    The generator's samples are a pure function of the rows, so the same text gives the same metrics at every call.

    Returns:
        The sum of each metric, and the number of times each token was masked, of shape `(vocab_size,)`.
    """
    totals: dict[str, Tensor] = {}
    counts = np.zeros(model.config.vocab_size, dtype=np.int64)
    with evaluation_mode(model):
        for inputs in _counted(batches, counts, model.device):
            for name, value in model(**inputs).sums.items():
                totals[name] = totals.get(name, 0.0) + value.double()
    return {name: value.item() for name, value in totals.items()}, counts


def _counted(
    batches: Iterable[dict[str, Tensor]], counts: np.ndarray, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Moves batches to the device and adds their labels to `counts`."""
    for batch in batches:
        labels = batch["labels"]
        counts += np.bincount(labels[labels != -100].numpy(), minlength=len(counts))
        yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def stock_loss(model: PreTrainedModel, batch: dict[str, Tensor], num_items: int | None = None) -> Tensor:
    """Loss of a stock model over the masked tokens of a batch: their sum over `num_items`, by default the mean."""
    labels, positions_BM = batch["labels"], batch.get("masked_positions")
    if positions_BM is None:
        positions_BM = positions_of(labels)
    logits_BMV = masked_logits(model, positions_BM, **stock_inputs(model, batch))
    labels_N = labels_at(labels, positions_BM).flatten()
    return token_loss(logits_BMV.flatten(0, 1), labels_N) / (num_items or label_count(labels_N))


def stock_inputs(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of a stock model, which keep the documents of a row apart if the batch has their ids."""
    if "document_ids" in batch and not isinstance(model.base_model, APART):
        raise EffptError(
            f"`{type(model).__name__}` cannot keep the documents of a row apart as BERT, its kin and ModernBERT can; "
            "evaluate it on rows packed without `isolate_documents`."
        )
    return encoder_inputs(model, batch)


def fixed_mask_batches(
    rows: Dataset, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Masks held-out rows in order, with the masks of every evaluation: 15 % whatever the rate in training.

    `EffptTrainer.evaluate` uses the same batches, so an exported model is measured as in its run.

    `rows` are packed with `tokenizer`; otherwise an `EffptError` is raised.
    """
    if batch_size < 1:
        raise EffptError(f"batch_size={batch_size} must be at least 1.")
    packed, collate = PackedRows(rows), DataCollatorForMaskedLM(tokenizer)
    batches = np.split(np.arange(len(packed)), range(batch_size, len(packed), batch_size))
    return (
        collate({**packed.rows(numbers), "example_id": numbers, "epoch": np.zeros_like(numbers)})
        for numbers in batches
    )


def unigram_floor(train: PackedRows, label_counts: np.ndarray, special_ids: Sequence[int]) -> float:
    """Loss, in nats per token, of predicting held-out masked tokens by the [`token_frequencies`] of training rows.

    `label_counts`, of shape `(vocab_size,)`, is the number of times each token is to be predicted; `special_ids` never
    are.
    """
    shares, predicted = token_frequencies(train, len(label_counts), special_ids), label_counts > 0
    return float(label_counts[predicted] @ -np.log(shares[predicted]) / label_counts.sum())
