"""Models that a method compares the trained one with: loaded once, never changed, and paid for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json
from hf_effpt.data.packing import facts
from hf_effpt.models.bert import EffptBertForMaskedLM
from hf_effpt.models.configuration_effpt import EffptBertConfig

UNITS = ("seconds", "flops", "tokens", "joules", "reference_seconds")  # that a run may be charged in
LEFT_OUT = ("model_type", "architectures", "transformers_version")  # what a configuration says of its class


def load_reference(folder: str, vocab_size: int, tokenizer: Any) -> Any:
    """The frozen masked language model in a folder.

    Args:
        folder (`str`): as `effpt pretrain` leaves it.
        vocab_size (`int`): of the model that is trained.
        tokenizer: what it is trained with.

    Raises:
        EffptError: if there is none, or it has another vocabulary.
    """
    if not Path(folder).is_dir():
        raise EffptError(
            f"The model to compare with is to be in {folder!r}, and there is no such folder; give that of a run of "
            "`effpt pretrain` (`selection.holdout`)."
        )
    with _or_refused(folder):
        stock = AutoConfig.from_pretrained(folder)
    kinds = stock.architectures or []
    if "BertForMaskedLM" not in kinds:
        raise EffptError(
            f"The model to compare with in {folder!r} is a {', '.join(kinds) or 'model without a head'}, and needed "
            "is a `BertForMaskedLM`, as `effpt pretrain` leaves with `model.objective: mlm`."
        )
    own = {key: value for key, value in stock.to_dict().items() if key not in LEFT_OUT}
    with _or_refused(folder):
        model = EffptBertForMaskedLM.from_pretrained(folder, config=EffptBertConfig(**own))
    known = None
    if (Path(folder) / "tokenizer.json").is_file():
        known = AutoTokenizer.from_pretrained(folder).get_vocab()
    if model.config.vocab_size != vocab_size or (known is not None and known != tokenizer.get_vocab()):
        raise EffptError(
            f"The model to compare with in {folder!r} has another vocabulary ({model.config.vocab_size:,} rows, here "
            f"{vocab_size:,}, or other tokens), so that their losses are of different things; train it with the "
            "tokenizer of this run (`data.tokenizer`)."
        )
    return model.eval().requires_grad_(False)


@contextmanager
def _or_refused(folder: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise EffptError(
            f"The model to compare with cannot be loaded from {folder!r} ({str(error).splitlines()[0]}); give the "
            "folder of a run of `effpt pretrain`."
        ) from error


def record_in(folder: str) -> dict[str, Any] | None:
    """What the run in a folder says of itself, if it does.

    Raises:
        EffptError: if its `run.json` cannot be read.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        return None
    try:
        return dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise _unread(folder, error) from error


def cost_in(record: dict[str, Any], folder: str) -> dict[str, float]:
    """What a run has spent, by unit of a clock, from what it says of itself in `folder`.

    Raises:
        EffptError: if it does not say.
    """
    try:
        cost = {unit: float(record["clock"].get(unit) or 0.0) for unit in UNITS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unread(folder, error) from error
    return cost | {"reference_seconds": cost["reference_seconds"] or cost["seconds"]}


def _unread(folder: str, error: Exception) -> EffptError:
    return EffptError(
        f"{Path(folder) / 'run.json'} cannot be read ({error!r}), so what that run has cost is not known."
    )


def has_seen(record: dict[str, Any], dataset: Any) -> bool:
    """Whether a run was trained on these very rows, as far as both say."""
    try:
        return (record.get("data") or {}).get("fingerprint") == facts(dataset)["fingerprint"]
    except (EffptError, AttributeError):  # of rows that were not packed here, and of none
        return False
