"""Plan of a packing: its settings and tasks, the first file in its folder, read by each task."""

import shlex
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, write_json
from hf_effpt.data.corpus import Corpus, open_corpus
from hf_effpt.data.packing import RowSettings

from .opening import FORMAT, PLAN, TOKENIZER, read_manifest
from .pieces import joined_pieces, pieces_of, tasks_of

# Flags of `effpt pack` for the settings, whose values follow them unless they are `True` or `False`.
FLAGS = {
    "sequence_length": "--sequence_length", "isolate_documents": "--isolate_documents", "validation": "--validation",
    "text_column": "--text_column", "split": "--split", "streaming": "--streaming", "documents": "--documents",
    "tokenizer": "--tokenizer", "vocab_size": "--vocab_size", "kind": "--kind", "lowercase": "--cased",
    "strip_accents": "--strip_accents", "tasks": "--tasks",
}  # fmt: skip


@dataclass(frozen=True)
class PackSettings:
    """Text and settings of a packing, by the arguments of [`pack_shards`], which explains them."""

    dataset: Any
    sequence_length: int = 128
    isolate_documents: bool = False
    validation: float | None = 0.01
    text_column: str = "text"
    split: str = "train"
    streaming: bool = False
    documents: str | None = None
    tokenizer: str | None = None
    vocab_size: int = 8192
    kind: str = "wordpiece"
    lowercase: bool = True
    strip_accents: bool | None = None
    tasks: int | None = None

    def open(self, dataset: Any) -> Corpus:
        """Opens the text, named by `dataset`."""
        keys = ("text_column", "split", "streaming", "documents")
        return open_corpus(dataset, **{key: getattr(self, key) for key in keys})

    def command(self, out: str) -> str:
        """The command, or call, that packs with these settings."""
        changed = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "dataset"}
        changed = {key: value for key, value in changed.items() if value != getattr(PackSettings, key)}
        if not isinstance(self.dataset, str):
            values = "".join(f", {key}={value!r}" for key, value in changed.items())
            return f"pack_shards({self.dataset!r}, {out!r}{values})"
        words = ["effpt", "pack", self.dataset, "--out", out]
        for key, value in changed.items():
            flag = "--no-strip_accents" if key == "strip_accents" and not value else FLAGS[key]
            words += [flag] if isinstance(value, bool) else [flag, str(value or 0)]
        return shlex.join(words)


@dataclass(frozen=True)
class Plan:
    """Settings and tasks of a packing.

    `dataset` is the text with absolute paths; `tasks` are the pieces of each task, the first and the one after the
    last; `content` tells whether the text is still the same: stamps of its files, or its fingerprint.
    """

    folder: Path
    settings: PackSettings
    dataset: Any
    tasks: list[tuple[int, int]]
    content: Any
    command: str

    @classmethod
    def make(cls, settings: PackSettings, out: str) -> "Plan":
        """Plans the packing of a text; raises the `EffptError` of text that cannot be opened."""
        dataset = absolute(settings.dataset)
        corpus = settings.open(dataset)
        pieces = pieces_of(corpus)
        tasks = tasks_of(pieces, settings.tasks)
        return cls(Path(out).expanduser(), settings, dataset, tasks, content_of(corpus), settings.command(out))

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """Reads the plan of a folder that has one."""
        found = read_json(folder / PLAN)
        if found.get("format") != FORMAT:
            read_manifest(folder)  # says so
        settings = PackSettings(**found["settings"])
        tasks = [tuple(task) for task in found["tasks"]]
        return cls(folder, settings, found["dataset"], tasks, found["content"], found["command"])

    def write(self) -> None:
        """Writes the plan into its folder."""
        write_json(self.folder / PLAN, {"format": FORMAT, **self.facts()})

    def facts(self) -> dict[str, Any]:
        """The plan as JSON holds it."""
        told = {"command": self.command, "settings": asdict(self.settings), "dataset": self.dataset}
        return {**told, "tasks": [list(task) for task in self.tasks], "content": self.content}

    @property
    def name(self) -> str:
        """Name of the text in reports, as it was given."""
        return names_in(self.settings.dataset)

    @cached_property
    def corpus(self) -> Corpus:
        """The whole text; raises an `EffptError` if it is another one than was planned."""
        corpus = self.settings.open(self.dataset)
        self.check_unchanged(corpus)
        return corpus

    def check_unchanged(self, corpus: Corpus) -> None:
        """Raises an `EffptError` if a corpus is not, or no more, the text that was planned."""
        if content_of(corpus) != self.content:
            raise EffptError(
                f"The text {self.settings.dataset!r} has changed since {self.folder} was begun. Restore it, or pack "
                f"it into another folder: {self.command} --out ANOTHER"
            )

    def text_of(self, task: int) -> Corpus:
        """The text of a task."""
        first, end = self.tasks[task]
        name = f"{self.corpus.name}, task {task + 1} of {len(self.tasks)}"
        return joined_pieces(pieces_of(self.corpus)[first:end], name)

    def row_settings(self, threads: int | None = None) -> RowSettings:
        """Settings of the rows, with the tokenizer."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder / TOKENIZER)
        own = self.settings
        return RowSettings(tokenizer, own.sequence_length, own.isolate_documents, self.folder, threads)

    def shard(self, task: int) -> Path:
        """Folder of the training rows of a task."""
        return self.folder / "shards" / f"{task:05d}"

    def tokens(self, task: int) -> Path:
        """Folder of the tokens of a task, until its rows are made of them."""
        return self.folder / "tokens" / f"{task:05d}"


def content_of(corpus: Corpus) -> Any:
    """Names, sizes and times of the files of a corpus; of others, their fingerprint. It reads no text."""
    if not corpus.files:
        return corpus.fingerprint
    stats = [path.stat() for path in corpus.files]
    return [[str(path), one.st_size, one.st_mtime_ns] for path, one in zip(corpus.files, stats, strict=True)]


def absolute(dataset: Any) -> Any:
    """The names of a dataset, with absolute paths for files and folders, so that tasks may run in any folder."""
    if isinstance(dataset, dict):
        return {**dataset, "path": absolute(dataset.get("path"))}
    if isinstance(dataset, list | tuple):
        return [absolute(one) for one in dataset]
    if not isinstance(dataset, str):
        raise EffptError(
            f"{dataset!r} is a {type(dataset).__name__}, which other processes cannot open by a name; give a file, "
            "folder, Hub dataset, or a list of them. `pack` packs what is in memory."
        )
    path = Path(dataset).expanduser()
    return str(path.absolute()) if path.exists() or path.is_absolute() or "*" in dataset else dataset


def names_in(dataset: Any) -> str:
    """Names of the sources of a dataset, which is one, a mapping with its `path`, or a list."""
    if isinstance(dataset, dict):
        return names_in(dataset["path"])
    return " + ".join(map(names_in, dataset)) if isinstance(dataset, list | tuple) else str(dataset)
