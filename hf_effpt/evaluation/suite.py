"""`evaluate`: everything that is measured of a model, as one plain record and one table."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, ElectraForPreTraining, PreTrainedModel

from hf_effpt.core.errors import EffptError

from .blimp import blimp
from .finetune import finetune_suite
from .held_out import evaluate_loss
from .pairs import load_pairs
from .protocols import find_protocol
from .tasks import load_task

logger = logging.getLogger(__name__)

LOSS, BLIMP = "loss", "blimp"


def evaluate(
    model: str | Path,
    tasks: Sequence[str] | None = None,
    *,
    data: str | Path | None = None,
    text: str | None = None,
    protocol: str = "default",
    seeds: int | Sequence[int] | None = None,
    lora: int | None = None,
    pairs_per_paradigm: int | None = None,
) -> dict[str, Any]:
    """Measures a stock checkpoint: held-out loss, BLiMP, and fine-tuning tasks.

    Args:
        model (`str` or `Path`): the folder of a stock checkpoint with its tokenizer, such as the root of a run.
        tasks (`Sequence[str]`, *optional*): `loss` (held-out loss with fixed masks), `blimp`, known tasks such as
            `cola`, your own (a file or folder), or Hub ids. By default `loss`, or the tasks of a named protocol.
        data (`str` or `Path`, *optional*): the folder that BLiMP and known tasks are in, or `"hub"` to download them.
        text (`str`, *optional*): held-out text, as `data.dataset` takes it; by default what the run held out.
        protocol (`str`, *optional*, defaults to `"default"`): how tasks are fine-tuned: `default`, `glue9_cramming`,
            `glue8_mosaic` or `glue8_electra`.
        seeds (`int` or `Sequence[int]`, *optional*): of fine-tuning; by default the protocol's number.
        lora (`int`, *optional*): fine-tune LoRA adapters of this rank in place of all weights.
        pairs_per_paradigm (`int`, *optional*): only so many pairs of each paradigm of BLiMP.

    Returns:
        `model`, `scores` (by name: `value`, `n`, `spread`, `notes`; undefined ones have no value), and the full
        results as `loss`, `blimp` and `finetuning`.

    Raises:
        EffptError: before anything is measured, for a model, task or data that cannot be used.
    """
    folder = Path(model)
    usual = find_protocol(protocol).reported
    names = list(dict.fromkeys(tasks if tasks is not None else (usual or [LOSS])))
    finetuned = [name for name in names if name not in (LOSS, BLIMP)]
    if not (folder / "config.json").is_file():
        raise EffptError(f"{folder} has no config.json; name the folder of a stock checkpoint, such as a run's.")
    pairs = check_tasks(names, data)
    result: dict[str, Any] = {"model": str(model), "scores": {}}
    if len(finetuned) < len(names):
        loaded, tokenizer = _load(folder)
        if LOSS in names:
            result["loss"] = evaluate_loss(folder, loaded, tokenizer, text)
            value = result["loss"]["held_out_loss"]
            result["scores"]["held_out_loss"] = _score(value, result["loss"]["masked_tokens"], None, [])
        if pairs is not None:
            logger.info("BLiMP …")
            found = result["blimp"] = blimp(loaded, tokenizer, pairs, pairs_per_paradigm=pairs_per_paradigm)
            notes = [f"{found['ties']} ties, counted one half"] if found["ties"] else []
            notes += [f"{found['truncated']} pairs cut"] if found["truncated"] else []
            name = f"blimp/{found['metric']}" + (f"-{pairs_per_paradigm}" if pairs_per_paradigm else "")
            result["scores"][name] = _score(found["macro"], found["pairs"], found["standard_error"], notes)
    if finetuned:
        found = finetune_suite(
            folder, finetuned, protocol, data=data, seeds=seeds, lora=lora,
            on_result=lambda task, one: logger.info("%s, seed %d: %s", task, one["seed"], _shown(one["scores"])),
        )  # fmt: skip
        result["finetuning"] = found
        for name, score in found["tasks"].items():
            spread = score["standard_deviation"]
            result["scores"][name] = _score(score["value"], len(score["seeds"]), spread, score["notes"])
        result["average"] = {"name": f"average@{protocol}", **found["average"]}
    return result


def check_tasks(names: Sequence[str], data: str | Path | None) -> Dataset | None:
    """Loads what the tasks need, so that what is wrong is said before anything is measured; the pairs of BLiMP.

    Raises:
        EffptError: for a task or data that cannot be used.
    """
    for name in names:
        if name not in (LOSS, BLIMP):
            load_task(name, data)
    return load_pairs(data) if BLIMP in names else None


def _score(value: float | None, n: int, spread: float | None, notes: list[str]) -> dict[str, Any]:
    return {"value": value, "n": n, "spread": spread, "notes": notes}


def _shown(scores: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{name} {_number(score['value'])}" for name, score in scores.items())


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _load(folder: Path) -> tuple[PreTrainedModel, Any]:
    """The model as what it was pre-trained as, and its tokenizer."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        discriminates = "ElectraForPreTraining" in (config.architectures or [])
        auto = ElectraForPreTraining if discriminates else AutoModelForMaskedLM
        loaded, report = auto.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EffptError(
            f"{folder} cannot be loaded ({str(error).splitlines()[0]}); name a stock checkpoint."
        ) from error
    if report["missing_keys"]:
        raise EffptError(
            f"{folder} lacks weights of its pre-training head ({', '.join(sorted(report['missing_keys'])[:3])}), so "
            "it has neither a loss nor BLiMP scores; only fine-tuning tasks can be measured."
        )
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def table(result: dict[str, Any]) -> str:
    """The scores as a Markdown table with the notes below it."""
    rows = ["| score | value | spread | n |", "|---|---:|---:|---:|"]
    for name, score in result["scores"].items():
        spread = "-" if score["spread"] is None else f"{score['spread']:.4f}"
        rows.append(f"| {name} | {_number(score['value'])} | {spread} | {score['n']:,} |")
    if "average" in result:
        average = result["average"]
        rows.append(f"| {average['name']} | {_number(average['value'])} | - | |")
        rows += ["", f"{average['name']}: {average['note']}."]
    floor = (result.get("loss") or {}).get("unigram_floor")
    if floor is not None:
        rows += ["", f"The unigram floor of the held-out loss is {floor:.4f}."]
    notes = [f"- {name}: {note}" for name, score in result["scores"].items() for note in score["notes"]]
    if notes:
        rows += ["", "Notes:", *notes]
    rows += ["", "Spread: the standard error of BLiMP from its pairs; the standard deviation over fine-tuning seeds."]
    return "\n".join(rows)
