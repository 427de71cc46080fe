"""Packing of text into fixed-length token rows on disk, once, in one pass."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, DatasetInfo, NamedSplit
from datasets.table import MemoryMappedTable

from hf_effpt.core.errors import EffptError
from hf_effpt.data.cache import build_once, cache_folder
from hf_effpt.data.corpus import Corpus, open_corpus
from hf_effpt.data.document_meter import document_sizes
from hf_effpt.data.document_selection import Kept
from hf_effpt.data.encoding import TextEncoder
from hf_effpt.data.holding_out import held_out, open_validation, raised_shares, report_doubles, report_held_out
from hf_effpt.data.long_documents import Part
from hf_effpt.data.packed_rows import PackedRows, add_facts, facts
from hf_effpt.data.row_builders import IsolatedRows, StreamRows
from hf_effpt.data.row_writer import RowWriter
from hf_effpt.data.token_file import Count, TokenFile
from hf_effpt.data.vocabulary import special_ids

__all__ = ["PackedRows", "facts", "pack"]

# To be raised when the rows of the same text change.
FORMAT = 2


def pack(
    corpus: Any,
    tokenizer,
    *,
    sequence_length: int = 128,
    isolate_documents: bool = False,
    validation: Any = 0.01,
    kept: Kept | None = None,
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Tokenises a corpus and packs it into rows of equal length, memory-mapped from a cache that is keyed by content.

    Documents follow one another in one stream, separated by `[SEP]`, and every row is `[CLS]`, `sequence_length - 2`
    tokens, `[SEP]`; there is no padding, and a last incomplete row is dropped. With `isolate_documents` a row holds
    whole pieces `[CLS] ... [SEP]` of one document each, padded at the end, and `document_ids` (1, 2, ...; 0 for
    padding) tell them apart.

    Args:
        corpus (`Corpus`, `str`, `Dataset`, `list`): The text, or what `open_corpus` takes: a `datasets.Dataset` or
            `IterableDataset`, several sources, or a mixture with weights.
        tokenizer (`PreTrainedTokenizerFast`): Has a pad, cls, sep and mask token.
        sequence_length (`int`, *optional*, defaults to 128): Tokens per row, at least 8.
        isolate_documents (`bool`, *optional*, defaults to `False`): If `True`, keeps documents apart in a row.
        validation (`float` or as `corpus`, *optional*, defaults to 0.01): Share of the text held out, at most:
            whole documents that fit into it, in an order by `seed` and the document's number. If they make no whole
            row, the share is doubled until they do, up to half of the text. Or a corpus of its own (its validation
            split, if it has splits), or `None`.
        kept ([`Kept`], *optional*): Documents to train on; held-out documents do not depend on it, and must be those
            that it was chosen beside ([`share_held_out`]). The facts of the training rows then hold `select`: how
            documents were chosen, and the `unselected_fingerprint` of the rows of all documents.
        cache_dir (`str`, *optional*): Cache folder, by default `$HF_EFFPT_CACHE` or `~/.cache/hf_effpt`.
        num_proc (`int`, *optional*): Threads that tokenise; by default the tokenizer uses every core.
        seed (`int`, *optional*, defaults to 0): Seed of the documents held out.

    Returns:
        `DatasetDict` with `"train"` and, unless `validation` is `None`, `"validation"`; column `input_ids`, fixed-size
        lists of uint16 (int32 for a vocabulary over 65,536), and `document_ids` with isolation.

    Raises:
        EffptError: the corpus is missing, empty, unreadable, too small for one row or not the one `kept` was made
            for; the tokenizer lacks a special token or the fast backend; or an argument is out of range.
    """
    if sequence_length < 8:
        raise EffptError(f"sequence_length={sequence_length} leaves no room for text; it must be at least 8.")
    if num_proc is not None and num_proc < 1:
        raise EffptError(f"num_proc={num_proc} must be at least 1, or None for every core.")
    corpus = open_corpus(corpus, cache_dir=cache_dir)
    validation = open_validation(validation, corpus, cache_dir)
    share = None if isinstance(validation, Corpus) else validation
    settings = RowSettings(tokenizer, sequence_length, isolate_documents, cache_folder(cache_dir), num_proc)
    training = Packing(corpus, settings, share, seed, kept)
    packed, held_out_keys = training.load(), training.keys("validation")
    if isinstance(validation, Corpus):
        aside = Packing(validation, settings)
        packed["validation"], held_out_keys = aside.load()["train"], aside.keys("train")
        told, keys = facts(packed["validation"]), ("dataset", "documents", "bytes", "tokens", "documents_by")
        add_facts(packed["train"], held_out={key: told[key] for key in keys if key in told})
    if "validation" in packed:
        report_held_out(packed["train"])
        apart = validation if isinstance(validation, Corpus) else None
        report_doubles(packed["train"], training.keys("train"), held_out_keys, settings.cache, apart)
    return packed


def pack_lengths(corpus: Any, tokenizer, lengths: Sequence[int], **settings: Any) -> DatasetDict:
    """Packs a corpus into rows of several lengths, each as [`pack`] does; the same documents are held out of all.

    Args:
        corpus, tokenizer, **settings: As for `pack`.
        lengths (`Sequence[int]`): Tokens per row. The splits of the first are named as those of `pack`, and those of
            each other `train_{length}` and `validation_{length}`.

    Raises:
        EffptError: as `pack`, or too little text is held out for a row of some length.
    """
    corpus = open_corpus(corpus)
    every = pack(corpus, tokenizer, sequence_length=lengths[0], **settings)
    documents = facts(every["train"])["documents"]
    for length in lengths[1:]:
        longer = pack(corpus, tokenizer, sequence_length=length, **settings)
        if facts(longer["train"])["documents"] != documents:
            raise EffptError(
                f"What is held out of the dataset {corpus.name!r} makes no row of {length} tokens, so that other "
                "documents would be held out of long rows than of short ones; raise data.validation or name a dataset."
            )
        every.update({f"{split}_{length}": rows for split, rows in longer.items()})
    return every


def share_held_out(
    corpus: Corpus,
    tokenizer,
    share: float,
    *,
    sequence_length: int = 128,
    isolate_documents: bool = False,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
) -> float:
    """The share of the text that `pack` holds out: `share`, or what it has to be raised to for a whole row.

    Documents are selected beside those held out, so this is to be known before. It reads sizes, and tokenises as many
    of the documents as a row needs; the arguments are those of [`pack`].
    """
    settings = RowSettings(tokenizer, sequence_length, isolate_documents, cache_folder(cache_dir), num_proc=1)

    def decide(target: Path) -> None:
        sizes_N, found = document_sizes(corpus.parts()), share
        for found in raised_shares(share):
            aside_N = held_out(lambda: [sizes_N], found, seed)
            if _fills_row(settings, corpus, aside_N):
                break
        (target / "share.json").write_text(json.dumps(found))
        corpus.check_unchanged()

    def load(folder: Path) -> float:
        return float(json.loads((folder / "share.json").read_text()))

    key = _hash([corpus.fingerprint, settings.key, share, seed])
    return load(build_once(settings.cache / "held_out" / key, decide, load))


def _fills_row(settings: "RowSettings", corpus: Corpus, chosen_N: np.ndarray) -> bool:
    """`True` if the chosen documents make a row; they are tokenised until they do."""
    number = tokens = documents = of_this = 0
    goes_on = False
    for part in corpus.parts():
        if chosen_N[number]:
            of_this += len(settings.encoder.encode_parts([part], goes_on)[0])
            if settings.makes_row(tokens + of_this, documents):
                return True
        goes_on = isinstance(part, Part)
        if not goes_on:
            tokens, documents = tokens + of_this, documents + (of_this > 0)
            number, of_this = number + 1, 0
    return settings.makes_row(tokens, documents)


class RowSettings:
    """Everything that determines rows, except the text and its held-out and selected documents."""

    def __init__(self, tokenizer, sequence_length: int, isolated: bool, cache: Path, num_proc: int | None):
        self.ids = special_ids(tokenizer)
        self.dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.int32)
        self.encoder = TextEncoder(tokenizer, self.dtype, num_proc)
        self.sequence_length, self.isolated, self.cache = sequence_length, isolated, cache
        self.key = [FORMAT, self.encoder.fingerprint, vars(self.ids), sequence_length, isolated]

    def builder(self) -> StreamRows | IsolatedRows:
        return (IsolatedRows if self.isolated else StreamRows)(self.sequence_length, self.ids, self.dtype)

    def makes_row(self, tokens: int, documents: int) -> bool:
        """`True` if documents of so many tokens fill a row, or isolated ones begin one."""
        return tokens + documents >= (1 if self.isolated else self.sequence_length - 2)


@dataclass
class Packing:
    """A corpus to pack: `share` of its documents is held out by `seed`, and of the others `kept` are trained on."""

    corpus: Corpus
    settings: RowSettings
    share: float | None = None
    seed: int = 0
    kept: Kept | None = None

    def load(self) -> DatasetDict:
        """The splits, from the cache or built."""
        parts = [self.corpus.fingerprint, self.settings.key, None if self.share is None else [self.share, self.seed]]
        key = whole = _hash(parts)
        if self.kept is not None:
            key = _hash([*parts, self.kept.fingerprint])
        splits = ["train"] if self.share is None else ["train", "validation"]

        def load(folder: Path) -> DatasetDict:
            return DatasetDict({split: _load(folder, split, f"{key}-{split}") for split in splits})

        self.folder = self.settings.cache / "packed" / key
        packed = load(build_once(self.folder, lambda target: self._build(target, key), load))
        if self.kept is not None:
            # Not written to the cache: the same documents may have been chosen in another way.
            add_facts(packed["train"], select={**self.kept.facts, "unselected_fingerprint": f"{whole}-train"})
        return packed

    def keys(self, split: str) -> Path:
        """File of the content keys of a split's documents, once it is loaded."""
        return self.folder / f"{split}-keys.bin"

    def _build(self, target: Path, key: str) -> None:
        """Packs the corpus into `target`; holds out more documents than asked for if those make no row."""
        text = TokenFile(target, self.settings.encoder)
        text.fill(self.corpus)
        if self.kept is not None and text.documents != len(self.kept.chosen_N):
            raise EffptError(
                f"The dataset {self.corpus.name!r} has {text.documents:,} documents, but `kept` says of "
                f"{len(self.kept.chosen_N):,} which are to be trained on; select among those of this dataset."
            )
        chosen, counted = self.choose(text)
        for split, documents in chosen.items():
            text.write_keys(target / f"{split}-keys.bin", documents)
        writers, of = self._write(text, target, chosen), text.count()
        text.remove()
        for split, writer in writers.items():
            known = {
                "fingerprint": f"{key}-{split}",
                "dataset": self.corpus.name,
                "documents": counted[split].documents,
                "bytes": counted[split].bytes,
                "rows": writer.rows,
                "tokens": writer.tokens,
                "sequence_length": self.settings.sequence_length,
                "isolated": self.settings.isolated,
                "fill": writer.tokens / max(1, writer.rows * self.settings.sequence_length),
            }
            if self.corpus.documents is not None:
                known["documents_by"] = self.corpus.documents
            if split == "train" and self.corpus.sources:
                known["sources"] = self.corpus.sources
            if split == "train" and self.share is not None:
                aside = counted["validation"]
                known["held_out"] = aside._asdict() | {
                    "asked": self.share, "share": aside.tokens / of.tokens, "of": of.documents
                }  # fmt: skip
            (target / f"{split}.json").write_text(json.dumps({"hf_effpt": known}))
        self.corpus.check_unchanged()

    def choose(self, text: TokenFile) -> tuple[dict[str, np.ndarray], dict[str, Count]]:
        """Documents of each split, and their numbers; holds out a larger share if what is asked for makes no row."""
        for share in (None,) if self.share is None else raised_shares(self.share):
            aside = held_out(text.sizes, share, self.seed)
            chosen = {"train": ~aside if self.kept is None else ~aside & self.kept.chosen_N, "validation": aside}
            counted = {split: text.count(documents) for split, documents in chosen.items()}
            if not self._makes_row(counted["train"]):
                self._refuse(counted["train"].bytes)
            if share is None or self._makes_row(counted["validation"]):
                self._check_beside(aside, share)
                return chosen, counted
        raise EffptError(
            f"The dataset {self.corpus.name!r} is too small to hold out validation={self.share:.3g} of it: of its "
            f"{text.documents} documents, none that leave half of the text make a whole row. Add text, cut a .txt "
            "file into smaller documents with data.documents, or set validation to a dataset or None."
        )

    def _makes_row(self, count: Count) -> bool:
        return self.settings.makes_row(count.tokens, count.documents)

    def _check_beside(self, aside: np.ndarray, share: float | None) -> None:
        """Raises an `EffptError` if documents were selected beside other held-out ones than these."""
        before = None if self.kept is None else self.kept.held_out_N
        if before is not None and not np.array_equal(before, aside):
            raise EffptError(
                f"`kept` was selected beside {before.sum():,} held-out documents of {self.corpus.name!r}, but "
                f"validation={self.share} holds out {aside.sum():,}, not all the same: those would be in neither "
                f"split, and their doubles in the training rows. Select with validation={share}."
            )

    def _write(self, text: TokenFile, target: Path, chosen: dict[str, np.ndarray]) -> dict[str, RowWriter]:
        """Writes the rows of the documents chosen for each split."""
        writers = {split: RowWriter(target / f"{split}.arrow", self.settings.builder()) for split in chosen}
        with writers["train"], writers["validation"]:
            for run in text.runs():
                for split, documents in chosen.items():
                    writers[split].add(*run.of(documents))
        return writers

    def _refuse(self, text_bytes: int) -> None:
        """Raises the `EffptError` for text that does not fill one row."""
        of, fix = "", "."
        if self.kept is not None:
            of = f", of the {self.kept.chosen_N.sum():,} documents that are selected,"
            fix = ", or select less strictly by data.select."
        raise EffptError(
            f"The dataset {self.corpus.name!r} is too small: the {text_bytes:,} bytes of text to train on{of} do not "
            f"fill one row of {self.settings.sequence_length} tokens. Add text or lower data.sequence_length{fix}"
        )


def _hash(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _load(folder: Path, split: str, fingerprint: str) -> Dataset:
    """A split as a memory-mapped dataset that knows its facts."""
    info = DatasetInfo(description=(folder / f"{split}.json").read_text())
    table = MemoryMappedTable.from_file(str(folder / f"{split}.arrow"))
    dataset = Dataset(table, info=info, split=NamedSplit(split), fingerprint=fingerprint)
    if facts(dataset)["rows"] != len(dataset):
        raise EffptError(f"{folder} does not hold the {facts(dataset)['rows']} rows that it should; delete it.")
    return dataset
