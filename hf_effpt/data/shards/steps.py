"""Steps of datatrove pipelines that pack text: tokens of each task, held-out documents, rows of each task, manifest.

Each step leaves a folder that is whole or not there, so that a pipeline that was killed goes on where it was.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from transformers import AutoTokenizer

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, write_json
from hf_effpt.data.cache import build_once, is_whole
from hf_effpt.data.corpus import Corpus
from hf_effpt.data.packing import Packing, RowSettings
from hf_effpt.data.row_writer import RowWriter
from hf_effpt.data.token_file import Count, TokenFile, TokenFiles
from hf_effpt.data.tokenizer_report import tokenizer_report

from .opening import FORMAT, MANIFEST, TOKENIZER, hash_of, open_rows
from .pieces import pieces_of
from .plan import Plan

HELD_OUT, VALIDATION, COUNTS = "held_out", "validation", "counts.json"
# Bytes of text for the statistics of the tokenizer, from so many pieces.
LOOKED, FROM = 2**20, 16
ELSEWHERE = "name another folder with --out"


class FolderStep(PipelineStep):
    """Step of the packing into a `folder`, whose plan says what is to be done."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder


class ReadDocuments(FolderStep):
    """Yields the documents of a task, long ones in several `Document`s, as plain text of the corpus's files."""

    type, name = "READER", "corpus"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        corpus = Plan.read(self.folder).text_of(rank)
        for number, text in enumerate(corpus.read()):
            self.stat_update("strings")
            yield Document(text=text, id=f"{rank}/{number}")


class WriteTokens(FolderStep):
    """Tokenises the documents of a task, on so many `threads`, and writes their tokens, sizes and content keys."""

    type, name = "TOKENIZER", "token file"

    def __init__(self, folder: Path, threads: int | None):
        super().__init__(folder)
        self.threads = threads

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        plan = Plan.read(self.folder)
        encoder = plan.row_settings(self.threads).encoder
        corpus = Corpus(plan.text_of(rank).name, lambda: (document.text for document in data), lambda: "")

        def fill(target: Path) -> None:
            TokenFile(target, encoder).fill(corpus, empty_ok=True)
            plan.check_unchanged(plan.corpus)

        build_once(plan.tokens(rank), fill, str, ELSEWHERE)


class HoldOut(FolderStep):
    """Chooses the documents that are held out, the same as a run that packs the text itself, in one task."""

    type, name = "FILTER", "held-out documents"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        plan = Plan.read(self.folder)
        settings = plan.row_settings()

        def choose(target: Path) -> None:
            text = TokenFiles([TokenFile(plan.tokens(task), settings.encoder) for task in range(len(plan.tasks))])
            if not text.documents:
                raise EffptError(f"The dataset {plan.name!r} is empty: it holds no document with text in it.")
            named = Corpus(plan.name, lambda: iter(()), lambda: "")
            chosen, counted = Packing(named, settings, plan.settings.validation).choose(text)
            np.packbits(chosen["validation"]).tofile(target / "chosen.bin")
            text.write_keys(target / "keys.bin", chosen["validation"])
            counts = {split: count._asdict() for split, count in {**counted, "all": text.count()}.items()}
            write_json(target / COUNTS, {**counts, "documents": [file.documents for file in text.files]})

        build_once(plan.folder / HELD_OUT, choose, str, ELSEWHERE)


class WriteRows(FolderStep):
    """Packs the training documents of a task into one shard of rows, and puts its held-out ones beside them."""

    type, name = "WRITER", "packed rows"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        plan = Plan.read(self.folder)
        settings = plan.row_settings()

        def write(target: Path) -> None:
            text = TokenFile(plan.tokens(rank), settings.encoder)
            aside = _held_out_of(plan, rank)
            if text.documents != len(aside):
                raise EffptError(f"{plan.folder} has tokens of other text; pack it anew: {plan.command} --out ANOTHER")
            writer = _write_rows(target / "train.arrow", settings, text, ~aside)
            text.write_chosen(target / "aside", aside)
            counted = text.count(~aside)._asdict()
            counted |= {"rows": writer.rows, "row_tokens": writer.tokens, "doubles": _doubles(plan, text, ~aside)}
            write_json(target / COUNTS, counted)

        build_once(plan.shard(rank), write, str, ELSEWHERE)
        self.stat_update("rows", value=read_json(plan.shard(rank) / COUNTS)["rows"])
        shutil.rmtree(plan.tokens(rank), ignore_errors=True)


class Finish(FolderStep):
    """Packs the held-out documents of all tasks, and writes the manifest, which says that all is there."""

    type, name = "WRITER", "manifest"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        plan = Plan.read(self.folder)
        settings, tasks = plan.row_settings(), range(len(plan.tasks))
        for task in tasks:
            if not is_whole(plan.shard(task)):
                raise EffptError(f"The shard {plan.shard(task)} is missing or damaged; go on with: {plan.command}")

        def write(target: Path) -> None:
            aside = TokenFiles([TokenFile(plan.shard(task) / "aside", settings.encoder) for task in tasks])
            writer = _write_rows(target / "validation.arrow", settings, aside, np.ones(aside.documents, bool))
            write_json(target / COUNTS, {"rows": writer.rows, "row_tokens": writer.tokens})

        held_out = read_json(plan.folder / HELD_OUT / COUNTS)
        shards = [read_json(plan.shard(task) / COUNTS) for task in tasks]
        counted = {key: sum(shard[key] for shard in shards) for key in shards[0]}
        folders = [str(plan.shard(task).relative_to(plan.folder)) for task in tasks]
        splits: dict[str, Any] = {"train": self._split(plan, "train", folders, counted)}
        if plan.settings.validation is not None:
            folder = build_once(plan.folder / VALIDATION, write, str, ELSEWHERE)
            own = {**held_out["validation"], **read_json(folder / COUNTS)}
            splits["validation"] = self._split(plan, "validation", [VALIDATION], own)
            aside, every = Count(**held_out["validation"]), Count(**held_out["all"])
            splits["train"]["facts"]["held_out"] = aside._asdict() | {
                "asked": plan.settings.validation, "share": aside.tokens / every.tokens, "of": every.documents
            }  # fmt: skip
            splits["train"]["facts"]["doubles"] = counted["doubles"]
        tokenizer = AutoTokenizer.from_pretrained(plan.folder / TOKENIZER)
        report = tokenizer_report(tokenizer, _some_text(plan), max_bytes=LOOKED)
        manifest = {"format": FORMAT, "command": plan.command, "settings": plan.facts()["settings"], "splits": splits}
        write_json(plan.folder / MANIFEST, {**manifest, "tokenizer": vars(report)})
        open_rows(plan.folder)
        shutil.rmtree(plan.folder / "tokens", ignore_errors=True)

    def _split(self, plan: Plan, split: str, folders: list[str], counted: dict[str, int]) -> dict[str, Any]:
        """Facts of a split, as of one that `pack` makes, and its shards."""
        own = plan.settings
        hashes = [hash_of(plan.folder / folder, split) for folder in folders]
        rows = [read_json(plan.folder / folder / COUNTS)["rows"] for folder in folders]
        told = [FORMAT, plan.row_settings().key, own.validation, hashes]
        cut = plan.corpus.documents
        known = {
            "fingerprint": f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]}-{split}",
            "dataset": plan.name,
            "documents": counted["documents"],
            "bytes": counted["bytes"],
            "rows": counted["rows"],
            "tokens": counted["row_tokens"],
            "sequence_length": own.sequence_length,
            "isolated": own.isolate_documents,
            "fill": counted["row_tokens"] / max(1, counted["rows"] * own.sequence_length),
            **({"documents_by": cut} if cut is not None else {}),
        }
        shards = [
            {"folder": folder, "rows": number, "sha256": digest}
            for folder, number, digest in zip(folders, rows, hashes, strict=True)
        ]
        return {"facts": known, "shards": shards}


def _write_rows(file: Path, settings: RowSettings, text: TokenFile | TokenFiles, chosen: np.ndarray) -> RowWriter:
    """Packs the chosen documents into rows; returns the writer, which has counted them."""
    with RowWriter(file, settings.builder()) as writer:
        for run in text.runs():
            writer.add(*run.of(chosen))
    return writer


def _held_out_of(plan: Plan, task: int) -> np.ndarray:
    """`True` for the documents of a task that are held out."""
    folder = plan.folder / HELD_OUT
    documents = read_json(folder / COUNTS)["documents"]
    first = sum(documents[:task])
    skipped, count = divmod(first, 8)
    bits = np.fromfile(folder / "chosen.bin", np.uint8, -(-(count + documents[task]) // 8), offset=skipped)
    return np.unpackbits(bits)[count : count + documents[task]].astype(bool)


def _some_text(plan: Plan) -> Iterator[str]:
    """Text from the beginnings of pieces, first of some that are evenly spaced."""
    pieces = pieces_of(plan.corpus)
    for piece in (*pieces[:: -(-len(pieces) // FROM)], *pieces):
        left = LOOKED // FROM
        for text in piece.parts(empty_ok=True):
            yield text[:left]
            left -= len(text)
            if left <= 0:
                break


def _doubles(plan: Plan, text: TokenFile, chosen: np.ndarray) -> int:
    """Number of the chosen documents that equal held-out ones."""
    aside = np.unique(np.fromfile(plan.folder / HELD_OUT / "keys.bin", np.uint64))
    return sum(int(np.isin(keys, aside).sum()) for keys in text.keys(chosen))
