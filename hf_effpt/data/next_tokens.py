"""Batches for causal language modelling: each token predicts the next one of its document."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from hf_effpt.data.masking import PER_TOKEN, DataCollatorForMaskedLM


class DataCollatorForNextTokens:
    """Leaves tokens as they are, and labels each with the next one of its document.

    What masking would never ask for is no label either: special tokens and padding. So the first token after a
    separator has none before it that predicts it.

    Args:
        masking ([`DataCollatorForMaskedLM`]): reads the examples, and knows their special tokens and padding.
    """

    def __init__(self, masking: DataCollatorForMaskedLM) -> None:
        self.masking = masking

    def __call__(self, examples: Mapping[str, np.ndarray] | Sequence[Mapping]) -> dict[str, torch.Tensor]:
        """Builds a batch from what [`DataCollatorForMaskedLM`] takes.

        Returns:
            int64 tensors: `input_ids` and `labels`, the next tokens, -100 where there is none, of shape `(batch_size,
            sequence_length)`; the other columns of one number per token as they come from masking; and `causal` of
            shape `(batch_size,)`, ones, for which a model attends to no later token.
        """
        batch = self.masking.read(examples)
        ids, real, maskable = batch["input_ids"], batch.pop("real"), batch.pop("maskable")
        follows = maskable[:, 1:] & real[:, :-1] & (ids[:, :-1] != self.masking.separator)
        if "document_ids" in batch:
            follows &= batch["document_ids"][:, 1:] == batch["document_ids"][:, :-1]
        labels = np.full_like(ids, -100)
        labels[:, :-1] = np.where(follows, ids[:, 1:], -100)
        found = {name: batch[name].astype(np.int64) for name in ("input_ids", *PER_TOKEN) if name in batch}
        found |= {"labels": labels, "causal": np.ones(len(ids), np.int64)}
        return {name: torch.from_numpy(values) for name, values in found.items()}
