"""Choosing the documents of a corpus to train on, and what a stock model makes of each: an embedding, a masked loss.

N documents, B rows of a batch, L row length, M masked positions of a row, V vocabulary, D hidden size.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets.utils import tqdm
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from hf_effpt.core.errors import EffptError
from hf_effpt.core.objectives import OBJECTIVES, objective_in
from hf_effpt.data.cache import build_once, cache_folder
from hf_effpt.data.corpus import Corpus
from hf_effpt.data.document_selection import (
    Kept,
    SelectSettings,
    alike_by_chance,
    in_band,
    require_datasketch,
    without_exact,
    without_near,
    without_semantic,
)
from hf_effpt.data.encoding import TextEncoder
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.data.packing import held_out
from hf_effpt.data.vocabulary import special_ids

from .masked_logits import evaluation_mode, masked_logits
from .results_file import weights_of
from .stock_checkpoint import config_of, discriminates, load_pretrained, readable_length
from .table_files import first_line

logger = logging.getLogger(__name__)

# Raise when other documents are chosen by the same settings.
FORMAT = 1
# A document is judged by its first rows, so many of at most so many tokens.
ROWS, LENGTH = 4, 128
# No text has so few tokens that this many characters do not fill a row a token; the rest need not be tokenised.
CHARACTERS = 16
# From which share of pairs on documents are doubles more often than they could be: of all, and of those left.
MOST, OFTEN = 0.5, 0.01
GROUP, BATCH = 512, 64  # documents tokenised together, rows read together


def select_documents(
    corpus: Corpus, settings: SelectSettings, share: float | None, *, cache_dir: str | os.PathLike | None = None
) -> Kept:
    """Chooses which documents to train on, once for equal text, settings and weights of the model that judges.

    Only documents that are not held out are looked at, so that what is held out is the same with and without. The
    facts are how many there were, `documents`, and are `kept`; the `seconds` it took when it was made; the settings;
    a hash of the model's `weights`; and of semantic doubles the share of all pairs of documents that are doubles,
    `alike`, and of those that are left, `left_alike`, where they can only be of different clusters. They are warned of
    above 0.5, or above 0.01 of those left.

    Args:
        corpus ([`Corpus`]): the text; it is read several times.
        settings ([`SelectSettings`]): what documents have to be like.
        share (`float`, *optional*): of the documents that are held out, as `validation` of [`pack`].
        cache_dir (`str`, *optional*): where the choice is kept, by default as of [`pack`].

    Raises:
        EffptError: the model is missing or cannot judge, datasketch is needed and not installed, or nothing is left.
    """
    if settings.deduplicate == "near":
        require_datasketch()
    weights = check_model(settings)
    rules = {key: value for key, value in settings.settings().items() if key != "model"}
    key = hashlib.sha256(json.dumps([FORMAT, corpus.fingerprint, rules, weights, share]).encode()).hexdigest()[:32]
    folder = build_once(
        cache_folder(cache_dir) / "selected" / key, lambda target: _select(corpus, settings, share, target)
    )
    known = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    if known.get("alike", 0.0) > MOST or known.get("left_alike", 0.0) > OFTEN:
        logger.warning(
            "`data.select` takes about %.0f %% of all pairs of documents for doubles at `similarity` %s, and %.0f %% "
            "of those that it leaves. Unless the text is the same over and over, the model in %s hardly tells "
            "documents apart, and most that went were no doubles: name one that is trained longer, or raise "
            "`similarity`.",
            100 * known["alike"], settings.similarity, 100 * known["left_alike"], settings.model,
        )  # fmt: skip
    known |= settings.settings() | ({} if weights is None else {"weights": weights})
    return Kept(np.load(folder / "kept.npy"), known)


def check_model(settings: SelectSettings) -> str | None:
    """A hash of the weights of the model that judges, or `None` where none does.

    Raises:
        EffptError: it is not there, or is no model that can judge so.
    """
    if settings.model is None:
        return None
    folder = Path(settings.model)
    try:
        config = config_of(folder)
    except EffptError as error:
        raise EffptError(f"`data.select.model` is {settings.model!r}: {error}") from error
    if settings.keep is not None:
        record = folder / "run.json"
        objective = objective_in(json.loads(record.read_text(encoding="utf-8"))) if record.is_file() else "mlm"
        if type(config) not in AutoModelForMaskedLM._model_mapping or discriminates(config):
            what = f"holds a {(config.architectures or [config.model_type])[0]}"
        elif not OBJECTIVES[objective].reads_mask:
            what = f"was pre-trained by `{objective}` and has never read the mask token"
        else:
            return weights_of(folder)
        raise EffptError(
            f"`data.select.model` is {settings.model!r}, which {what}, but `keep` goes by the loss of a masked "
            "language model; name the folder of one, such as a small run of the objective mlm, or the `generator/` of "
            "a run of electra."
        )
    return weights_of(folder)


def _select(corpus: Corpus, settings: SelectSettings, share: float | None, target: Path) -> None:
    """Writes into `target` which documents are kept, and how many."""
    began, alike = time.perf_counter(), {}
    model, tokenizer = (None, None) if settings.model is None else _load(settings)
    chosen_N = ~held_out(np.arange(sum(1 for _ in corpus.texts())), share)
    documents = int(chosen_N.sum())
    if not documents:
        raise EffptError(
            f"All documents of {corpus.name!r} are held out, so that `data.select` has none to choose from; add text, "
            "or lower data.validation."
        )

    def texts(what: str) -> Iterator[str]:
        left = compress(corpus.texts(), chosen_N)
        return iter(tqdm(left, total=int(chosen_N.sum()), desc=what, unit=" documents", disable=None))

    if settings.deduplicate == "exact":
        chosen_N[chosen_N] = without_exact(texts("Comparing"))
    elif settings.deduplicate == "near":
        chosen_N[chosen_N] = without_near(texts("Comparing"), settings.similarity)
    elif settings.deduplicate == "semantic":
        embeddings_ND = document_embeddings(model.base_model, tokenizer, texts("Embedding"))
        chosen_N[chosen_N] = stays = without_semantic(embeddings_ND, settings.similarity)
        alike = {
            name: alike_by_chance(of_ND, settings.similarity)
            for name, of_ND in (("alike", embeddings_ND), ("left_alike", embeddings_ND[stays]))
        }
    if settings.keep is not None:
        losses_N = document_losses(model, tokenizer, texts("Judging"))
        chosen_N[chosen_N] = in_band(losses_N, settings.keep, settings.band)
    kept = int(chosen_N.sum())
    if not kept:
        raise EffptError(
            f"`data.select` {settings.settings()} leaves nothing of the {documents} documents of {corpus.name!r} to "
            "train on; add text, raise `keep`, or name a `model` whose losses are numbers."
        )
    np.save(target / "kept.npy", chosen_N)
    known = {"documents": documents, "kept": kept, "seconds": time.perf_counter() - began, **alike}
    (target / "facts.json").write_text(json.dumps(known), encoding="utf-8")


def _load(settings: SelectSettings) -> tuple[Any, PreTrainedTokenizerFast]:
    """The model that judges and its tokenizer: with its head if losses are asked for."""
    folder = Path(str(settings.model))
    with torch.random.fork_rng(devices=[]):  # in which weights that a checkpoint lacks are drawn
        if settings.keep is not None:
            return load_pretrained(folder)
        try:
            model, report = AutoModel.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise EffptError(
                f"`data.select.model` {folder} cannot be loaded ({first_line(error)}); name a stock checkpoint."
            ) from error
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing:
        raise EffptError(
            f"`data.select.model` {folder} lacks weights of its encoder ({', '.join(missing[:3])}); name a whole "
            "stock checkpoint."
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def document_losses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> np.ndarray:
    """The mean loss of each document, over the tokens masked in its first four rows of at most 128 tokens.

    What is masked depends on the tokens of a row and on nothing else, so that equal documents have equal masks.

    Args:
        model ([`PreTrainedModel`]): a stock class with a masked-language-modelling head.
        tokenizer (`PreTrainedTokenizerFast`): what it was trained with.
        texts (`Iterable[str]`): the documents.

    Returns:
        float64 of shape `(documents,)`, in nats a token; NaN where nothing can be masked.
    """
    collate, sums, counts = DataCollatorForMaskedLM(tokenizer), [], []
    with evaluation_mode(model):
        for size, batches in _groups(model, tokenizer, texts):
            sum_N, count_N = np.zeros(size), np.zeros(size)
            for places, rows in batches:
                inputs = collate([{"input_ids": row} for row in rows])
                inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
                positions_BM = inputs.pop("masked_positions")
                labels_BM = inputs.pop("labels").gather(1, positions_BM)
                losses_BM = _token_losses(masked_logits(model, positions_BM, **inputs), labels_BM)
                np.add.at(sum_N, places, losses_BM.double().sum(dim=1).cpu().numpy())
                np.add.at(count_N, places, (labels_BM != -100).sum(dim=1).cpu().numpy())
            sums.append(sum_N)
            counts.append(count_N)
    sum_N, count_N = np.concatenate(sums), np.concatenate(counts)
    return np.divide(sum_N, count_N, out=np.full(len(sum_N), np.nan), where=count_N > 0)


def _token_losses(logits_BMV: Tensor, labels_BM: Tensor) -> Tensor:
    losses = cross_entropy(logits_BMV.flatten(0, 1).float(), labels_BM.flatten(), ignore_index=-100, reduction="none")
    return losses.view_as(labels_BM)


def document_embeddings(
    encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]
) -> np.ndarray:
    """The mean of an encoder's outputs over the tokens of each document's first four rows of at most 128 tokens.

    Args:
        encoder ([`PreTrainedModel`]): a stock encoder.
        tokenizer (`PreTrainedTokenizerFast`): what it was trained with.
        texts (`Iterable[str]`): the documents.

    Returns:
        float32 of shape `(documents, hidden_size)`; zeros for documents without tokens.

    Raises:
        EffptError: the outputs are no numbers, as of a model that has diverged.
    """
    pad, parts = special_ids(tokenizer).pad, []
    with evaluation_mode(encoder):
        for size, batches in _groups(encoder, tokenizer, texts):
            sum_ND, count_N = np.zeros((size, encoder.config.hidden_size), np.float32), np.zeros(size, np.float32)
            for places, rows in batches:
                ids_BL = pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True, padding_value=pad)
                lengths_B = torch.tensor([len(row) for row in rows])
                real_BL = (torch.arange(ids_BL.shape[1]) < lengths_B[:, None]).to(encoder.device)
                inputs = {"input_ids": ids_BL.to(encoder.device), "attention_mask": real_BL.long()}
                hidden_BLD = encoder(**inputs, return_dict=True).last_hidden_state.float()
                np.add.at(sum_ND, places, (hidden_BLD * real_BL[:, :, None]).sum(dim=1).cpu().numpy())
                np.add.at(count_N, places, lengths_B.numpy())
            parts.append(sum_ND / np.maximum(count_N, 1)[:, None])
    embeddings_ND = np.concatenate(parts)
    if not np.isfinite(embeddings_ND).all():
        raise EffptError("The embeddings by `data.select.model` are no numbers: it has diverged; name another model.")
    return embeddings_ND


def _groups(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]
) -> Iterator[tuple[int, Iterator[tuple[list[int], list[np.ndarray]]]]]:
    """Documents in groups: how many, and batches of their rows, of about equal length, with the document's places."""
    length = min(LENGTH, readable_length(model, tokenizer))
    ids, encoder, texts = special_ids(tokenizer), TextEncoder(tokenizer, np.dtype(np.int64)), iter(texts)
    while group := [text[: ROWS * length * CHARACTERS] for text in islice(texts, GROUP)]:
        rows = [
            (place, np.concatenate([[ids.cls], tokens[first : first + length - 2], [ids.sep]]))
            for place, tokens in enumerate(encoder.encode(group))
            for first in range(0, min(len(tokens), ROWS * (length - 2)), length - 2)
        ]
        rows.sort(key=lambda row: len(row[1]))
        parts = (rows[first : first + BATCH] for first in range(0, len(rows), BATCH))
        yield len(group), (([place for place, _ in part], [row for _, row in part]) for part in parts)
