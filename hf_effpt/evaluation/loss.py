"""Held-out masked-language-modelling loss, summed exactly, and the unigram floor it has to get below."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_effpt.data.packing import PackedRows


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


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, batches: Iterable[dict[str, Tensor]]) -> HeldOut:
    """Sums the loss over masked tokens in evaluation mode; every token weighs the same, whatever batch it is in.

    Args:
        model: a model of this package with a masked-language-modelling head.
        batches: of `input_ids`, `labels` (-100 at positions not masked) and what else the model takes.
    """
    training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=model.device)  # read once, at the end
    counts = np.zeros(model.config.vocab_size, dtype=np.int64)
    for batch in batches:
        labels = batch["labels"]
        counts += np.bincount(labels[labels != -100].numpy(), minlength=len(counts))
        inputs = {name: tensor.to(model.device, non_blocking=True) for name, tensor in batch.items()}
        total += model(**inputs, num_items_in_batch=1).loss
    model.train(training)
    return HeldOut(total.item(), counts)


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
