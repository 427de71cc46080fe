"""Corpora: any source of text as documents that can be read again and again."""

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_effpt.core.errors import EffptError, NoText
from hf_effpt.data.cache import check_unchanged, stamp
from hf_effpt.data.datasets_sources import Loaded, open_hub, open_loaded, open_saved
from hf_effpt.data.document_cuts import CUTS, DocumentCut
from hf_effpt.data.document_meter import check_text, hash_of_texts
from hf_effpt.data.file_readers import SUPPORTED, cut_of, kind_of, open_files
from hf_effpt.data.long_documents import Part, in_parts, joined
from hf_effpt.data.mixture import mixed, parts_of_mixture
from hf_effpt.data.pydoc import open_pydoc
from hf_effpt.data.shards.opening import refuse_rows
from hf_effpt.data.text_files import files_of_folder, files_of_pattern

SHOWN = 60  # characters of a source that an error shows


class Corpus:
    """Documents from one source.

    Args:
        name (`str`): Name in reports and errors.
        read (`Callable[[], Iterator[str]]`): Starts a new pass over the documents; blank ones are skipped.
        fingerprint (`Callable[[], str]`): Hash of the contents, computed at first use.
        num_bytes (`int`, *optional*): Estimated UTF-8 bytes of text, if known without reading.
        text_column (`str`, *optional*, defaults to `"text"`): Column of the text in tabular sources.
        files (`Sequence[Path]`, *optional*): Files that are read.
        documents (`str`, *optional*): How `.txt` files are cut into documents, if there are some; see `open_corpus`.
        guessed (`bool`, *optional*, defaults to `False`): `True` if nobody has said so.
        sources (`list[dict]`, *optional*): Of a mixture, what the last whole pass has drawn from each corpus.
        members (`Sequence[Corpus]`, *optional*): Of a mixture, its corpora.
        streaming (`bool`, *optional*, defaults to `False`): `True` if it is read during its download.
        heeds (`Iterable[str]`, *optional*): Which of `text_column`, `split` and `streaming` have an effect on it.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], Iterator[str]],
        fingerprint: Callable[[], str],
        num_bytes: int | None = None,
        text_column: str = "text",
        files: Sequence[Path] = (),
        documents: DocumentCut | None = None,
        guessed: bool = False,
        sources: list[dict[str, Any]] | None = None,
        heeds: Iterable[str] = (),
        members: Sequence["Corpus"] = (),
        streaming: bool = False,
    ):
        self.name, self.num_bytes, self.text_column, self.files = name, num_bytes, text_column, tuple(files)
        self.documents, self.guessed, self.sources = documents, guessed, sources
        self.heeds, self.members, self.streaming = frozenset(heeds), tuple(members), streaming
        self._stamps: list[tuple[int, ...]] = []
        self.read, self._fingerprint = read, fingerprint

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the contents: equal contents, equal fingerprint."""
        self._stamps = [stamp(path) for path in self.files]
        return self._fingerprint()

    def check_unchanged(self) -> None:
        """Raises an `EffptError` if a file has changed since the fingerprint was computed."""
        if self._stamps:
            check_unchanged(self.files, self._stamps)

    def texts(self) -> Iterator[str]:
        """Yields every document that is not blank; raises an `EffptError` at the end of the pass if there was none."""
        return joined(self.parts())

    def parts(self, empty_ok: bool = False) -> Iterator[str]:
        """Yields the documents of `texts`, long ones in [`Part`]s, so that memory does not grow with their length.

        With `empty_ok` there may be none.
        """
        empty = blank = True
        for text in in_parts(self._checked()):
            blank = blank and (not text or text.isspace())
            if not blank:
                empty = False
                yield text
            blank = blank or not isinstance(text, Part)
        if empty and not empty_ok:
            raise NoText(
                f"The dataset {self.name!r} is empty: it holds no document with text in it. Point data.dataset at "
                "files with text, or use builtin:pydoc to try things out."
            )

    def _checked(self) -> Iterator[str]:
        """The pass as it is read; raises an `EffptError` for what is no text, or cannot be encoded."""
        for number, text in enumerate(self.read(), start=1):
            if text is not None:
                check_text(text, f"{self.name}, document {number:,}")
                yield text

    def in_parts(self) -> "Corpus":
        """The same text, of which each part of a long document counts as a document."""
        parts = copy(self)
        parts.read = lambda: map(str, self.parts())
        return parts

    def __repr__(self) -> str:
        return f"Corpus({self.name!r})"


def corpus_of(texts: Sequence[str], name: str = "texts in memory") -> Corpus:
    """Corpus of documents in memory."""
    documents = list(texts)
    for number, text in enumerate(documents, start=1):
        check_text(text, f"{name}, document {number:,}")

    num_bytes = sum(len(text.encode()) for text in documents)
    return Corpus(name, lambda: iter(documents), lambda: hash_of_texts(documents, name), num_bytes)


def open_corpus(
    dataset: Any,
    *,
    text_column: str = "text",
    split: str = "train",
    streaming: bool = False,
    documents: DocumentCut | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Corpus:
    """Opens a source of text.

    `dataset` may be

    - a folder of `.txt`, `.jsonl`, `.json` (an array of objects, or objects one after another), `.csv` and `.parquet`
      files, all but the last maybe packed (`.txt.gz`, `.jsonl.zst`), sub-folders included, in sorted order; if folders
      or files are named after splits (`validation/`, `train-00000.parquet`), only files of `split`;
    - one such file, or a pattern (`corpus/train-*.parquet`);
    - a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`;
    - `builtin:pydoc`, the English documentation of the Python packages installed on this machine;
    - a dataset on the Hub, `organisation/name`, or `organisation/name:configuration` if it has several;
    - a `Dataset`, `IterableDataset` or dictionary of them by split of `datasets`, or a `Corpus`, which is returned;
    - a list of such sources, whose documents follow one another; or of mappings `{"path": source, "weight": number}`:
      documents are drawn in proportion to the weights, in a fixed order, until one source has no more of them.

    Args:
        dataset (`str`, `Dataset`, `Corpus` or `list`): The source.
        text_column (`str`, *optional*, defaults to `"text"`): Column that holds the text.
        split (`str`, *optional*, defaults to `"train"`): Split to read, if the source has splits.
        streaming (`bool`, *optional*, defaults to `False`): If `True`, reads a Hub dataset during the download and
            keeps no copy; local sources are always streamed.
        documents (`str`, *optional*): Documents of a `.txt` file: `"blank_lines"`, what stands between blank lines;
            `"lines"`, each line that is not blank; `"file"`, the whole file. By default `"file"` if there are several
            of under a megabyte on average; else guessed from the first one: blank lines if it has some in its first
            megabyte, or is wrapped at a margin, and else lines. Other kinds of source are not cut.
        cache_dir (`str`, *optional*): Cache folder, by default `$HF_EFFPT_CACHE` or `~/.cache/hf_effpt`.

    Raises:
        EffptError: the source does not exist, cannot be reached, or has no such column.
    """
    if documents not in (None, *CUTS):
        raise EffptError(f"documents={documents!r} is no way to cut a file; choose one of {', '.join(CUTS)}.")
    if isinstance(dataset, Corpus):
        return dataset
    if isinstance(dataset, Loaded):
        heeds = {"text_column"} | ({"split"} if isinstance(dataset, dict) else set())
        return Corpus(*open_loaded(dataset, text_column, split), text_column, heeds=heeds)
    if isinstance(dataset, Mapping | list | tuple):
        sources, weights = parts_of_mixture([dataset] if isinstance(dataset, Mapping) else dataset)
        corpora = [
            open_corpus(
                one,
                text_column=text_column,
                split=split,
                streaming=streaming,
                documents=documents,
                cache_dir=cache_dir,
            )
            for one in sources
        ]
        return _mixture(corpora, weights, text_column, guessed=not documents)
    dataset = str(dataset)
    if dataset == "builtin:pydoc":
        return Corpus(dataset, *open_pydoc(cache_dir))
    if dataset.startswith("builtin:"):
        raise EffptError(f"There is no dataset {dataset!r}; the only one built in is builtin:pydoc.")
    refuse_rows(dataset)
    path, files, has_splits = Path(dataset).expanduser(), [], False
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        shown = dataset if len(dataset) <= SHOWN else f"{dataset[:SHOWN]}..."
        raise EffptError(
            f"The dataset {shown!r} cannot be a file or folder ({getattr(error, 'strerror', None) or error}). Give "
            "the path of one; texts themselves are a dataset as corpus_of([text, ...])."
        ) from error
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        *source, tables = open_saved(path, text_column, split, cache_dir)
        heeds = ["text_column", *(["split"] if (path / "dataset_dict.json").exists() else [])]
        return Corpus(dataset, *source, text_column, tables, heeds=heeds)
    elif path.is_dir():
        files, has_splits = files_of_folder(path, split)
    elif path.exists():
        files = [path]
    elif glob.has_magic(dataset):
        files = files_of_pattern(path)
    elif _looks_like_path(dataset):
        raise EffptError(
            f"There is no file or folder {dataset!r} (looked for {path.absolute()}). Give a file or folder of "
            f"{SUPPORTED}, a saved datasets folder, a Hub dataset `organisation/name`, or builtin:pydoc."
        )
    else:
        source = open_hub(dataset, text_column, split, streaming)
    if not files:
        heeds = ("text_column", "split", "streaming")
        return Corpus(dataset, *source, text_column, heeds=heeds, streaming=streaming)
    cut = cut_of(files, documents)
    source = open_files(files, text_column, cut, cache_dir)
    heeds = [key for key, does in (("split", has_splits), ("text_column", {*map(kind_of, files)} != {".txt"})) if does]
    return Corpus(dataset, *source, text_column, files, cut, guessed=not documents, heeds=heeds)


def _mixture(corpora: list[Corpus], weights: list[float] | None, text_column: str, guessed: bool) -> Corpus:
    files = [path for corpus in corpora for path in corpus.files]
    if twice := [path for path, times in Counter(path.resolve() for path in files).items() if times > 1]:
        raise EffptError(
            f"Several sources of the dataset read {twice[0]}, whose documents could then be held out and trained on. "
            "Name each source once; a weight makes its share larger."
        )
    *source, drawn = mixed(corpora, weights)
    cuts = {corpus.documents for corpus in corpora} - {None}
    return Corpus(
        " + ".join(corpus.name for corpus in corpora),
        *source,
        text_column,
        files,
        cuts.pop() if len(cuts) == 1 else None,
        guessed,
        drawn,
        {key for corpus in corpora for key in corpus.heeds},
        corpora,
        any(corpus.streaming for corpus in corpora),
    )


def _looks_like_path(dataset: str) -> bool:
    """`True` unless `dataset` can be a Hub id: `name` or `organisation/name`, with an optional `:configuration`."""
    is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?", dataset)
    return not is_id or kind_of(Path(dataset)) is not None
