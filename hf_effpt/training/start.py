"""Values that the parameters of a new model begin with, other than those of its stock class."""

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_effpt.core.anatomy import word_table_of
from hf_effpt.core.errors import EffptError
from hf_effpt.data.cooccurrence import TOKENS, cooccurrences, positive_information, word_vectors
from hf_effpt.data.packed_rows import PackedRows
from hf_effpt.data.token_frequencies import token_frequencies
from hf_effpt.models.build import word_predictors

from .checks import check_vocabulary

logger = logging.getLogger(__name__)
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


@dataclass(frozen=True)
class StartCost:
    """Cost of the values that a new model begins with, which the first run of the model is charged for.

    Args:
        seconds (`float`): time that they took.
        flops (`float`): FLOPs of the singular value decomposition.
        tokens (`int`): tokens of the training text that were read; no run learned from them.
        dimension (`int`): that of the word vectors.
    """

    seconds: float
    flops: float
    tokens: int
    dimension: int


@torch.no_grad()
def set_cooccurrence_embeddings(
    model: Any, rows: Dataset, tokenizer: Any, *, seed: int = 0, tokens: int = TOKENS
) -> StartCost:
    """Sets the word embeddings of a new model to vectors made from the co-occurrence of tokens in `rows`, in place.

    Tokens that have the same neighbours begin near each other. The vectors are a truncated singular value
    decomposition of the positive pointwise mutual information of tokens up to 4 positions apart, near ones weighted by
    1 / distance (Levy and Goldberg, 2014; Levy et al., 2015). They have mean 0 and the spread of the rows that they
    replace; special tokens, and those that do not occur, keep theirs. A tied decoder and the table of a generator
    follow. An [`EffptTrainer`] charges its clock for the seconds and FLOPs of it.

    On one core it takes about 6 s for a vocabulary of 8,192 and 128 dimensions, and some minutes for 50,000 and 768,
    where memory peaks at about 1.1 GB.

    Args:
        model ([`EffptBertForMaskedLM`] or another training model): a new model.
        rows (`Dataset`): packed training rows, as [`pack`] makes them.
        tokenizer (`PreTrainedTokenizerBase`): the one they were packed with.
        seed (`int`, *optional*, defaults to 0): seed of the randomized decomposition.
        tokens (`int`, *optional*, defaults to 8,000,000): how many are read, in rows that are evenly spaced.

    Returns:
        [`StartCost`]: what it cost, which is the model's `start_cost`, too.

    Raises:
        EffptError: for rows that are not packed, or have tokens that the model lacks; for a model with weights of a
            checkpoint; or if too few tokens occur for vectors of that size.
    """
    if model.continued:
        raise EffptError(
            f"`{type(model).__name__}` has the weights of a checkpoint, whose word embeddings would be lost; only a "
            "new model begins with those of co-occurrence."
        )
    check_vocabulary(tokenizer, model.config)
    began = time.perf_counter()
    tables = _word_tables(model)
    size = tables[0].shape[1]
    counts, read = cooccurrences(PackedRows(rows), model.config.vocab_size, tokenizer.all_special_ids, tokens)
    known, vectors, flops = word_vectors(positive_information(counts), size, seed)
    found = [torch.from_numpy(vectors)]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found)  # processes may round differently
    for table in tables:
        spread = table[known].std()
        table[known] = found[0].to(table) * spread
    model.start_cost = StartCost(time.perf_counter() - began, flops, read, size)
    logger.info(
        "start: word vectors of %d dimensions for %s tokens, from the co-occurrence in %s tokens of text, in %.1f s",
        size, f"{len(known):,}", f"{read:,}", model.start_cost.seconds,
    )  # fmt: skip
    return model.start_cost


def _word_tables(model: Any) -> list[torch.Tensor]:
    """Tables of word embeddings of a model and its generator, tied ones once.

    A disentangled table, which begins at zero, is added to the generator's, and is none of them.
    """
    parts = word_predictors(model)
    if getattr(model.config, "disentangled", False):
        parts = parts[1:]
    return list({id(table): table for table in (word_table_of(part.base_model).weight for part in parts)}.values())
