"""Text that is held out: a share of the documents, or a corpus of its own; and training documents that equal it."""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_effpt.core.errors import EffptError
from hf_effpt.core.random import indexed
from hf_effpt.data.cache import build_once
from hf_effpt.data.corpus import Corpus, open_corpus
from hf_effpt.data.packed_rows import add_facts, facts

logger = logging.getLogger(__name__)


def open_validation(validation: float | Corpus | str | None, corpus: Corpus) -> float | Corpus | None:
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
    if isinstance(validation, str):
        validation = open_corpus(validation, text_column=corpus.text_column, split="validation")
    if validation is not None:
        _check_apart(validation, corpus)
    return validation


def held_out(numbers: np.ndarray, share: float | None, seed: int = 0) -> np.ndarray:
    """`True` for held-out documents, bool of shape `(documents,)`, by their numbers in the corpus; see `pack`."""
    return np.zeros(len(numbers), bool) if share is None else indexed(numbers, seed) < share


def report_doubles(train: Dataset, keys: Path, held_out_keys: Path, cache: Path) -> None:
    """Counts the training documents that equal a held-out one, in the facts and, if there are any, a warning."""

    def count(target: Path) -> None:
        apart, doubles = np.unique(np.fromfile(held_out_keys, np.uint64)), 0
        with keys.open("rb") as file:
            while len(some := np.fromfile(file, np.uint64, 2**20)):
                doubles += int(np.isin(some, apart).sum())
        (target / "doubles.json").write_text(json.dumps(doubles))

    names = [str(path.relative_to(cache)) for path in (keys, held_out_keys)]
    key = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:32]
    doubles = json.loads((build_once(cache / "doubles" / key, count) / "doubles.json").read_text())
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
    if not shared and validation.fingerprint != corpus.fingerprint:
        return
    same = f"both read {shared[0]}" if shared else "both have the same contents"
    raise EffptError(
        f"validation={validation.name!r} is text to train on: it and the dataset {corpus.name!r} {same}. Give other "
        "text, a source with a validation split, or a share such as 0.01 of the dataset."
    )
