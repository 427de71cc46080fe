"""Accuracy on minimal pairs (BLiMP; Warstadt et al., 2020): share of pairs whose grammatical sentence scores higher.

S sentences of one length L, N their masked copies, B copies in a batch, V vocabulary.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets, get_dataset_config_names, load_dataset
from torch import Tensor
from transformers import ElectraForPreTraining, PreTrainedModel, PreTrainedTokenizerFast

from hf_effpt.core.errors import EffptError, first_line
from hf_effpt.data.vocabulary import text_backend

from .masked_logits import evaluation_mode, masked_logits, predicts_masked_tokens
from .stock_checkpoint import readable_length
from .table_files import read_table

logger = logging.getLogger(__name__)

HUB = "nyu-mll/blimp"
COLUMNS = ("sentence_good", "sentence_bad", "UID", "field")
TEXTS = 4096  # sentences tokenized at a time: an encoding takes some kilobytes

# Scores sentences of one length by their ids and the word of each token (-1: added by the tokenizer).
Scorer = Callable[[Tensor, Tensor], Tensor]


class DivergedError(EffptError):
    """The scores of a model are not finite."""


def blimp(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Dataset,
    *,
    batch_size: int = 256,
    pairs_per_paradigm: int | None = None,
) -> dict[str, Any]:
    """Measures the accuracy on minimal pairs; equal scores count one half.

    `model` is a masked language model or an ELECTRA discriminator (see [`sentence_scores`]), `tokenizer` its own;
    `pairs` have the columns `sentence_good`, `sentence_bad`, `UID` (the paradigm) and `field`. `batch_size` is that of
    masked copies, or of a discriminator's sentences. Of each paradigm the first `pairs_per_paradigm` are used.

    Returns:
        `metric` (`pll_word_l2r` or `discriminator`); `macro`, the mean accuracy over paradigms; its `standard_error`
        from the choice of pairs; `by_field`, the mean over the paradigms of each; `by_paradigm` with `accuracy`,
        `pairs`, `ties` and `field`; the number of `pairs`, of `ties`, and of pairs `truncated` to the model's length.

    Raises an `EffptError` if pairs, tokenizer and model do not fit each other, a `DivergedError` if a score is not
    finite.
    """
    metric = check_blimp(model, tokenizer, pairs, pairs_per_paradigm)
    kept = _first_of_each(pairs["UID"][:], pairs_per_paradigm)
    good, bad, uids, fields = (np.array(pairs[name][:], dtype=object)[kept] for name in COLUMNS)
    scores, cut = sentence_scores(model, tokenizer, [*good, *bad], batch_size=batch_size)
    if not np.isfinite(scores).all():
        raise DivergedError(
            f"{(~np.isfinite(scores)).sum()} of {len(scores)} sentences get a score that is not finite: the model has "
            "diverged; use an earlier checkpoint."
        )
    scores, cut = scores.reshape(2, -1), cut.reshape(2, -1)
    ties = scores[0] == scores[1]
    credit = np.where(ties, 0.5, scores[0] > scores[1])

    by_paradigm, variance = {}, 0.0
    for uid in sorted(set(uids)):
        here = uids == uid
        count, tied = int(here.sum()), int(ties[here].sum())
        accuracy = float(credit[here].mean())
        by_paradigm[uid] = {"accuracy": accuracy, "pairs": count, "ties": tied, "field": fields[here][0]}
        # The variance of a single pair is unknown; 1/4 is the most it can be.
        variance += (credit[here].var(ddof=1) if count > 1 else 0.25) / count
    accuracies = {uid: result["accuracy"] for uid, result in by_paradigm.items()}
    return {
        "metric": metric,
        "macro": float(np.mean(list(accuracies.values()))),
        "standard_error": float(np.sqrt(variance) / len(by_paradigm)),
        "by_field": {
            name: float(np.mean([accuracies[uid] for uid, of in by_paradigm.items() if of["field"] == name]))
            for name in sorted(set(fields))
        },
        "by_paradigm": by_paradigm,
        "pairs": len(credit),
        "ties": int(ties.sum()),
        "truncated": int(cut.any(axis=0).sum()),
    }


def load_pairs(data: str | Path | None) -> Dataset:
    """Loads the pairs of all paradigms.

    `data` is a folder with `blimp/` (or that folder) of Parquet files, or of the JSON lines that BLiMP is published
    as; or `"hub"` to download them. Raises an `EffptError` if there are no pairs, or they cannot be read.
    """
    if str(data) == "hub":
        logger.warning("downloading %s from the Hub", HUB)
        try:
            parts = [load_dataset(HUB, name, split="train") for name in get_dataset_config_names(HUB)]
        except (OSError, ValueError, RuntimeError) as error:
            raise EffptError(f"{HUB} cannot be downloaded ({first_line(error)}); give a folder.") from error
        return concatenate_datasets([part.select_columns(list(COLUMNS)) for part in parts])
    folders = [] if data is None else [Path(data) / "blimp", Path(data)]
    for folder in folders:
        for ending in (".parquet", ".jsonl"):
            if files := sorted(folder.glob(f"*{ending}")):
                return Dataset(pa.concat_tables([_pairs_in(path) for path in files]))
    raise EffptError(
        f"BLiMP needs data: {'no folder is given' if data is None else f'{data} has no blimp/*.parquet or *.jsonl'}. "
        f"Give its folder as `data` (on the command line `--data`; it is `data` in github.com/alexwarstadt/blimp), or "
        f"`hub` to download {HUB}."
    )


def _pairs_in(path: Path) -> pa.Table:
    """The columns needed, as strings; published paradigms have further ones."""
    table = read_table(path)
    _check_columns(table.column_names, f"{path.absolute()}: ")
    try:
        return table.select(COLUMNS).cast(pa.schema([(name, pa.string()) for name in COLUMNS]))
    except pa.ArrowException as error:
        raise EffptError(f"{path.absolute()}: the columns {', '.join(COLUMNS)} must be texts: {error}") from error


def check_blimp(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: Dataset, pairs_per_paradigm: int | None
) -> str:
    """Checks arguments of [`blimp`] and returns the name of the metric they give."""
    _check_columns(pairs.column_names)
    if len(pairs) == 0:
        raise EffptError("There are no pairs to score; pass a dataset with at least one.")
    if pairs_per_paradigm is not None and pairs_per_paradigm < 1:
        raise EffptError(f"pairs_per_paradigm={pairs_per_paradigm} must be at least 1, or None for all pairs.")
    for name in COLUMNS:
        if odd := [value for value in pairs[name][:] if not isinstance(value, str)]:
            raise EffptError(f"The column `{name}` holds {odd[0]!r}, which is no text; drop such pairs.")
    return _metric_of(model, tokenizer)[0]


def sentence_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str], *, batch_size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Scores sentences so that the two of a minimal pair can be compared.

    A masked language model's score is the pseudo-log-likelihood in nats: the sum over tokens of their log-probability
    with the token and those to its right in the same word masked (PLL-word-l2r; Kauf & Ivanova, 2023, arXiv
    2305.10588), since otherwise the pieces of a rare word give one another away. An ELECTRA discriminator's is the sum
    over tokens of the log-probability that they are original. Tokens that the tokenizer adds are left out. Sentences
    of the same tokens are scored once, so their scores are bit-equal.

    Returns:
        Float64 scores, and `True` for sentences cut to the model's length; both of shape `(len(sentences),)`.
    """
    _, score = _metric_of(model, tokenizer, batch_size)
    numbers, cut, distinct = _tokenized(sentences, tokenizer, readable_length(model, tokenizer))
    scores = np.zeros(len(distinct))
    lengths = np.array([len(ids) for ids, _ in distinct])
    with evaluation_mode(model):
        for length in np.unique(lengths[lengths > 0]):
            here = np.flatnonzero(lengths == length)
            ids_SL, words_SL = (np.stack([distinct[at][part] for at in here]) for part in (0, 1))
            scores[here] = score(torch.from_numpy(ids_SL), torch.from_numpy(words_SL)).numpy()
    return scores[numbers], cut


def _pseudo_log_likelihood(
    model: PreTrainedModel, mask_id: int, batch_size: int, ids_SL: Tensor, words_SL: Tensor
) -> Tensor:
    """Pseudo-log-likelihood of each sentence; all masked copies have one length, so there is no padding."""
    rows_N, columns_N = (words_SL >= 0).nonzero(as_tuple=True)
    ids, words, rows, columns = (part.to(model.device) for part in (ids_SL, words_SL, rows_N, columns_N))
    position_L = torch.arange(ids.shape[1], device=model.device)
    parts = []
    for rows_B, columns_B in zip(rows.split(batch_size), columns.split(batch_size), strict=True):
        ids_BL, words_BL, at_B1 = ids[rows_B], words[rows_B], columns_B[:, None]
        hidden_BL = (words_BL == words_BL.gather(1, at_B1)) & (position_L >= at_B1)
        logits_BV = masked_logits(model, at_B1, input_ids=ids_BL.masked_fill(hidden_BL, mask_id))[:, 0].float()
        parts.append(logits_BV.gather(1, ids_BL.gather(1, at_B1))[:, 0] - logits_BV.logsumexp(dim=1))
    log_probability_N = torch.cat(parts).double().cpu()  # the only wait for the device
    return torch.zeros(len(ids_SL), dtype=torch.float64).index_add_(0, rows_N, log_probability_N)


def _original_log_likelihood(model: PreTrainedModel, batch_size: int, ids_SL: Tensor, words_SL: Tensor) -> Tensor:
    """Sum over the tokens of each sentence of log(1 - sigmoid(logit)), the log-probability that it is original."""
    scores_SL = torch.cat([model(input_ids=ids.to(model.device)).logits for ids in ids_SL.split(batch_size)])
    log_probability_SL = torch.nn.functional.logsigmoid(-scores_SL.float()).double().cpu()
    return (log_probability_SL * (words_SL >= 0)).sum(dim=1)


def _check_columns(present: Sequence[str], where: str = "") -> None:
    if missing := [name for name in COLUMNS if name not in present]:
        raise EffptError(
            f"{where}The pairs have the columns {', '.join(present)} but not {', '.join(missing)}; BLiMP has "
            f"{', '.join(COLUMNS)}. Rename yours with `pairs.rename_column(…)`."
        )


def _metric_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_size: int = 1) -> tuple[str, Scorer]:
    """Checks model and tokenizer; returns the name of the model's metric and the function that scores by it."""
    discriminates = isinstance(model, ElectraForPreTraining)
    if not discriminates and not predicts_masked_tokens(model):
        raise EffptError(
            f"`{type(model).__name__}` neither predicts masked tokens nor tells replaced ones; load the weights with "
            "`AutoModelForMaskedLM.from_pretrained(…)`, or an ELECTRA discriminator with `ElectraForPreTraining`."
        )
    text_backend(tokenizer)
    if len(tokenizer) > model.config.vocab_size:
        raise EffptError(
            f"The tokenizer has {len(tokenizer)} tokens but the model only {model.config.vocab_size}; use the model's "
            "own tokenizer."
        )
    if batch_size < 1:
        raise EffptError(f"batch_size={batch_size} must be at least 1.")
    if discriminates:
        return "discriminator", partial(_original_log_likelihood, model, batch_size)
    if tokenizer.mask_token_id is None:
        raise EffptError(
            f"The tokenizer {tokenizer.name_or_path!r} has no mask token, which a masked language model is measured "
            "with; use the model's own tokenizer."
        )
    return "pll_word_l2r", partial(_pseudo_log_likelihood, model, tokenizer.mask_token_id, batch_size)


def _first_of_each(uids: Sequence[str], count: int | None) -> np.ndarray:
    """Indices of the first `count` pairs of every paradigm, sorted."""
    uids = np.asarray(uids)
    return np.sort(np.concatenate([np.flatnonzero(uids == uid)[:count] for uid in np.unique(uids)]))


def _tokenized(
    sentences: Sequence[str], tokenizer: PreTrainedTokenizerFast, limit: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Tokenizes sentences; equal token sequences are kept once.

    Returns for each sentence the number of its token sequence, and `True` if it was cut; and the distinct sequences,
    each as ids and the words they belong to, -1 for a token that the tokenizer added.
    """
    backend = text_backend(tokenizer)
    backend.enable_truncation(limit)
    numbers, cut = np.empty(len(sentences), dtype=np.int64), np.zeros(len(sentences), dtype=bool)
    known: dict[tuple[int, ...], int] = {}
    distinct = []
    for first in range(0, len(sentences), TEXTS):
        for index, encoding in enumerate(backend.encode_batch(list(sentences[first : first + TEXTS])), first):
            numbers[index] = known.setdefault(tuple(encoding.ids), len(distinct))
            cut[index] = bool(encoding.overflowing)
            if numbers[index] == len(distinct):
                words = [-1 if word is None else word for word in encoding.word_ids]
                distinct.append((np.array(encoding.ids), np.array(words)))
    return numbers, cut, distinct
