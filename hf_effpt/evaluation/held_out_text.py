"""Held-out rows of an exported model, found by the record of its run, and its loss on them."""

import glob
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_effpt.core.clock import scheduled
from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json
from hf_effpt.core.objectives import OBJECTIVES, objective_in
from hf_effpt.data.corpus import open_corpus
from hf_effpt.data.file_readers import kind_of
from hf_effpt.data.mixture import parts_of_mixture
from hf_effpt.data.packing import PackedRows, facts, pack
from hf_effpt.data.shards.opening import is_rows, open_rows

from .held_out_loss import fixed_mask_batches, held_out_loss, unigram_floor

logger = logging.getLogger(__name__)


def run_of(folder: Path) -> dict[str, Any]:
    """Content of `run.json`; a generator has that of its run's folder; empty if there is none."""
    path = (folder.resolve().parent if is_auxiliary(folder) else folder) / "run.json"
    return read_json(path) if path.is_file() else {}


def is_auxiliary(folder: Path) -> bool:
    """`True` for a model exported beside the main one of a run, such as a generator."""
    folder = folder.resolve()
    return folder.name == "generator" and not (folder / "run.json").is_file()


def unread_mask(folder: Path) -> str | None:
    """Note on masked-token predictions of a model that has never read the mask token; `None` for others."""
    objective = objective_in(run_of(folder))
    if is_auxiliary(folder) or OBJECTIVES[objective].reads_mask:
        return None
    return f"pre-trained by `{objective}`, it has never read the mask token: its predictions there measure nothing"


@dataclass(frozen=True)
class HeldOutText:
    """Packed rows that a model has not been trained on.

    `name` is the text, as `data.dataset` takes it; `train` are the rows the run was trained on, if they are known;
    `notes` are caveats.
    """

    name: str
    rows: Dataset
    train: Dataset | None
    notes: tuple[str, ...]


def held_out_text(folder: Path, tokenizer: PreTrainedTokenizerFast, text: str | None, readable: int) -> HeldOutText:
    """Opens the text that the loss of a model is measured on.

    Without `text`, it is what the run held out, whose `run.json` is in the model's `folder` or its parent. `text`, as
    `data.dataset` takes it, gives its validation split, if it has splits, in rows as long as the run's first, or 128
    tokens, but at most `readable`, the longest text in tokens that the model can read.

    Raises an `EffptError` if there is no such text, or it has changed since the run.
    """
    run = run_of(folder)
    settings = (run.get("recipe") or {}).get("data") or {}
    packing = {key: settings[key] for key in ("isolate_documents", "cache_dir", "num_proc") if key in settings}
    length = int(scheduled(settings.get("sequence_length", 128), "data.sequence_length")[0.0])
    if text is not None:
        same = {key: settings[key] for key in ("text_column", "documents") if key in settings}
        corpus = open_corpus(text, split="validation", **same)
        rows = pack(corpus, tokenizer, validation=None, sequence_length=min(length, readable), **packing)
        return HeldOutText(text, rows["train"], None, (f"on {text}, not on what a run of the model held out",))
    if "dataset" not in settings:
        raise EffptError(
            f"{folder} does not say what text its run held out (no recipe in run.json); name some by `--text`."
        )
    if is_rows(settings["dataset"]):
        rows, name = open_rows(settings["dataset"]), settings["dataset"]
    else:
        rows, name = _packed_as_then(folder, tokenizer, run, packing | {"sequence_length": length})
    if "validation" not in rows:
        raise EffptError(f"The run of {folder} held out no text; name some by `--text`.")
    notes = []
    before, now = fingerprint_in(run), facts(rows["train"])["fingerprint"]
    if before is None:
        notes.append("the run did not record which text it was trained on, so that none of this is in it is unchecked")
    elif before != now:
        raise EffptError(
            f"{name!r} or the tokenizer in {folder} has changed since the run (fingerprint {before}, "
            f"now {now}), or another version of hf_effpt packed them: the model may have seen what is now held out. "
            "Restore it, or name text that it has not seen by `--text`."
        )
    return HeldOutText(name, rows["validation"], rows["train"], tuple(notes))


def _packed_as_then(
    folder: Path, tokenizer: PreTrainedTokenizerFast, run: dict[str, Any], packing: dict[str, Any]
) -> tuple[DatasetDict, str]:
    """Rows of the text of a run, packed as the run did, and its name; `folder` is for errors."""
    settings = run["recipe"]["data"]
    dataset, validation = settings["dataset"], _validation_in(settings)
    for sources in (dataset, validation):
        for source in parts_of_mixture(sources)[0] if isinstance(sources, list) else [sources]:
            if isinstance(source, str):
                _check_source(source, folder)
    # Cut as then, whatever would be guessed now.
    told, asked = run.get("data") or {}, settings.get("documents")
    reading = {key: settings[key] for key in ("text_column", "streaming", "cache_dir") if key in settings}
    corpus = open_corpus(
        dataset, split=settings.get("split", "train"), documents=asked or told.get("documents_by"), **reading
    )
    if isinstance(validation, str | list):
        cut = asked or (told.get("held_out") or {}).get("documents_by")
        validation = open_corpus(validation, split="validation", documents=cut, **reading)
    return pack(corpus, tokenizer, validation=validation, **packing), corpus.name


def evaluate_loss(text: HeldOutText, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Measures the held-out loss with the fixed masks, and the unigram floor if the training rows are known.

    Returns:
        `held_out_loss` (nats per masked token; `None` if the model has diverged), `masked_tokens`, `text`, `notes`,
        and `unigram_floor` or `None`.
    """
    found = held_out_loss(model, fixed_mask_batches(text.rows, tokenizer, batch_size=64))
    finite = math.isfinite(found.total)
    floor = None
    if text.train is not None:
        floor = unigram_floor(PackedRows(text.train), found.label_counts, tokenizer.all_special_ids)
    return {
        "held_out_loss": found.total / found.masked if finite else None,
        "masked_tokens": found.masked,
        "text": text.name,
        "notes": [*text.notes, *([] if finite else ["diverged"])],
        "unigram_floor": floor,
    }


def fingerprint_in(run: dict[str, Any]) -> str | None:
    """Fingerprint of the text, tokenizer and packing of a run, whichever of its documents were selected."""
    known = run.get("data") or {}
    return (known.get("select") or {}).get("unselected_fingerprint", known.get("fingerprint"))


def _check_source(dataset: str, folder: Path) -> None:
    """Raises an `EffptError` if a run's text is not here, unless its name can be one on the Hub."""
    if dataset.startswith("builtin:") or glob.has_magic(dataset) or Path(dataset).expanduser().exists():
        return
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?", dataset) or kind_of(Path(dataset)):
        raise EffptError(
            f"The run of {folder} was made on {dataset!r}, of which nothing is here ({Path(dataset).absolute()}). "
            "Evaluate from the folder that the run was started in, or name held-out text by `--text`."
        )
    logger.warning("%s is no folder here; asking the Hub for a dataset of that name", dataset)


def _validation_in(settings: dict[str, Any]) -> float | str | list[Any] | None:
    """`data.validation` as `pack` takes it."""
    wanted = settings.get("validation", "0.01")
    if isinstance(wanted, list):
        return wanted
    try:
        return float(wanted) or None
    except ValueError:
        return wanted
