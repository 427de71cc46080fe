"""`evaluate`: all measures of a model, as one plain record and one table."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_effpt.core.errors import EffptError

from .blimp import DivergedError, blimp, check_blimp, load_pairs
from .finetuning_plan import load_tasks, plan_suite, protocol_for
from .held_out_text import evaluate_loss, held_out_text, unread_mask
from .protocols import Protocol, find_protocol
from .results_file import Record
from .stock_checkpoint import config_of, discriminates, load_pretrained, readable_length
from .tasks import base_name

logger = logging.getLogger(__name__)

LOSS, BLIMP = "loss", "blimp"


def evaluate(
    model: str | Path,
    tasks: str | Sequence[str] | None = None,
    *,
    data: str | Path | None = None,
    text: str | None = None,
    protocol: str | Protocol = "default",
    seeds: int | Sequence[int] | None = None,
    lora: int | None = None,
    pairs_per_paradigm: int | None = None,
    record: Record | None = None,
) -> dict[str, Any]:
    """Measures a stock checkpoint: held-out loss, BLiMP, and fine-tuning tasks.

    Args:
        model (`str` or `Path`): folder of a stock checkpoint with its tokenizer, such as a run's, or the `generator`
            in it.
        tasks (`str` or `Sequence[str]`, *optional*): `loss` (held-out loss with fixed masks), `blimp`, known tasks
            such as `cola`, your own (a file or folder), or Hub ids. By default `loss`, or the tasks of a named
            protocol.
        data (`str` or `Path`, *optional*): folder of BLiMP and known tasks, or `"hub"` to download them.
        text (`str`, *optional*): held-out text, as `data.dataset` takes it; its validation split, if it has splits.
            By default the text that the run held out.
        protocol (`str` or [`Protocol`], *optional*, defaults to `"default"`): fine-tuning protocol: `default`,
            `glue9_cramming`, `glue8_mosaic`, or `glue8_electra`, which is `glue8_electra_small`, `_base` or `_large`
            by the model's hidden size, below 768, below 1,024, or from there on.
        seeds (`int` or `Sequence[int]`, *optional*): number of fine-tuning seeds, or the seeds; by default the
            protocol's number.
        lora (`int`, *optional*): rank of LoRA adapters to fine-tune instead of all weights.
        pairs_per_paradigm (`int`, *optional*): number of pairs used of each BLiMP paradigm; by default all.
        record ([`Record`], *optional*): file that gets each result at once, and whose fine-tuning seeds are not run
            again.

    Returns:
        `model`, `scores` (by name: `value`, `n`, `spread`, `notes`; undefined ones have no value), and the full
        results as `loss`, `blimp` and `finetuning`.

    Raises:
        EffptError: a model, task or data cannot be used; raised before anything is measured.
    """
    tasks = [tasks] if isinstance(tasks, str) else tasks
    if tasks is not None and not tasks:
        raise EffptError("No tasks were named; name some, as loss, blimp or cola, or leave `tasks` out for loss.")
    folder = Path(model)
    config = config_of(folder)
    protocol = protocol_for(protocol, folder)
    names = list(dict.fromkeys(tasks or protocol.reported or [LOSS]))
    if LOSS in names and discriminates(config):
        generator = folder / "generator"
        other = f", or measure its generator: effpt evaluate {generator} --tasks loss" if generator.is_dir() else ""
        raise EffptError(f"{folder}: a discriminator has no masked-token loss; use --tasks blimp{other}.")
    finetuned = [name for name in names if name not in (LOSS, BLIMP)]
    plan = plan_suite(folder, finetuned, protocol, data=data, seeds=seeds, lora=lora) if finetuned else None
    unread = None if discriminates(config) else unread_mask(folder)
    mask_notes = [unread] if unread else []
    pairs = load_pairs(data) if BLIMP in names else None
    loaded, tokenizer = (None, None) if names == finetuned else load_pretrained(folder)
    metric = check_blimp(loaded, tokenizer, pairs, pairs_per_paradigm) if pairs is not None else None
    held_out = None
    if LOSS in names:
        held_out = held_out_text(folder, tokenizer, text, readable_length(loaded, tokenizer))

    # All is checked; from here on it is measured.
    scores: dict[str, Any] = {}
    result: dict[str, Any] = {"model": str(model), "scores": scores}

    def keep(task: str = "", one: dict[str, Any] | None = None) -> None:
        if one:
            shown = ", ".join(f"{name} {_number(score['value'])}" for name, score in one["scores"].items())
            logger.info("%s, seed %d: %s", task, one["seed"], shown)
        if record:
            record.save(result, partial=True)

    if held_out is not None:
        loss = result["loss"] = evaluate_loss(held_out, loaded, tokenizer)
        notes = [*loss["notes"], *mask_notes]
        scores["held_out_loss"] = _score(loss["held_out_loss"], loss["masked_tokens"], None, notes)
        keep()
    if pairs is not None:
        logger.info("BLiMP …")
        name = _blimp_score(metric, pairs_per_paradigm)
        try:
            found = result["blimp"] = blimp(loaded, tokenizer, pairs, pairs_per_paradigm=pairs_per_paradigm)
            notes = [f"{found['ties']} ties, counted one half"] if found["ties"] else []
            notes += [f"{found['truncated']} pairs cut"] if found["truncated"] else []
            scores[name] = _score(found["macro"], found["pairs"], found["standard_error"], notes + mask_notes)
        except DivergedError:
            result["blimp"] = {"metric": metric, "macro": None}
            scores[name] = _score(None, 0, None, ["diverged"])
        keep()
    if plan is not None:
        found = result["finetuning"] = plan.run(keep, record.finished if record else None)
        for name, score in found["tasks"].items():
            scores[name] = _score(score["value"], len(score["seeds"]), score["standard_deviation"], score["notes"])
        result["average"] = found["average"]
    return result


def check_tasks(
    names: Sequence[str], data: str | Path | None, protocol: str = "default", pairs_per_paradigm: int | None = None
) -> list[str]:
    """Loads what the tasks need, so that mistakes raise an `EffptError` before anything is measured.

    Returns the names of the scores that the tasks give; those of BLiMP for both kinds of model. `protocol` names one
    that does not depend on the model's size.
    """
    plan = find_protocol(protocol)
    scores = ["held_out_loss"] if LOSS in names else []
    if BLIMP in names:
        load_pairs(data)
        scores += [_blimp_score(metric, pairs_per_paradigm) for metric in ("pll_word_l2r", "discriminator")]
    found: dict[tuple[str, str], float | None] = {}
    for task in load_tasks([name for name in names if name not in (LOSS, BLIMP)], data):
        found |= {(task.name, name): 0.0 for name in plan.logged_metrics(base_name(task.name), task.all_metrics())}
    scores += [plan.score_name(task, figure) for task, figure in found]
    return [*scores, f"average@{plan.name}"] if plan.average(found)[0] is not None else scores


def _blimp_score(metric: str | None, pairs_per_paradigm: int | None) -> str:
    """Name of a BLiMP score, which includes the number of pairs if not all are used."""
    return f"blimp/{metric}" + (f"-{pairs_per_paradigm}" if pairs_per_paradigm else "")


def _score(value: float | None, n: int, spread: float | None, notes: list[str]) -> dict[str, Any]:
    return {"value": value, "n": n, "spread": spread, "notes": notes}


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def table(result: dict[str, Any]) -> str:
    """Markdown table of the scores, with notes below it."""
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
