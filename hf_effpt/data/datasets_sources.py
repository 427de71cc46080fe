"""Text of the `datasets` library: folders it saved, and datasets on the Hub."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from hf_effpt.core.errors import EffptError, first_line
from hf_effpt.data.cache import content_hash
from hf_effpt.data.document_meter import hash_of_texts
from hf_effpt.data.file_readers import Reader, Source
from hf_effpt.data.table_readers import check_text_column, missing_column, not_text
from hf_effpt.data.text_stream import CHUNK_BYTES

Loaded = Dataset | IterableDataset | DatasetDict | IterableDatasetDict
# What reading rows that are damaged, or of varying columns or types, may raise.
FAULTS = (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException)


def open_saved(
    path: Path, text_column: str, split: str, cache_dir: str | os.PathLike | None = None
) -> tuple[Reader, Callable[[], str], int | None, list[Path]]:
    """Reader, fingerprint, size and files of a folder written by `save_to_disk`."""
    try:
        dataset = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise EffptError(
            f"{path} looks like a saved dataset, but cannot be loaded ({reason}). Save it again."
        ) from error
    dataset = _split_in(dataset, split, str(path))
    read, _, num_bytes = _source(dataset, str(path), text_column)
    files = [Path(table["filename"]) for table in dataset.cache_files]
    return (
        read,
        lambda: hashlib.sha256(f"{content_hash(files, cache_dir)}-{text_column}".encode()).hexdigest()[:32],
        num_bytes,
        files,
    )


def open_loaded(dataset: Loaded, text_column: str, split: str) -> tuple[str, *Source]:
    """Name, reader, fingerprint and size of a dataset in Python; its fingerprint takes a pass over the text."""
    name = f"{'an' if isinstance(dataset, IterableDataset | IterableDatasetDict) else 'a'} {type(dataset).__name__}"
    dataset = _split_in(dataset, split, name)
    read, _, num_bytes = _source(dataset, name, text_column)
    return name, read, lambda: hash_of_texts(read(), name), num_bytes


def _split_in(dataset: Loaded, split: str, name: str) -> Dataset | IterableDataset:
    if not isinstance(dataset, dict):
        return dataset
    if split not in dataset:
        raise EffptError(f"{name} has no split {split!r}, only {sorted(dataset)}. Set data.split.")
    return dataset[split]


def open_hub(dataset: str, text_column: str, split: str, streaming: bool) -> Source:
    """Reader, fingerprint and size of a dataset on the Hub, `name` or `name:configuration`."""
    name, _, configuration = dataset.partition(":")
    try:
        builder = datasets.load_dataset_builder(name, configuration or None)
        loaded = datasets.load_dataset(name, configuration or None, split=split, streaming=streaming)
    except (OSError, ValueError, RuntimeError) as error:
        if "Config name is missing" in str(error) or "BuilderConfig" in str(error):
            raise EffptError(f"The dataset {name!r} needs a configuration, as in {name}:NAME. {error}") from error
        if "Unknown split" in str(error) or "Bad split" in str(error):
            raise EffptError(f"The dataset {name!r} has no split {split!r}: {error}. Set data.split.") from error
        raise EffptError(
            f"The dataset {dataset!r} is neither a file or folder here ({Path(dataset).absolute()}) nor can it be "
            f"had from the Hub ({type(error).__name__}: {first_line(error)}). Check the spelling and the network, or "
            "use local text (.txt, .jsonl or other files, a saved datasets folder, builtin:pydoc)."
        ) from error
    return _source(loaded, dataset, text_column, version=f"{dataset}-{split}-{builder.hash}")


@dataclass(frozen=True)
class DatasetReader:
    """Starts passes over the text of a dataset, which is read `at_once` rows at a time; `name` is for errors."""

    dataset: Dataset | IterableDataset
    name: str
    text_column: str
    at_once: int

    def __call__(self) -> Iterator[str]:
        row = 0
        batches = self.dataset.with_format(None).select_columns([self.text_column]).iter(self.at_once)
        while True:
            try:
                batch = next(batches, None)
                texts = () if batch is None else batch[self.text_column]
            except FAULTS as error:
                raise _unreadable(self.name, row, error) from error
            for text in texts:
                row += 1
                if not isinstance(text, str | None):
                    raise not_text(f"{self.name}, row {row:,}", self.text_column, type(text).__name__)
                yield text or ""
            if batch is None:
                return

    def part(self, number: int, of: int) -> "DatasetReader":
        """Reader of one of `of` parts in a row; at most as many as a streamed dataset has files."""
        return replace(self, dataset=self.dataset.shard(of, number, contiguous=True))


def _source(dataset: Dataset | IterableDataset, name: str, text_column: str, version: str = "") -> Source:
    """Reader, fingerprint and size; `version` identifies a streamed dataset, one on disk has its own fingerprint."""
    num_bytes, at_once = None, 1000
    if isinstance(dataset, Dataset):
        check_text_column(f"The dataset {name!r}", dataset.features.arrow_schema, text_column)
        # The table of a dataset that was filtered, shuffled or split is still the whole one.
        num_bytes = dataset.data.column(text_column).nbytes * len(dataset) // max(1, dataset.data.num_rows)
        at_once = max(1, min(at_once, CHUNK_BYTES * len(dataset) // max(1, num_bytes)))
        version = dataset._fingerprint
    else:
        try:
            columns = dataset.column_names or list(next(iter(dataset), {}))
        except FAULTS as error:
            raise _unreadable(name, 0, error) from error
        if text_column not in columns:
            raise missing_column(f"The dataset {name!r}", text_column, columns)
    read = DatasetReader(dataset, name, text_column, at_once)
    return read, lambda: hashlib.sha256(f"{version}-{text_column}".encode()).hexdigest()[:32], num_bytes


def _unreadable(name: str, row: int, error: Exception) -> EffptError:
    return EffptError(
        f"{name} cannot be read after row {row:,} ({type(error).__name__}: {first_line(error)}). The text must be "
        "strings in UTF-8, in the same column of every row; if the data are damaged, save them again."
    )
