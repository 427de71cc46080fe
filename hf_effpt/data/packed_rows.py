"""Batched reading of packed datasets, without copies and without a step per row."""

import hashlib
import json
from typing import Any

import numpy as np
from datasets import Dataset

from hf_effpt.core.errors import EffptError

COLUMNS = ("input_ids", "document_ids")


class PackedRows:
    """Memory-mapped view of a dataset of fixed-length rows, read one batch at a time.

    Raises an `EffptError` for a dataset, maybe selected or shuffled, with other columns or rows of varying length.
    """

    def __init__(self, dataset: Dataset):
        if not self.fits(dataset):
            raise EffptError(
                "These rows cannot be read as packed ones: needed is a datasets.Dataset of fixed-length columns "
                "`input_ids` (and `document_ids`) and no other, as hf_effpt.pack makes it; got "
                f"{getattr(dataset, 'features', type(dataset).__name__)}."
            )
        self.columns = tuple(name for name in COLUMNS if name in dataset.column_names)
        self.sequence_length = dataset.features["input_ids"].length
        # Blocks of each column: arrays of shape `(rows, sequence_length)` over the memory-mapped file.
        self._blocks = {
            name: [
                chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, self.sequence_length)
                for chunk in dataset.data.column(name).chunks
            ]
            for name in self.columns
        }
        ends = np.cumsum([len(block) for block in self._blocks["input_ids"]])
        self._starts = np.concatenate([[0], ends]).astype(np.int64)
        self._order = None if dataset._indices is None else dataset._indices.column(0).to_numpy()
        self._count = len(dataset)

    @staticmethod
    def fits(dataset) -> bool:
        """`True` for a `datasets.Dataset` of fixed-length token rows and nothing else."""
        if not isinstance(dataset, Dataset) or "input_ids" not in dataset.column_names:
            return False
        if not set(dataset.column_names) <= set(COLUMNS) or dataset.format["type"] == "custom":
            return False
        lengths = {getattr(dataset.features[name], "length", -1) for name in dataset.column_names}
        return len(lengths) == 1 and lengths.pop() > 0

    def __len__(self) -> int:
        return self._count

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads rows by number, in any order: `input_ids`, and `document_ids` if the rows have them.

        Both are int64 of shape `(batch_size, sequence_length)`.
        """
        indices = np.asarray(indices, np.int64)
        if len(indices) and not (0 <= indices.min() and indices.max() < self._count):
            raise IndexError(f"Row numbers must be in 0..{self._count - 1}, got {indices.min()}..{indices.max()}.")
        if self._order is not None:
            indices = self._order[indices].astype(np.int64)
        block = np.searchsorted(self._starts, indices, side="right") - 1
        rows = {name: np.empty((len(indices), self.sequence_length), np.int64) for name in self.columns}
        for number in np.unique(block):
            here = np.flatnonzero(block == number)
            within = indices[here] - self._starts[number]
            for name in self.columns:
                rows[name][here] = self._blocks[name][number][within]
        return rows


def facts(dataset: Dataset) -> dict:
    """Describes a packed dataset.

    Returns:
        `fingerprint`, `dataset` (name of the text), its number of `documents` and `bytes`, `rows`, `tokens` (without
        padding), `sequence_length`, `isolated` and `fill` (share of rows that is not padding); `documents_by`, how
        `.txt` files were cut, if there were some. Of training rows also

        - `held_out`, if text is: its `documents`, `bytes` and `tokens`; and its `dataset` (and `documents_by`), or the
          share `asked` for, its `share` of all tokens, and the number of documents that it is part `of`;
        - `doubles`: how many of their documents equal held-out ones;
        - `sources` of a mixture: the `documents` drawn from each `dataset`, and its share (`weight`);
        - `select`: how documents were chosen.

    Raises an `EffptError` if it was not made by `pack`.
    """
    try:
        return json.loads(dataset.info.description)["hf_effpt"]
    except (ValueError, KeyError, TypeError) as error:
        raise EffptError("This dataset does not say how it was packed: it was not made by hf_effpt.pack.") from error


def add_facts(dataset: Dataset, **more: Any) -> None:
    """Adds to the facts of a packed dataset, in memory only."""
    dataset.info.description = json.dumps({"hf_effpt": facts(dataset) | more})


def identity_of_rows(rows: PackedRows) -> str:
    """Identifies rows by their number, length and a hash of up to 1,024 of them, evenly spaced."""
    some = rows.rows(np.linspace(0, len(rows) - 1, min(1024, len(rows))).astype(np.int64))["input_ids"]
    return f"{len(rows)} rows of {rows.sequence_length}, {hashlib.sha256(some.tobytes()).hexdigest()[:16]}"
