"""Frozen models that methods compare the trained model with, and the cost of their training."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json
from hf_effpt.data.packed_rows import PackedRows
from hf_effpt.data.packing import facts
from hf_effpt.models.build import trainable_from

UNITS = ("seconds", "flops", "tokens", "joules", "reference_seconds")  # units of a clock


def load_reference(folder: str, vocab_size: int, tokenizer: Any, dataset: Any) -> Any:
    """Loads the frozen masked language model in `folder`, as `effpt pretrain` leaves it.

    Raises `EffptError` if there is none, its vocabulary is not that of `vocab_size` and `tokenizer`, or its rows are
    shorter than those of `dataset`.
    """
    if not Path(folder).is_dir():
        raise EffptError(
            f"The model to compare with is to be in {folder!r}, and there is no such folder; give that of a run of "
            "`effpt pretrain` (`selection.holdout`)."
        )
    model = None
    try:
        kinds = AutoConfig.from_pretrained(folder).architectures or []
        if (found := next(filter(None, map(trainable_from, kinds)), None)) is not None:
            model = found.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise EffptError(
            f"The model to compare with cannot be loaded from {folder!r} ({str(error).splitlines()[0]}); give the "
            "folder of a run of `effpt pretrain`."
        ) from error
    if model is None:
        raise EffptError(
            f"The model to compare with in {folder!r} is a {', '.join(kinds) or 'model without a head'}, and needed "
            "is a `BertForMaskedLM` or `ModernBertForMaskedLM`, as `effpt pretrain` with `objective: mlm` leaves it."
        )
    known = None
    if (Path(folder) / "tokenizer.json").is_file():
        known = AutoTokenizer.from_pretrained(folder).get_vocab()
    if model.config.vocab_size != vocab_size or (known is not None and known != tokenizer.get_vocab()):
        raise EffptError(
            f"The model to compare with in {folder!r} has another vocabulary ({model.config.vocab_size:,} rows, here "
            f"{vocab_size:,}, or other tokens), so that their losses are of different things; train it with the "
            "tokenizer of this run (`data.tokenizer`)."
        )
    length = PackedRows(dataset).sequence_length if PackedRows.fits(dataset) else 0
    if length > (most := model.config.max_position_embeddings):
        raise EffptError(
            f"The model to compare with in {folder!r} reads {most} tokens at most, and rows have {length}; train "
            "one with as large a `model.max_position_embeddings`, or pack shorter rows."
        )
    return model.eval().requires_grad_(False)


def record_in(folder: str) -> tuple[dict[str, Any], dict[str, float]] | None:
    """Content of `run.json` in `folder`, and the cost of that run by unit of a clock; `None` if the file is missing.

    Raises `EffptError` if it cannot be read.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        return None
    try:
        record = dict(read_json(path))
        cost = {unit: float(record["clock"].get(unit) or 0.0) for unit in UNITS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EffptError(f"{path} cannot be read ({error!r}), so what that run has cost is not known.") from error
    return record, cost | {"reference_seconds": cost["reference_seconds"] or cost["seconds"]}


def has_seen(record: dict[str, Any], dataset: Any) -> bool:
    """Returns `True` if a run is known to have trained on these rows, by fingerprint."""
    try:
        return (record.get("data") or {}).get("fingerprint") == facts(dataset)["fingerprint"]
    except (EffptError, AttributeError):  # rows not packed by this package, or no rows
        return False
