"""Held-out masked-language-modelling loss, summed exactly, and the unigram floor it has to get below."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import BertModel, ElectraModel, PreTrainedModel, PreTrainedTokenizerFast

from hf_effpt.core.errors import EffptError
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.data.packing import PackedRows
from hf_effpt.models.base import EffptMixin, isolate_documents
from hf_effpt.models.bert import masked_loss
from hf_effpt.models.sparse_layer import positions_of

from .masked_logits import evaluation_mode, masked_logits, predicts_masked_tokens


@dataclass
class HeldOut:
    """What held-out text costs a model.

    Args:
        total (`float`): the loss, in nats, summed over all masked tokens.
        label_counts (`np.ndarray` of shape `(vocab_size,)`): how often each token was masked.
    """

    total: float
    label_counts: np.ndarray

    @property
    def masked(self) -> int:
        return int(self.label_counts.sum())


def held_out_loss(model: PreTrainedModel, batches: Iterable[dict[str, Tensor]]) -> HeldOut:
    """Sums the loss over masked tokens in evaluation mode; every token weighs the same, whatever batch it is in.

    Args:
        model ([`PreTrainedModel`]): with a masked-language-modelling head: of this package or a stock class.
        batches: of `input_ids`, `labels` (-100 at positions not masked) and what else a model of this package takes;
            [`fixed_mask_batches`] makes them.

    Raises:
        EffptError: the model does not predict masked tokens, or cannot keep documents apart that the batches number.
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
        for inputs in counted(batches, counts, model.device):
            total += model(**inputs, num_items_in_batch=1).loss if own else _stock_loss(model, **inputs)
    return HeldOut(total.item(), counts)


def held_out_sums(model: Any, batches: Iterable[dict[str, Tensor]]) -> tuple[dict[str, float], np.ndarray]:
    """What the metrics of `model` are made of, summed in evaluation mode, and how often each token was masked.

    Its generator's samples are a pure function of the rows, so the same text gives the same metrics at every call.

    Args:
        model: with a generator.
        batches: of `input_ids`, `labels` and the like, as its collator makes them.
    """
    totals: dict[str, Tensor] = {}
    counts = np.zeros(model.config.vocab_size, dtype=np.int64)
    with evaluation_mode(model):
        for inputs in counted(batches, counts, model.device):
            for name, value in model(**inputs).sums.items():
                totals[name] = totals.get(name, 0.0) + value.double()
    return {name: value.item() for name, value in totals.items()}, counts


def counted(
    batches: Iterable[dict[str, Tensor]], counts: np.ndarray, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """The batches, on the device, with their labels added to `counts` by token."""
    for batch in batches:
        labels = batch["labels"]
        counts += np.bincount(labels[labels != -100].numpy(), minlength=len(counts))
        yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _stock_loss(
    model: PreTrainedModel,
    input_ids: Tensor,
    labels: Tensor,
    masked_positions: Tensor | None = None,
    document_ids: Tensor | None = None,
    **inputs: Any,
) -> Tensor:
    """The loss summed over a batch, as a training model computes it, of a stock model."""
    if masked_positions is None:
        masked_positions = positions_of(labels)
    if document_ids is not None:
        if not isinstance(model.base_model, (BertModel, ElectraModel)):
            raise EffptError(
                f"`{type(model).__name__}` cannot keep the documents of a row apart by `document_ids`, as BERT and "
                "ELECTRA can; evaluate it on rows packed without `isolate_documents`."
            )
        inputs["attention_mask"], inputs["position_ids"] = isolate_documents(
            document_ids, model.config._attn_implementation, model.dtype
        )
    logits_BMV = masked_logits(model, masked_positions, input_ids=input_ids, **inputs)
    return masked_loss(logits_BMV.flatten(0, 1), labels.gather(1, masked_positions).flatten(), 1)


def fixed_mask_batches(
    rows: Dataset, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Held-out rows in order with the masks of every evaluation, 15 % whatever the rate in training.

    They are the batches that `EffptTrainer.evaluate` sees, so an exported model is measured as in its run.

    Args:
        rows (`Dataset`): packed rows, as [`pack`] makes them.
        tokenizer (`PreTrainedTokenizerFast`): the one they were packed with.
        batch_size (`int`): rows of a batch.

    Raises:
        EffptError: the rows are not packed, the tokenizer lacks a special token, or `batch_size` is below 1.
    """
    if batch_size < 1:
        raise EffptError(f"batch_size={batch_size} must be at least 1.")
    packed, collate = PackedRows(rows), DataCollatorForMaskedLM(tokenizer)
    batches = np.split(np.arange(len(packed)), range(batch_size, len(packed), batch_size))
    return (
        collate({**packed.rows(numbers), "example_id": numbers, "epoch": np.zeros_like(numbers)})
        for numbers in batches
    )


def unigram_floor(
    train: PackedRows, label_counts: np.ndarray, special_ids: Sequence[int], sample: int = 8192
) -> float:
    """The loss, in nats a token, of predicting held-out masked tokens from token frequencies alone.

    Args:
        train: packed training rows; frequencies are those of up to `sample` of them, spread evenly, plus one each.
        label_counts (`np.ndarray` of shape `(vocab_size,)`): how often each token is to be predicted.
        special_ids (`Sequence[int]`): tokens that are never to be predicted, and so get no share of the probability.
    """
    rows = np.linspace(0, len(train) - 1, min(sample, len(train))).astype(np.int64)
    seen = 1.0 + np.bincount(train.rows(rows)["input_ids"].ravel(), minlength=len(label_counts))
    seen[list(special_ids)] = 0.0
    predicted = label_counts > 0
    return float(label_counts[predicted] @ -np.log(seen[predicted] / seen.sum()) / label_counts.sum())
