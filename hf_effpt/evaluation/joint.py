"""Held-out losses of models that learn from what a generator replaces."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from .loss import counted
from .masked_logits import evaluation_mode


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
