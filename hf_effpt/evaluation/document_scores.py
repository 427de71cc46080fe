"""Choice of the documents of a corpus to train on, by embeddings or masked losses of a stock model.

N documents, B rows of a batch, L row length, M masked positions of a row, V vocabulary, D hidden size.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets.utils import tqdm
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, write_json
from hf_effpt.core.objectives import objective_in
from hf_effpt.data import document_selection as rules
from hf_effpt.data.cache import build_once, cache_folder
from hf_effpt.data.corpus import Corpus
from hf_effpt.data.document_meter import document_sizes
from hf_effpt.data.document_selection import Kept, SelectSettings
from hf_effpt.data.encoding import TextEncoder
from hf_effpt.data.holding_out import held_out
from hf_effpt.data.long_documents import Part, beginnings, chosen_of
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.data.vocabulary import special_ids
from hf_effpt.models.masked_lm import token_loss

from .held_out_text import run_of, unread_mask
from .masked_logits import evaluation_mode, masked_logits
from .results_file import weights_of
from .stock_checkpoint import config_of, discriminates, load, load_pretrained, readable_length

logger = logging.getLogger(__name__)

FORMAT = 3  # to be raised when the same settings choose other documents
ROWS, LENGTH = 4, 128  # a document is scored by this many of its first rows, of at most this many tokens
CHARACTERS = 16  # more than a token has on average, so longer texts are cut before they are tokenised
MOST, OFTEN = 0.5, 0.01  # implausible shares of duplicates among pairs: of all documents, and of those left
GROUP, BATCH = 512, 64  # documents tokenised together, rows scored together


def select_documents(
    corpus: Corpus,
    settings: SelectSettings,
    validation: float | Corpus | None,
    *,
    cache_dir: str | os.PathLike | None = None,
) -> Kept:
    """Chooses the documents to train on; equal text, settings and weights of the model are scored once.

    Only documents that are not held out are considered, so held-out documents do not depend on the settings. Those
    that are duplicates of held-out ones are removed as others are. The facts hold the number of `documents` and of
    those `kept`, the `seconds` it took, the settings, and a hash of the model's `weights`. For semantic duplicates,
    the facts hold the share of all pairs of documents that are duplicates, `alike`, and of those left (in different
    clusters), `left_alike`; above 0.5 and 0.01 a warning is logged.

    `validation` and `cache_dir` are those of [`pack`], which may have to raise a share, to what [`share_held_out`]
    says. Raises an `EffptError` if the model is missing or unsuitable, datasketch is needed and not installed, or
    nothing is left.
    """
    weights = check_model(settings)
    asked = {key: value for key, value in settings.settings().items() if key != "model"}
    apart = validation.fingerprint if isinstance(validation, Corpus) else validation
    key = hashlib.sha256(json.dumps([FORMAT, corpus.fingerprint, asked, weights, apart]).encode()).hexdigest()[:32]

    def load(folder: Path) -> tuple[np.ndarray, dict[str, Any], np.ndarray | None]:
        aside = folder / "held_out.npy"  # older versions did not write it
        return (
            np.load(folder / "kept.npy"),
            read_json(folder / "facts.json"),
            np.load(aside) if aside.exists() else None,
        )

    target = cache_folder(cache_dir) / "selected" / key
    chosen_N, known, aside_N = load(build_once(target, lambda new: _select(corpus, settings, validation, new), load))
    if known.get("alike", 0.0) > MOST or known.get("left_alike", 0.0) > OFTEN:
        logger.warning(
            "`data.select` takes about %.0f %% of all pairs of documents for doubles at `similarity` %s, and %.0f %% "
            "of those left. Unless the text repeats itself, %s hardly tells documents apart: use a model trained "
            "longer, or raise `similarity`.",
            100 * known["alike"], settings.similarity, 100 * known["left_alike"], settings.model,
        )  # fmt: skip
    known |= settings.settings() | ({} if weights is None else {"weights": weights})
    return Kept(chosen_N, known, aside_N)


def check_model(settings: SelectSettings) -> str | None:
    """Checks the model that scores documents; returns a hash of its weights, or `None` if no model is needed.

    Raises an `EffptError` if the model is missing, or cannot give what the settings need, or if datasketch is.
    """
    if settings.deduplicate == "near":
        rules.require_datasketch()
    if settings.model is None:
        return None
    folder, fault = Path(settings.model), None
    try:
        config = config_of(folder)
    except EffptError as error:
        raise EffptError(f"`data.select.model` is {settings.model!r}: {error}") from error
    if settings.keep is not None:
        if type(config) not in AutoModelForMaskedLM._model_mapping or discriminates(config):
            fault = f"holds a {(config.architectures or [config.model_type])[0]}"
        elif unread_mask(folder):
            fault = f"was pre-trained by `{objective_in(run_of(folder))}` and has never read the mask token"
    if fault:
        raise EffptError(
            f"`data.select.model` is {settings.model!r}, which {fault}, but `keep` needs a masked language model; "
            "name the folder of one, such as a small mlm run's, or the `generator/` of an electra run."
        )
    return weights_of(folder)


def _select(corpus: Corpus, settings: SelectSettings, validation: float | Corpus | None, target: Path) -> None:
    """Writes the selection and its facts into the folder `target`."""
    began, alike = time.perf_counter(), {}
    model, tokenizer = (None, None) if settings.model is None else _load(settings)
    share = None if isinstance(validation, Corpus) else validation
    sizes_N = document_sizes(corpus.parts())
    aside_N = held_out(lambda: [sizes_N], share)
    chosen_N = ~aside_N
    documents = int(chosen_N.sum())

    def texts(what: str) -> Iterator[str]:
        bar = tqdm(total=int(chosen_N.sum()), desc=what, unit=" documents", disable=None)
        with bar:
            for part in chosen_of(corpus.parts(), chosen_N):
                yield part
                bar.update(not isinstance(part, Part))

    def kept_apart() -> Iterator[str]:
        return validation.parts() if isinstance(validation, Corpus) else chosen_of(corpus.parts(), aside_N)

    if settings.deduplicate == "exact":
        chosen_N[chosen_N] = rules.without_exact(texts("Comparing"), kept_apart())
    elif settings.deduplicate == "near":
        chosen_N[chosen_N] = rules.without_near(texts("Comparing"), settings.similarity, kept_apart())
    elif settings.deduplicate == "semantic":
        embeddings_ND = document_embeddings(model.base_model, tokenizer, texts("Embedding"))
        held_out_HD = document_embeddings(model.base_model, tokenizer, kept_apart())
        chosen_N[chosen_N] = stays = rules.without_semantic(embeddings_ND, settings.similarity, held_out_HD)
        alike = {
            name: rules.alike_by_chance(of_ND, settings.similarity)
            for name, of_ND in (("alike", embeddings_ND), ("left_alike", embeddings_ND[stays]))
        }
    if settings.keep is not None:
        losses_N = document_losses(model, tokenizer, texts("Judging"))
        chosen_N[chosen_N] = rules.in_band(losses_N, settings.keep, settings.band)
    kept = int(chosen_N.sum())
    if not kept:
        raise EffptError(
            f"`data.select` {settings.settings()} leaves nothing of the {documents} documents of {corpus.name!r} to "
            "train on; add text, raise `keep`, or name a `model` whose losses are numbers."
        )
    np.save(target / "kept.npy", chosen_N)
    np.save(target / "held_out.npy", aside_N)
    known = {"documents": documents, "kept": kept, "seconds": time.perf_counter() - began, **alike}
    write_json(target / "facts.json", known)
    corpus.check_unchanged()


def _load(settings: SelectSettings) -> tuple[Any, PreTrainedTokenizerFast]:
    """Loads the model that scores documents, with its head if losses are needed, and its tokenizer."""
    folder = Path(str(settings.model))
    with torch.random.fork_rng(devices=[]):  # weights that a checkpoint lacks are drawn from it
        if settings.keep is not None:
            return load_pretrained(folder)
        model, tokenizer, missing = load(AutoModel, folder)
    if missing := [name for name in missing if "pooler" not in name]:
        raise EffptError(
            f"`data.select.model` {folder} lacks weights of its encoder ({', '.join(missing[:3])}); name a complete "
            "stock checkpoint."
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def document_losses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> np.ndarray:
    """Mean masked loss of each document over its first four rows of at most 128 tokens.

    Masks depend on the tokens of a row only, so equal documents have equal masks. `model` is a stock masked language
    model. Returns nats per masked token, float64 of shape `(documents,)`; NaN where nothing can be masked.
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
                logits_NV = masked_logits(model, positions_BM, **inputs).flatten(0, 1)
                losses_BM = token_loss(logits_NV, labels_BM.flatten(), "none").view_as(labels_BM)
                np.add.at(sum_N, places, losses_BM.double().sum(dim=1).cpu().numpy())
                np.add.at(count_N, places, (labels_BM != -100).sum(dim=1).cpu().numpy())
            sums.append(sum_N)
            counts.append(count_N)
    sum_N, count_N = np.concatenate(sums), np.concatenate(counts)
    return np.divide(sum_N, count_N, out=np.full(len(sum_N), np.nan), where=count_N > 0)


def document_embeddings(
    encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]
) -> np.ndarray:
    """Mean of an encoder's outputs over the tokens of each document's first four rows of at most 128 tokens.

    Returns float32 of shape `(documents, hidden_size)`, zeros for documents without tokens; raises an `EffptError` if
    the outputs are not finite.
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
    embeddings_ND = np.concatenate([np.empty((0, encoder.config.hidden_size), np.float32), *parts])
    if not np.isfinite(embeddings_ND).all():
        raise EffptError("The embeddings by `data.select.model` are no numbers: it has diverged; name another model.")
    return embeddings_ND


def _groups(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]
) -> Iterator[tuple[int, Iterator[tuple[list[int], list[np.ndarray]]]]]:
    """Groups of documents: their number, and batches of rows of similar length, each with its document's place."""
    length = min(LENGTH, readable_length(model, tokenizer))
    ids, encoder = special_ids(tokenizer), TextEncoder(tokenizer, np.dtype(np.int64))
    begun = beginnings(texts, ROWS * length * CHARACTERS)
    while group := [*islice(begun, GROUP)]:
        rows = [
            (place, np.concatenate([[ids.cls], tokens[first : first + length - 2], [ids.sep]]))
            for place, tokens in enumerate(encoder.encode(group))
            for first in range(0, min(len(tokens), ROWS * (length - 2)), length - 2)
        ]
        rows.sort(key=lambda row: len(row[1]))
        parts = (rows[first : first + BATCH] for first in range(0, len(rows), BATCH))
        yield len(group), (([place for place, _ in part], [row for _, row in part]) for part in parts)
