"""From finished runs to the content of `report.json`: what each arm came to, and what may be said of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from hf_effpt.core.clock import JOULES_A_KWH, Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.hub.card import duration

from .arm_losses import ANOTHER, Entries, figures, final_losses, finals_of, floors, kind_of, loss_of, margins
from .arms import OF_THE_GRID, Arm
from .caveats import loss_notes, no_verdict, notes, share_of, void_reason
from .controls import Control, find_control, said_of_control, said_of_free
from .cost_law import cost_law
from .primary import LOSS
from .run_entries import run_entry
from .run_grid import Run
from .speed import NO_SPEED, speed_up
from .statistics import Difference, holm, interval, paired, verdict


def report(
    arms: Sequence[Arm],
    runs: Sequence[Run],
    clock: Clock,
    *,
    failed: Mapping[Run, str] | None = None,
    asked: Callable[[Run], Mapping[str, Any]] | None = None,
    primary: str = LOSS,
    planned: Mapping[str, Any] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """The content of `report.json`.

    Args:
        arms (`Sequence[Arm]`): the baseline first.
        runs (`Sequence[Run]`): the grid.
        clock (`Clock`): of the whole budget.
        failed (`Mapping[Run, str]`, *optional*): why runs failed.
        asked (`Callable`, *optional*): how a run was to be evaluated.
        primary (`str`, *optional*): the measure that verdicts are given on; by default the held-out loss.
        planned (`Mapping`, *optional*): with how many `seeds`, and which `primary`, the comparison began.
        command (`str`, *optional*): what made the comparison.

    Raises:
        EffptError: if no run of the baseline on the whole budget has finished.
    """
    found = {
        arm.name: [
            run_entry(run, (failed or {}).get(run), asked(run) if asked else None)
            for run in runs
            if run.arm == arm.name
        ]
        for arm in arms
    }
    return summarized(
        found,
        {arm.name: runs_recipe(runs, arm.name) for arm in arms},
        clock,
        free=[arm.name for arm in arms if arm.free],
        primary=primary,
        planned=planned,
        command=command,
    )


def runs_recipe(runs: Sequence[Run], name: str) -> dict[str, Any]:
    """The resolved recipe of an arm, without what is each run's own."""
    recipe = next(run.recipe for run in runs if run.arm == name).resolved()
    return recipe | {"training": {key: value for key, value in recipe["training"].items() if key not in OF_THE_GRID}}


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
    """The content of `report.json` from the entries of the runs of each arm, the baseline first.

    Where there can be no verdict on an arm, no differences and no speed-up are given either, but for the differences
    of one whose clock does not pay for its methods; they are no part of the correction. Of an arm with another
    objective than the baseline's, only scores are compared. An arm whose method picks rows gets no speed-up without
    the same recipe with rows at random, and besides its difference to that one.

    Raises:
        EffptError: if no run of the baseline on the whole budget has finished.
    """
    baseline, *others = found
    if not final_losses(found[baseline]):
        faults = [entry["note"] or entry["state"] for entry in found[baseline]]
        raise EffptError(
            f"No run of the baseline `{baseline}` has finished on the whole budget, so there is nothing to compare "
            f"with ({'; '.join(dict.fromkeys(faults))}). Mend that and start it again; finished runs are kept."
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
        beside = None if control is None or control.arm is None else found[control.arm]
        to_control = {} if beside is None else differences_of(entries, beside, comparable=True)
        of_control = "" if unfit.get(name) else said_of_control(control, to_control.get(primary), primary)
        if name in free:
            of_control = said_of_free(own.get(primary), primary) + of_control
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
            else verdict_on(primary, own, reason, comparable, entries, found[baseline], of_control),
        }

    return {
        "title": f"{', '.join(others) or 'no other arm'} against {baseline}, {budget_text(clock)} each",
        "command": command,
        "clock": {"unit": clock.unit, "budget": clock.budget, "text": budget_text(clock)},
        "baseline": baseline,
        "primary": primary,
        "seeds": sorted({entry["seed"] for entry in every}),
        "fractions": sorted({entry["fraction"] for entry in every}),
        "void": void,
        "notes": loss_notes(found, recipes) + notes(found, clock, primary, planned),
        "environment": next((entry["environment"] for entry in every if entry.get("environment")), {}),
        "energy": {"source": energy.get("source"), "measured": energy.get("measured"),
                   "carbon_intensity": energy.get("carbon_intensity"), "carbon_source": energy.get("carbon_source")},
        "arms": [of_arm(name) for name in found],
    }  # fmt: skip


def differences_of(entries: Entries, baseline: Entries, comparable: bool) -> dict[str, Difference | None]:
    """Paired differences to the baseline of the loss, if `comparable`, and of all scores; none is corrected."""

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
    of_control: str = "",
) -> dict[str, str]:
    """The verdict on the primary measure, what the others say against it, and what is said `of_control`."""
    if primary == LOSS and not comparable and reason is None:
        return {"label": "another objective", "text": f"Another objective: {ANOTHER}.{of_control}"}
    score = None if primary == LOSS else primary
    said = verdict(differences.get(primary), reason or (score and lacking(score, entries, baseline)), score)
    if said["label"] in ("better", "no difference shown"):
        worse = [
            f"{'its loss is higher' if name == LOSS else f'{name} is lower'} by {abs(gap.mean):.4f} "
            f"(95 % interval {gap.low:+.4f} to {gap.high:+.4f}, not corrected)"
            for name, gap in differences.items()
            if name != primary and gap is not None and (gap.low > 0 if name == LOSS else gap.high < 0)
        ]
        if worse:
            said["text"] += f" But {'; '.join(worse)}."
    return said | {"text": said["text"] + of_control}


def lacking(score: str, entries: Entries, baseline: Entries) -> str | None:
    """Why there is no verdict on a score: a run, of which nothing else is wrong, does not have it."""
    for of, where in ((baseline, " of the baseline"), (entries, "")):
        without = [str(entry["seed"]) for entry in finals_of(of) if entry["scores"].get(score) is None]
        if without:
            return f"{score} is undefined, or was not measured, for seed {', '.join(without)}{where}"
    return None


def summary(
    entries: Entries, baseline: Entries, clock: Clock, reason: str | None, free: bool = False
) -> dict[str, Any]:
    """Means and intervals of an arm over its finished runs on the whole budget; no speed-up if there is a `reason`."""
    finals = finals_of(entries)
    if reason:
        speed = NO_SPEED | {"speed_up_note": f"not given: {reason}"}
    else:
        speed = speed_up(losses_by_budget(entries, clock), losses_by_budget(baseline, clock), clock.budget)

    def mean(values: list[float | None]) -> float | None:
        return None if not values or None in values else float(np.mean(np.array(values, dtype=float)))

    def spread(values: list[float]) -> dict[str, Any] | None:
        found = interval(values)
        return None if found is None else asdict(found)

    return {
        "final_loss": spread([entry["held_out_loss"] for entry in finals]),
        "floor": spread(floors(entries)),
        "margin": spread(margins(entries)),
        "generator_loss": spread(figures(entries, "generator_loss")),
        "replaced_rate": spread(figures(entries, "replaced_rate")),
        **speed,
        "cost_law": cost_law(entries, baseline, speed, clock.unit, free),
        "scores": {
            name: score_summary(finals, name) for name in dict.fromkeys(n for e in finals for n in e["scores"])
        },
        **{name: mean([entry["clock"].get(name) for entry in finals]) for name in ("seconds", "tokens", "flops")},
        "kwh": mean(
            [None if e["clock"].get("joules") is None else e["clock"]["joules"] / JOULES_A_KWH for e in finals]
        ),
        "co2e": mean([entry["co2e"] for entry in finals]),
        "method_seconds": mean([sum(entry["costs"].values()) for entry in finals]),
    }


def losses_by_budget(entries: Sequence[Mapping[str, Any]], clock: Clock) -> dict[float, dict[int, float]]:
    """Final loss by budget, and there by seed."""
    losses: dict[float, dict[int, float]] = {}
    for entry in entries:
        if entry["state"] == "finished":
            losses.setdefault(share_of(clock, entry["fraction"]), {})[entry["seed"]] = entry["held_out_loss"]
    return losses


def score_summary(finals: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Mean and interval of a score over the runs; without a mean where it is undefined for one of them."""
    values = [entry["scores"].get(name) for entry in finals]
    undefined = [str(entry["seed"]) for entry in finals if name in entry["scores"] and entry["scores"][name] is None]
    absent = [str(entry["seed"]) for entry in finals if name not in entry["scores"]]
    faults = [
        f"{word} for seed {', '.join(of)}" for word, of in (("undefined", undefined), ("not evaluated", absent)) if of
    ]
    if faults:
        return {"mean": None, "low": None, "high": None, "n": len(values), "note": "; ".join(faults)}
    found = interval([float(value) for value in values if value is not None])
    assert found is not None
    return asdict(found) | {"note": None}


def budget_text(clock: Clock) -> str:
    """A budget as people say it."""
    if clock.unit == "seconds":
        return duration(clock.budget)
    if clock.unit == "reference_seconds":
        return f"{duration(clock.budget)} of reference time"
    return f"{clock.budget:,.15g} {clock.unit}" if clock.budget < 1e12 else f"{clock.budget:.4g} {clock.unit}"
