"""Values that the parameters of a new model begin with, other than those of its stock class."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_effpt.core.errors import EffptError
from hf_effpt.data.packed_rows import PackedRows
from hf_effpt.data.token_frequencies import token_frequencies
from hf_effpt.models.build import word_predictors

NEVER = 1e-3  # share of a special token, relative to that of the rarest other one


@torch.no_grad()
def set_unigram_bias(model: Any, rows: Dataset, tokenizer: Any) -> None:
    """Sets the bias of every head over the vocabulary to the log frequencies of the tokens in `rows`, in place.

    A new model then begins near the loss of token frequencies alone, which hundreds of steps go into otherwise.
    Special tokens, which are never predicted, get a bias far below that of the rarest. Heads are those of the model
    and of its generator.

    Args:
        model ([`EffptBertForMaskedLM`] or another model that learns from masked text): the model to set.
        rows (`Dataset`): packed training rows, as [`pack`] makes them.
        tokenizer (`PreTrainedTokenizerBase`): the one they were packed with.

    Raises:
        EffptError: for rows that are not packed, or a model whose heads have no bias for each token.
    """
    shares = token_frequencies(PackedRows(rows), model.config.vocab_size, tokenizer.all_special_ids)
    logs = np.log(np.maximum(shares, NEVER * shares[shares > 0].min()))
    biases = [bias for bias in map(_bias_of, word_predictors(model)) if bias is not None]
    if not biases:
        raise EffptError(
            f"`{type(model).__name__}` has no head with a bias for each token of the vocabulary; leave "
            "`model.start` out."
        )
    for bias in biases:
        bias.copy_(torch.from_numpy(logs))


def _bias_of(part: Any) -> Any:
    """Bias of a model's head over the vocabulary, or `None`."""
    bias = getattr(part.get_output_embeddings(), "bias", None)
    return bias if bias is not None and len(bias) == part.config.vocab_size else None
