"""Text that is held out: a share of the documents, or a corpus of its own; and training documents that equal it."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_effpt.core.errors import EffptError
from hf_effpt.core.random import indexed
from hf_effpt.data.cache import build_once
from hf_effpt.data.corpus import Corpus, open_corpus
from hf_effpt.data.document_cuts import DocumentCut
from hf_effpt.data.packed_rows import add_facts, facts

logger = logging.getLogger(__name__)


def open_validation(
    validation: Any,
    corpus: Corpus,
    cache_dir: str | os.PathLike | None = None,
    documents: DocumentCut | None = None,
) -> float | Corpus | None:
    """Checks what `pack` is given as `validation` beside a corpus, and opens it if it names a dataset.

    Raises an `EffptError` for an impossible share, a dataset that cannot be opened, and the training text itself.
    """
    if isinstance(validation, int | float):
        if not 0 < validation < 1:
            raise EffptError(
                f"validation={validation} must be a share between 0 and 1, as 0.01 for a hundredth of the text, a "
                "dataset of its own, or None for no validation."
            )
        return validation
    if validation is not None:
        # One guess for both, but for folders of small files, each of which is a document.
        documents = documents or (corpus.documents if not corpus.guessed or corpus.documents != "file" else None)
        settings: dict[str, Any] = {"text_column": corpus.text_column, "documents": documents, "cache_dir": cache_dir}
        validation = open_corpus(validation, split="validation", streaming=corpus.streaming, **settings)
        _check_apart(validation, corpus)
    return validation


def held_out(sizes: Callable[[], Iterable[np.ndarray]], share: float | None, seed: int = 0) -> np.ndarray:
    """Chooses the documents that are held out, a share of all bytes.

    Documents follow one another in an order that `seed` and their numbers determine. Each that still fits into the
    share is held out, until 99 % of it are.

    Args:
        sizes (`Callable[[], Iterable[np.ndarray]]`): Starts a pass over the bytes of all documents, in several arrays.
        share (`float`, *optional*): Share of the bytes; `None` holds out nothing.
        seed (`int`, *optional*, defaults to 0): Seed of the order.

    Returns:
        `True` for held-out documents, bool of shape `(documents,)`.
    """
    documents = total = 0
    for some in sizes():
        documents, total = documents + len(some), total + int(some.sum())
    aside = np.zeros(documents, bool)
    wanted = left = total * (share or 0.0)
    # A part of the order at a time, so that memory holds a part of the documents.
    lower, width = 0.0, max(2 * (share or 0.0), 1 / 16)
    while left > wanted / 100 and lower < 1:
        found, first = [], 0
        for some in sizes():
            drawn = indexed(np.arange(first, first + len(some)), seed)
            here = np.flatnonzero((lower <= drawn) & (drawn < lower + width) & (some <= left))
            found.append((drawn[here], first + here, some[here]))
            first += len(some)
        drawn, numbers, bytes_of = map(np.concatenate, zip(*found, strict=True))
        for place in np.argsort(drawn, kind="stable"):
            if bytes_of[place] <= left and left > wanted / 100:
                aside[numbers[place]] = True
                left -= int(bytes_of[place])
        lower += width
    return aside


def raised_shares(share: float) -> Iterator[float]:
    """Shares to try, one after another, until enough is held out for a row: doubled, up to half of the text."""
    yield share
    while share < 0.5:
        share = min(2 * share, 0.5)
        yield share


def report_held_out(train: Dataset) -> None:
    """Warns if documents, which are held out whole, make up another share of the text than was asked for."""
    told = facts(train)["held_out"]
    if "asked" in told and not told["asked"] / 1.5 <= told["share"] <= told["asked"] * 1.5:
        logger.warning(
            "validation=%s was asked for, but %.3g %% of the text is held out: %s of %s documents, %s tokens. "
            "Documents are held out whole, and at least a row of them. Cut a .txt file into smaller documents with "
            "data.documents, or name a validation dataset.",
            told["asked"], 100 * told["share"], f"{told['documents']:,}", f"{told['of']:,}", f"{told['tokens']:,}",
        )  # fmt: skip


def report_doubles(train: Dataset, keys: Path, held_out_keys: Path, cache: Path, apart: Corpus | None = None) -> None:
    """Counts the training documents that equal a held-out one, in the facts and, if there are any, a warning.

    Raises an `EffptError` if all of them do, and what is held out is a corpus of its own, `apart`.
    """

    def count(target: Path) -> None:
        apart, doubles = np.unique(np.fromfile(held_out_keys, np.uint64)), 0
        with keys.open("rb") as file:
            while len(some := np.fromfile(file, np.uint64, 2**20)):
                doubles += int(np.isin(some, apart).sum())
        (target / "doubles.json").write_text(json.dumps(doubles))

    def load(folder: Path) -> int:
        return int(json.loads((folder / "doubles.json").read_text()))

    names = [str(path.relative_to(cache)) for path in (keys, held_out_keys)]
    key = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:32]
    doubles = load(build_once(cache / "doubles" / key, count, load))
    if apart is not None and doubles == facts(train)["documents"]:
        raise EffptError(
            f"validation={apart.name!r} is text to train on: all {doubles:,} training documents, of "
            f"{facts(train)['dataset']!r}, equal one of it up to case and white space. Give other text, or a share "
            "such as 0.01 of the dataset."
        )
    add_facts(train, doubles=doubles)
    if doubles:
        logger.warning(
            "%s of %s training documents equal held-out ones up to case and white space, so the held-out loss is "
            "lower than on new text. `data.select: {deduplicate: exact}` leaves such documents out.",
            f"{doubles:,}", f"{facts(train)['documents']:,}",
        )  # fmt: skip


def _check_apart(validation: Corpus, corpus: Corpus) -> None:
    """Raises an `EffptError` if two corpora have the same contents, or share a file."""
    shared = sorted({path.resolve() for path in validation.files} & {path.resolve() for path in corpus.files})
    prints = [{of.fingerprint, *(one.fingerprint for one in of.members)} for of in (validation, corpus)]
    if not shared and not prints[0] & prints[1]:
        return
    same = f"both read {shared[0]}" if shared else "both have the same contents"
    if not shared and validation.fingerprint != corpus.fingerprint:
        same = "have a source with the same contents"
    raise EffptError(
        f"validation={validation.name!r} is text to train on: it and the dataset {corpus.name!r} {same}. Give other "
        "text, a source with a validation split, or a share such as 0.01 of the dataset."
    )
