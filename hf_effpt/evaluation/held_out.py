"""The held-out rows of an exported model, found again by what its run recorded."""

import glob
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json
from hf_effpt.core.objectives import OBJECTIVES, objective_in
from hf_effpt.data.corpus import open_corpus
from hf_effpt.data.packing import PackedRows, facts, pack
from hf_effpt.data.readers import READERS

from .loss import fixed_mask_batches, held_out_loss, unigram_floor

logger = logging.getLogger(__name__)


def run_of(folder: Path) -> dict[str, Any]:
    """The content of `run.json`; of a generator that of the run whose folder it is in; empty where there is none."""
    path = (folder.resolve().parent if is_auxiliary(folder) else folder) / "run.json"
    return read_json(path) if path.is_file() else {}


def is_auxiliary(folder: Path) -> bool:
    """Whether a model was exported beside the main one of a run, as generators are."""
    folder = folder.resolve()
    return folder.name == "generator" and not (folder / "run.json").is_file()


def unread_mask(folder: Path) -> str | None:
    """What to know of masked-token predictions by a model that has never read the mask token."""
    objective = objective_in(run_of(folder))
    if is_auxiliary(folder) or OBJECTIVES[objective].reads_mask:
        return None
    return (
        f"pre-trained by `{objective}`, it has never read the mask token: what it predicts there is no measure of it"
    )


@dataclass(frozen=True)
class HeldOutText:
    """Rows that a model has not been trained on.

    Args:
        name (`str`): of the text, as `data.dataset` takes it.
        rows (`Dataset`): packed.
        train (`Dataset`, *optional*): the rows that the run was trained on, where they are known.
        notes (`tuple[str, ...]`): what to know of them.
    """

    name: str
    rows: Dataset
    train: Dataset | None
    notes: tuple[str, ...]


def held_out_text(folder: Path, tokenizer: PreTrainedTokenizerFast, text: str | None, readable: int) -> HeldOutText:
    """The text that the loss of a model is measured on.

    Args:
        folder (`Path`): of the model, with the `run.json` of its run, or in the folder of that, if `text` is not
            given.
        tokenizer: what is in it.
        text (`str`, *optional*): text to evaluate on, as `data.dataset` takes it, of a source with splits its
            validation split; by default what the run held out.
        readable (`int`): tokens that the model can read; rows of `text` are as long as those of the run, or 128
            tokens, but no longer than this.

    Raises:
        EffptError: there is no such text, or it is no longer what the run was trained on.
    """
    run = run_of(folder)
    settings = (run.get("recipe") or {}).get("data") or {}
    packing = {key: settings[key] for key in ("isolate_documents", "cache_dir", "num_proc") if key in settings}
    length = settings.get("sequence_length", 128)
    if text is not None:
        corpus = open_corpus(text, split="validation", text_column=settings.get("text_column", "text"))
        rows = pack(corpus, tokenizer, validation=None, sequence_length=min(length, readable), **packing)
        return HeldOutText(text, rows["train"], None, (f"on {text}, not on what a run of the model held out",))
    if "dataset" not in settings:
        raise EffptError(
            f"{folder} does not say what text its run held out (no recipe in run.json); name some by `--text`."
        )
    dataset, validation = settings["dataset"], _held_out(settings)
    for source in (dataset, validation):
        if isinstance(source, str):
            _check_source(source, folder)
    reading = {key: settings[key] for key in ("text_column", "split", "streaming") if key in settings}
    rows = pack(open_corpus(dataset, **reading), tokenizer, validation=validation, sequence_length=length, **packing)
    if "validation" not in rows:
        raise EffptError(f"The run of {folder} held out no text; name some by `--text`.")
    notes = []
    before, now = fingerprint_in(run), facts(rows["train"])["fingerprint"]
    if before is None:
        notes.append("the run did not record which text it was trained on, so that none of this is in it is unchecked")
    elif before != now:
        raise EffptError(
            f"{dataset!r} or the tokenizer in {folder} has changed since the run (fingerprint {before}, now {now}): "
            "what is held out of it now may be what the model was trained on. Restore it, or name text that the run "
            "has not seen by `--text`."
        )
    return HeldOutText(dataset, rows["validation"], rows["train"], tuple(notes))


def evaluate_loss(
    text: HeldOutText, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_size: int = 64
) -> dict[str, Any]:
    """Held-out loss with the fixed masks, and the unigram floor where the training rows are known.

    Args:
        text ([`HeldOutText`]): what is measured on.
        model, tokenizer: of one folder.

    Returns:
        `held_out_loss` (nats a masked token; `None` if the model has diverged), `masked_tokens`, `text`, `notes`, and
        `unigram_floor` or `None`.
    """
    found = held_out_loss(model, fixed_mask_batches(text.rows, tokenizer, batch_size))
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
    """What tells the text, tokenizer and packing of a run from others, whichever of its documents were selected."""
    known = run.get("data") or {}
    return (known.get("select") or {}).get("unselected_fingerprint", known.get("fingerprint"))


def _check_source(dataset: str, folder: Path) -> None:
    """Raises an `EffptError` for text of a run that is not here, rather than ask the Hub for the name of a folder."""
    if dataset.startswith("builtin:") or glob.has_magic(dataset) or Path(dataset).expanduser().exists():
        return
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?", dataset) or Path(dataset).suffix in READERS:
        raise EffptError(
            f"The run of {folder} was made on {dataset!r}, of which nothing is here ({Path(dataset).absolute()}). "
            "Evaluate from the folder that the run was started in, or name held-out text by `--text`."
        )
    logger.warning("%s is no folder here; asking the Hub for a dataset of that name", dataset)


def _held_out(settings: dict[str, Any]) -> float | str | None:
    """What `data.validation` says, as `pack` takes it."""
    wanted = settings.get("validation", "0.01")
    try:
        return float(wanted) or None
    except ValueError:
        return wanted
