"""Data of a recipe: its text, its tokenizer and the packed rows, from the cache if they were made before."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_effpt.core.errors import EffptError
from hf_effpt.data.added_tokens import with_words, words_to_add
from hf_effpt.data.cache import build_once, cache_folder
from hf_effpt.data.corpus import Corpus, open_corpus
from hf_effpt.data.document_selection import Kept
from hf_effpt.data.holding_out import open_validation
from hf_effpt.data.packing import pack_lengths, share_held_out
from hf_effpt.data.shards.opening import is_rows, open_rows
from hf_effpt.data.tokenizer_training import FORMAT as TOKENIZERS
from hf_effpt.data.tokenizer_training import train_tokenizer
from hf_effpt.evaluation.document_scores import check_model, select_documents
from hf_effpt.models.from_checkpoint import check_fits, published_config
from hf_effpt.recipe.packed_data import check_packed
from hf_effpt.recipe.recipe import Recipe, check_heeded
from hf_effpt.recipe.sections import require

logger = logging.getLogger(__name__)


def prepare_data(recipe: Recipe, *, strict: bool = True) -> tuple[Corpus | None, PreTrainedTokenizerBase, DatasetDict]:
    """Returns the recipe's text, tokenizer and packed rows, from the cache if they were made before.

    If `data.dataset` is a folder of packed rows, those are opened as they are, and there is no text.
    `data.select` only affects the training rows: text, tokenizer and held-out rows stay those of a run without it, so
    that the two runs can be compared. A setting that the source of the text does not heed is refused, or with
    `strict=False`, for a run of an older version, warned of.
    """
    data, kept = recipe.data, None
    if is_rows(data.dataset):
        check_packed(data)
        return None, prepare_tokenizer(recipe, None), open_rows(str(data.dataset))
    corpus = open_corpus(
        data.dataset,
        text_column=data.text_column,
        split=data.split,
        streaming=data.streaming,
        documents=data.documents,
        cache_dir=data.cache_dir,
    )
    # Of a source with splits its validation split, whichever split is trained on.
    validation = open_validation(data.held_out, corpus, data.cache_dir, data.documents)
    cut = corpus.documents or (validation.documents if isinstance(validation, Corpus) else None)
    needed = f"left out, since {data.dataset} has no .txt file to cut"
    require(data.documents is None or cut is not None, "data.documents", data.documents, needed)
    also = validation.heeds & {"text_column"} if isinstance(validation, Corpus) else set()
    check_heeded(data, corpus.heeds | also, strict)
    if data.selection is not None:
        check_model(data.selection)  # before any work
    tokenizer = prepare_tokenizer(recipe, corpus)
    if data.selection is not None:
        beside = validation
        if isinstance(validation, float):
            beside = share_held_out(
                corpus, tokenizer, validation, sequence_length=next(iter(data.lengths.values())),
                isolate_documents=data.isolate_documents, cache_dir=data.cache_dir,
            )  # fmt: skip
        kept = select_documents(corpus, data.selection, beside, cache_dir=data.cache_dir)
        # It prepares the data, like packing. Its seconds are in `run.json` under `data.select`, too.
        logger.info(
            "data.select: %s of %s documents kept; selecting them took %.1f s, which the clock is not charged for",
            f"{kept.facts['kept']:,}", f"{kept.facts['documents']:,}", kept.facts["seconds"],
        )  # fmt: skip
    return corpus, tokenizer, prepare_rows(recipe, corpus, tokenizer, validation, kept)


def prepare_tokenizer(recipe: Recipe, corpus: Corpus | None) -> PreTrainedTokenizerBase:
    """Loads the recipe's tokenizer, or trains one on the corpus, once for equal text and settings.

    Without a corpus the recipe must name a tokenizer.

    The length that it announces is that of the longest training rows, since the model's further positions stay
    untrained; but a checkpoint has been trained on the length that its tokenizer announces.
    """
    tokenizer, longest = _load_tokenizer(recipe, corpus), max(recipe.data.lengths.values())
    if recipe.model.from_ is not None:
        longest = max(longest, min(tokenizer.model_max_length, recipe.longest_row))
    tokenizer.model_max_length = longest
    return tokenizer


def _load_tokenizer(recipe: Recipe, corpus: Corpus | None) -> PreTrainedTokenizerBase:
    data, source = recipe.data, recipe.model.from_
    if (given := data.tokenizer or source) is not None:
        key = "data.tokenizer" if data.tokenizer else "model.from"
        try:
            loaded = AutoTokenizer.from_pretrained(given)
        except (OSError, ValueError) as error:
            raise EffptError(
                f"The tokenizer of `{key}` {given!r} cannot be loaded ({str(error).splitlines()[0]}); give a folder "
                "made by `effpt tokenizer` in `data.tokenizer`, or leave it out to train one."
            ) from error
        if source is not None:
            check_fits(loaded, given, published_config(source), source)
        if data.words_to_add is None or corpus is None:
            return loaded
        words = words_to_add(loaded, data.words_to_add, corpus.in_parts().texts())
        logger.info("data.add_tokens: %s words, such as %s", f"{len(words):,}", ", ".join(words[:5]))
        return with_words(loaded, words)
    if corpus is None:
        raise EffptError("Without text no tokenizer can be trained: name one in `data.tokenizer`.")
    settings: dict[str, Any] = {
        "vocab_size": data.vocab_size,
        "kind": data.tokenizer_kind,
        "lowercase": data.lowercase,
        "strip_accents": data.strip_accents,
    }
    key = hashlib.sha256(json.dumps([TOKENIZERS, corpus.fingerprint, settings]).encode()).hexdigest()[:32]

    def train(folder: Path) -> None:
        train_tokenizer(corpus.in_parts(), **settings, out=folder)
        corpus.check_unchanged()

    load = AutoTokenizer.from_pretrained
    return load(build_once(cache_folder(data.cache_dir) / f"tokenizer-{key}", train, load))


def prepare_rows(
    recipe: Recipe,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    validation: float | Corpus | None,
    kept: Kept | None = None,
) -> DatasetDict:
    """Packs the training rows, from the documents in `kept`, and the held-out rows; `validation` as for `pack`."""
    data = recipe.data
    return pack_lengths(
        corpus,
        tokenizer,
        list(data.lengths.values()),
        isolate_documents=data.isolate_documents,
        validation=validation,
        kept=kept,
        cache_dir=data.cache_dir,
        num_proc=data.num_proc,
    )
