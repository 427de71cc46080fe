"""Content of `report.json`, made from finished runs: an entry of each, a summary of each arm and the verdict on it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from hf_effpt.core.clock import JOULES_A_KWH, Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import finite
from hf_effpt.core.objectives import objective_in
from hf_effpt.evaluation.held_out_text import fingerprint_in
from hf_effpt.hub.card import duration

from .arm_losses import LOSS, Entries, final_losses, finals_of, floors, kind_of, loss_of, margins, metric_values
from .arms import SET_BY_GRID, Arm
from .caveats import loss_notes, no_verdict, notes, share_of, void_reason
from .controls import Control, control_sentence, difference_sentence, find_control
from .cost_law import cost_law
from .report_tables import FEW_ARMS
from .run_grid import Run, divergence_text
from .speed import NO_SPEED, speed_up
from .statistics import Difference, holm, interval, paired, verdict

CLOCK = ("steps", "tokens", "flops", "seconds", "reference_seconds", "joules")


def report(
    arms: Sequence[Arm],
    runs: Sequence[Run],
    clock: Clock,
    *,
    failed: Mapping[Run, str] | None = None,
    asked: Callable[[Run], Mapping[str, Any]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Collects the entries of all runs and returns the content of `report.json`.

    The baseline is the first of `arms`; `clock` is the whole budget, `failed` the reason of each failed run, and
    `asked` returns the arguments of the evaluation of a run. `options` and errors are those of [`summarized`].
    """
    found, recipes = {}, {}
    for arm in arms:
        own = [run for run in runs if run.arm == arm.name]
        found[arm.name] = [run_entry(run, (failed or {}).get(run), asked(run) if asked else None) for run in own]
        recipe = own[0].recipe.resolved()
        training = {key: value for key, value in recipe["training"].items() if key not in SET_BY_GRID}
        recipes[arm.name] = recipe | {"training": training}
    return summarized(found, recipes, clock, free=[arm.name for arm in arms if arm.free], **options)


def run_entry(run: Run, fault: str | None, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Collects the entry of a run; raises an `EffptError` if it was trained without held-out text.

    `fault` is the reason if the run or its evaluation failed. If `asked`, the arguments of its evaluation, is given,
    scores of any other evaluation are left out.
    """
    entry: dict[str, Any] = {"seed": run.seed, "fraction": run.fraction, "folder": str(run.folder), "note": fault}
    entry |= {"objective": run.recipe.model.exported, "evaluation": {}}
    record = run.record()
    if record is None:
        none: dict[str, Any] = {"held_out_loss": None, "clock": {}, "co2e": None, "final_learning_rate": None,
                                "costs": {}, "accounts": {}, "curve": [], "scores": {}, "score_notes": {}}  # fmt: skip
        if (diverged := run.divergence()) is None:
            return entry | none | {"state": "missing" if fault is None else "failed"}
        return (
            entry
            | none
            | {
                "state": "diverged",
                "note": divergence_text(diverged),
                "clock": {name: diverged["clock"].get(name) for name in CLOCK},
                "curve": curve(diverged["history"]),
            }
        )
    parts = ("evaluation", "energy", "learning_rate", "data")
    evaluation, energy, rates, rows = (record.get(part) or {} for part in parts)
    loss = evaluation.get("held_out_loss")
    if loss is None:
        raise EffptError(
            f"{run.folder} was trained without held-out text, so there is nothing to compare; set `data.validation`."
        )
    diverged = not math.isfinite(loss)
    evaluated = (run.scores() or {}) if run.fraction == 1.0 else {}
    scores = _scores(evaluated) if not asked or evaluated.get("asked") == asked else {}
    return entry | {
        "state": "diverged" if diverged else "finished",
        "note": "its held-out loss is not finite" if diverged else fault,
        "held_out_loss": None if diverged else loss,
        "objective": objective_in(record),
        "evaluation": finite(evaluation),
        "clock": {name: record["clock"].get(name) for name in CLOCK},
        "co2e": energy.get("co2e_grams"),
        "final_learning_rate": rates.get("final"),
        "peak_learning_rate": rates.get("peak"),
        "costs": record.get("costs") or {},
        "accounts": record.get("accounts") or {},
        "curve": curve(record.get("history") or []),
        "scores": {name: score["value"] for name, score in scores.items()},
        "score_notes": {name: "; ".join(score["notes"]) for name, score in scores.items() if score.get("notes")},
        "reference_faults": (record.get("reference") or {}).get("faults") or [],
        # losses can be compared if these are equal
        "data": [fingerprint_in(record), rows.get("sequence_length"), evaluation.get("masked_tokens")],
        "energy": {key: energy.get(key) for key in ("source", "measured", "carbon_intensity", "carbon_source")},
        "environment": record.get("environment") or {},
    }


def _scores(evaluated: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the scores of an evaluation by name, with the average of its fine-tuned scores."""
    scores, average = dict(evaluated.get("scores") or {}), evaluated.get("average")
    if average:
        scores[average["name"]] = {"value": average["value"], "notes": [average["note"].replace("; ", ", ")]}
    return scores


def curve(history: list[dict[str, Any]]) -> list[dict[str, float | None]]:
    """Returns the finite held-out losses along a run with the costs until then; the last one of each step."""
    points = {}
    for point in history:
        if "clock" in point and (loss := point.get("eval_loss")) is not None and math.isfinite(loss):
            joules = point.get("joules")
            points[point["step"]] = {
                **{name: point[name] for name in ("clock", "seconds", "tokens", "flops")},
                "reference_seconds": point.get("reference_seconds"),
                "kwh": None if joules is None else joules / JOULES_A_KWH,
                "loss": loss,
            }
    return [points[step] for step in sorted(points)]


def summarized(
    found: Mapping[str, list[dict[str, Any]]],
    recipes: Mapping[str, Mapping[str, Any]],
    clock: Clock,
    *,
    free: Sequence[str] = (),
    primary: str = LOSS,
    planned: Mapping[str, Any] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Returns the content of `report.json` from the entries of the runs.

    An arm without a verdict has no differences and no speed-up, except that a free arm has differences, which are not
    part of Holm's correction. An arm with another objective than the baseline's is compared by scores alone. An arm
    with row selection has a speed-up only if there is a control, and besides its difference to the control.

    `found` are the entries of the runs by arm, the baseline first; `recipes` the recipe by arm; `clock` the whole
    budget; `free` the arms whose clock is not charged for their methods; `primary` the measure of the verdicts;
    `planned` the number of `seeds` and the `primary` measure at the first call. Raises an `EffptError` if no run of
    the baseline on the whole budget has finished.
    """
    baseline, *others = found
    if not final_losses(found[baseline]):
        faults = [entry["note"] or entry["state"] for entry in found[baseline]]
        fix = "Fix that and start it again; finished runs are kept."
        if any(entry["state"] == "diverged" for entry in found[baseline]):
            fix = "Lower its `training.learning_rate`, and name another `--out`."
        raise EffptError(
            f"No run of the baseline `{baseline}` has finished on the whole budget, so there is nothing to compare "
            f"with ({'; '.join(dict.fromkeys(faults))}). {fix}"
        )
    every = [entry for entries in found.values() for entry in entries]
    void = void_reason(found[baseline])
    unlearned = "the baseline has learned too little" if void else None
    unpaid = "its clock does not pay for its methods; it shows what they would be worth if they cost nothing"
    unfit = {name: unlearned or no_verdict(found[name], found[baseline], clock.unit) for name in others}
    reasons = {name: unfit[name] or (unpaid if name in free else None) for name in others}
    kinds = {name: loss_of(entries, recipes[name]) for name, entries in found.items()}
    differences = {
        name: {} if unfit[name] else differences_of(found[name], found[baseline], kinds[name] == kinds[baseline])
        for name in others
    }
    judged = [name for name in others if name not in free and differences[name].get(primary) is not None]
    for name, p in zip(judged, holm([differences[name][primary].p for name in judged]), strict=True):
        differences[name][primary] = replace(differences[name][primary], p_holm=p)
    energy = next((entry["energy"] for entry in every if (entry.get("energy") or {}).get("source")), {})

    def of_arm(name: str) -> dict[str, Any]:
        entries, is_baseline, kind = found[name], name == baseline, kind_of(found[name])
        comparable, own, reason = kinds[name] == kinds[baseline], differences.get(name, {}), reasons.get(name)
        control = None if is_baseline else find_control(name, found, recipes, free, clock.unit)
        control = Control(reason=unfit[name]) if control and unfit.get(name) else control
        to_control = differences_of(entries, found[control.arm], comparable=True) if control and control.arm else {}
        more = "" if unfit.get(name) else control_sentence(control, to_control.get(primary), primary)
        if name in free:
            more = difference_sentence("So", own.get(primary), primary) + more
        without_speed = reason or (None if comparable else "another objective") or (control and control.reason)
        plain = {key: value and asdict(value) for key, value in own.items()}
        return {
            "name": name,
            "baseline": is_baseline,
            "methods": recipes[name].get("methods") or {},
            "summary_of_methods": ", ".join(recipes[name].get("methods") or {}) or "none",
            "recipe": recipes[name],
            "runs": entries,
            "free": name in free,
            "objective": entries[0]["objective"],
            "loss_of": kinds[name],
            "floor_name": kind.floor,
            "comparable": comparable,
            "summary": summary(entries, found[baseline], clock, without_speed, name in free),
            "difference": plain.pop(LOSS, None),
            "control": control and asdict(control),
            "control_difference": (gap := to_control.get(LOSS)) and asdict(gap),
            "score_differences": plain,
            "verdict": {"label": "baseline", "text": "The baseline: every other arm is measured against it."}
            if is_baseline
            else verdict_on(primary, own, reason, comparable, entries, found[baseline], more),
        }

    listed = ", ".join(others) if len(others) < FEW_ARMS else f"{len(others)} arms"
    return {
        "title": f"{listed or 'no other arm'} against {baseline}, {budget_text(clock)} each",
        "command": command,
        "clock": {"unit": clock.unit, "budget": clock.budget, "text": budget_text(clock)},
        "baseline": baseline,
        "primary": primary,
        "seeds": sorted({entry["seed"] for entry in every}),
        "fractions": sorted({entry["fraction"] for entry in every}),
        "void": void,
        "notes": loss_notes(found, recipes) + notes(found, clock, primary, planned),
        "environment": next((entry["environment"] for entry in every if entry.get("environment")), {}),
        "energy": {key: energy.get(key) for key in ("source", "measured", "carbon_intensity", "carbon_source")},
        "arms": [of_arm(name) for name in found],
    }


def differences_of(entries: Entries, baseline: Entries, comparable: bool) -> dict[str, Difference | None]:
    """Returns the paired differences to the baseline, not corrected, of all scores and, if `comparable`, the loss."""

    def by_seed(of: Entries, name: str) -> dict[int, float]:
        return {e["seed"]: e["scores"][name] for e in of if e["scores"].get(name) is not None}

    names = dict.fromkeys(name for entry in entries for name in entry["scores"])
    loss = {LOSS: paired(final_losses(entries), final_losses(baseline))} if comparable else {}
    scores = {name: paired(by_seed(entries, name), by_seed(baseline, name)) for name in names if name != LOSS}
    return loss | scores


def verdict_on(
    primary: str,
    differences: Mapping[str, Difference | None],
    reason: str | None,
    comparable: bool,
    entries: Entries,
    baseline: Entries,
    more: str = "",
) -> dict[str, str]:
    """Returns the verdict on the primary measure, followed by other measures that are worse and by the text `more`."""
    if primary == LOSS and not comparable and reason is None:
        why = "its loss is not that of the baseline and cannot be compared; see the scores"
        return {"label": "another objective", "text": f"Another objective: {why}.{more}"}
    score = None if primary == LOSS else primary
    found = verdict(differences.get(primary), reason or (score and _lacking(score, entries, baseline)), score)
    if found["label"] in ("better", "no difference shown"):
        worse = [
            f"{'its loss is higher' if name == LOSS else f'{name} is lower'} by {abs(gap.mean):.4f} "
            f"(95 % interval {gap.low:+.4f} to {gap.high:+.4f}, not corrected)"
            for name, gap in differences.items()
            if name != primary and gap is not None and (gap.low > 0 if name == LOSS else gap.high < 0)
        ]
        if worse:
            found["text"] += f" But {'; '.join(worse)}."
    return found | {"text": found["text"] + more}


def _lacking(score: str, entries: Entries, baseline: Entries) -> str | None:
    """Returns the finished full runs without a score, as the reason against a verdict; `None` if all have it."""
    for of, where in ((baseline, " of the baseline"), (entries, "")):
        without = [str(entry["seed"]) for entry in finals_of(of) if entry["scores"].get(score) is None]
        if without:
            return f"{score} is undefined, or was not measured, for seed {', '.join(without)}{where}"
    return None


def summary(
    entries: Entries, baseline: Entries, clock: Clock, reason: str | None, free: bool = False
) -> dict[str, Any]:
    """Returns means and intervals over the finished full runs of an arm; `reason`, if given, forbids a speed-up."""
    finals = finals_of(entries)
    if reason:
        speed = NO_SPEED | {"speed_up_note": f"not given: {reason}"}
    else:
        speed = speed_up(losses_by_budget(entries, clock), losses_by_budget(baseline, clock), clock.budget)

    def mean(values: list[float | None]) -> float | None:
        return None if not values or None in values else float(np.mean(np.array(values, dtype=float)))

    joules = [entry["clock"].get("joules") for entry in finals]
    return {
        "final_loss": _spread([entry["held_out_loss"] for entry in finals]),
        "floor": _spread(floors(entries)),
        "margin": _spread(margins(entries)),
        "generator_loss": _spread(metric_values(entries, "generator_loss")),
        "replaced_rate": _spread(metric_values(entries, "replaced_rate")),
        **speed,
        "cost_law": cost_law(entries, baseline, speed, clock.unit, free),
        "scores": {
            name: _score_summary(finals, name) for name in dict.fromkeys(n for e in finals for n in e["scores"])
        },
        **{name: mean([entry["clock"].get(name) for entry in finals]) for name in ("seconds", "tokens", "flops")},
        "kwh": mean([None if each is None else each / JOULES_A_KWH for each in joules]),
        "co2e": mean([entry["co2e"] for entry in finals]),
        "method_seconds": mean([sum(entry["costs"].values()) for entry in finals]),
    }


def losses_by_budget(entries: Entries, clock: Clock) -> dict[float, dict[int, float]]:
    """Returns the final losses by budget and seed."""
    losses: dict[float, dict[int, float]] = {}
    for entry in entries:
        if entry["state"] == "finished":
            losses.setdefault(share_of(clock, entry["fraction"]), {})[entry["seed"]] = entry["held_out_loss"]
    return losses


def _score_summary(finals: Entries, name: str) -> dict[str, Any]:
    """Returns mean and interval of a score over the runs, or a note on the runs for which it is not defined."""
    undefined = [str(e["seed"]) for e in finals if e["scores"].get(name, 0.0) is None]
    absent = [str(e["seed"]) for e in finals if name not in e["scores"]]
    faults = (("undefined", undefined), ("not evaluated", absent))
    if note := "; ".join(f"{word} for seed {', '.join(seeds)}" for word, seeds in faults if seeds):
        return {"mean": None, "low": None, "high": None, "n": len(finals), "note": note}
    return {**_spread([float(entry["scores"][name]) for entry in finals]), "note": None}


def _spread(values: list[float]) -> dict[str, Any] | None:
    return (found := interval(values)) and asdict(found)


def budget_text(clock: Clock) -> str:
    """Formats a budget for a reader."""
    if clock.unit == "seconds":
        return duration(clock.budget)
    if clock.unit == "reference_seconds":
        return f"{duration(clock.budget)} of reference time"
    return f"{clock.budget:,.15g} {clock.unit}" if clock.budget < 1e12 else f"{clock.budget:.4g} {clock.unit}"
