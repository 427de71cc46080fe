"""The held-out rows of an exported model, found again by what its run recorded."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_effpt.core.errors import EffptError
from hf_effpt.data.corpus import open_corpus
from hf_effpt.data.packing import PackedRows, pack

from .loss import fixed_mask_batches, held_out_loss, unigram_floor


def run_of(folder: Path) -> dict[str, Any]:
    """The content of `run.json`; empty where there is none."""
    path = folder / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def evaluate_loss(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str | None, batch_size: int = 64
) -> dict[str, Any]:
    """Held-out loss with the fixed masks, and the unigram floor where the training rows are known.

    Args:
        folder (`Path`): of the model, with the `run.json` of its run if `text` is not given.
        model, tokenizer: what is in it.
        text (`str`, *optional*): text to evaluate on, as `data.dataset` takes it; by default what the run held out.

    Returns:
        `held_out_loss` (nats a masked token), `masked_tokens`, `text`, and `unigram_floor` or `None`.

    Raises:
        EffptError: if there is no text to evaluate on.
    """
    settings = (run_of(folder).get("recipe") or {}).get("data") or {}
    packing = {
        key: settings[key]
        for key in ("sequence_length", "isolate_documents", "cache_dir", "num_proc")
        if key in settings
    }
    reading = {key: settings[key] for key in ("text_column", "split", "streaming") if key in settings}
    if text is not None:
        rows = pack(open_corpus(text), tokenizer, validation=None, **packing)
        held_out, train = rows["train"], None
    else:
        if "dataset" not in settings:
            raise EffptError(
                f"{folder} does not say what text its run held out (no recipe in run.json); name some by `--text`."
            )
        rows = pack(open_corpus(settings["dataset"], **reading), tokenizer, validation=_held_out(settings), **packing)
        if "validation" not in rows:
            raise EffptError(f"The run of {folder} held out no text; name some by `--text`.")
        held_out, train = rows["validation"], rows["train"]
    found = held_out_loss(model, fixed_mask_batches(held_out, tokenizer, batch_size))
    floor = None
    if train is not None:
        floor = unigram_floor(PackedRows(train), found.label_counts, tokenizer.all_special_ids)
    return {
        "held_out_loss": found.total / found.masked,
        "masked_tokens": found.masked,
        "text": text or settings["dataset"],
        "unigram_floor": floor,
    }


def _held_out(settings: dict[str, Any]) -> float | str | None:
    """What `data.validation` says, as `pack` takes it."""
    wanted = settings.get("validation", "0.01")
    try:
        return float(wanted) or None
    except ValueError:
        return wanted
