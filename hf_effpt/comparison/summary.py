"""From finished runs to the content of `report.json`: what each arm came to, and what may be said of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from hf_effpt.core.clock import JOULES_A_KWH, Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.hub.card import duration

from .arms import OF_THE_GRID, Arm
from .caveats import no_verdict, notes, share_of, void_reason
from .entries import run_entry
from .grid import Run
from .speed import NO_SPEED, speed_up
from .statistics import holm, interval, paired, verdict


def report(
    arms: Sequence[Arm],
    runs: Sequence[Run],
    clock: Clock,
    *,
    failed: Mapping[Run, str] | None = None,
    asked: Callable[[Run], Mapping[str, Any]] | None = None,
    planned_seeds: int | None = None,
    command: str = "",
) -> dict[str, Any]:
    """The content of `report.json`.

    Args:
        arms (`Sequence[Arm]`): the baseline first.
        runs (`Sequence[Run]`): the grid.
        clock (`Clock`): of the whole budget.
        failed (`Mapping[Run, str]`, *optional*): why runs failed.
        asked (`Callable`, *optional*): how a run was to be evaluated.
        planned_seeds (`int`, *optional*): how many seeds the comparison began with.
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
        planned_seeds=planned_seeds,
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
    planned_seeds: int | None = None,
    command: str = "",
) -> dict[str, Any]:
    """The content of `report.json` from the entries of the runs of each arm, the baseline first.

    Where there can be no verdict on an arm, no difference and no speed-up is given either.

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
    floors = [entry["unigram_floor"] for entry in found[baseline] if entry.get("unigram_floor") is not None]
    floor = float(np.mean(floors)) if floors else None
    void = void_reason(final_losses(found[baseline]), floor)
    unlearned = "the baseline has learned too little" if void else None
    unpaid = "its clock does not pay for its methods; it shows what they would be worth if they cost nothing"
    reasons = {
        name: unlearned or no_verdict(found[name], found[baseline], clock.unit) or (unpaid if name in free else None)
        for name in others
    }
    differences = {
        name: None if reasons[name] else paired(final_losses(found[name]), final_losses(found[baseline]))
        for name in others
    }
    judged = [name for name in others if differences[name] is not None]
    for name, p in zip(judged, holm([differences[name].p for name in judged]), strict=True):
        differences[name] = replace(differences[name], p_holm=p)
    energy = next((entry["energy"] for entry in every if (entry.get("energy") or {}).get("source")), {})
    return {
        "title": f"{', '.join(others) or 'no other arm'} against {baseline}, {budget_text(clock)} each",
        "command": command,
        "clock": {"unit": clock.unit, "budget": clock.budget, "text": budget_text(clock)},
        "baseline": baseline,
        "seeds": sorted({entry["seed"] for entry in every}),
        "fractions": sorted({entry["fraction"] for entry in every}),
        "unigram_floor": floor,
        "void": void,
        "notes": notes(found, clock, planned_seeds),
        "environment": next((entry["environment"] for entry in every if entry.get("environment")), {}),
        "energy": {"source": energy.get("source"), "measured": energy.get("measured"),
                   "carbon_intensity": energy.get("carbon_intensity"), "carbon_source": energy.get("carbon_source")},
        "arms": [
            {
                "name": name,
                "baseline": name == baseline,
                "methods": recipes[name].get("methods") or {},
                "summary_of_methods": ", ".join(recipes[name].get("methods") or {}) or "none",
                "recipe": recipes[name],
                "runs": entries,
                "free": name in free,
                "summary": summary(entries, found[baseline], clock, reasons.get(name)),
                "difference": asdict(differences[name]) if differences.get(name) else None,
                "score_differences": {} if name == baseline else score_differences(entries, found[baseline]),
                "verdict": {"label": "baseline", "text": "The baseline: every other arm is measured against it."}
                if name == baseline
                else verdict_with_scores(differences[name], reasons[name], entries, found[baseline]),
            }
            for name, entries in found.items()
        ],
    }  # fmt: skip


def final_losses(entries: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Held-out loss by seed of the finished runs on the whole budget."""
    return {e["seed"]: e["held_out_loss"] for e in entries if e["fraction"] == 1.0 and e["state"] == "finished"}


def summary(
    entries: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], clock: Clock, reason: str | None
) -> dict[str, Any]:
    """Means and intervals of an arm over its finished runs on the whole budget; no speed-up if there is a `reason`."""
    finals = [entry for entry in entries if entry["fraction"] == 1.0 and entry["state"] == "finished"]
    loss = interval([entry["held_out_loss"] for entry in finals])

    def mean(values: list[float | None]) -> float | None:
        return None if not values or None in values else float(np.mean(np.array(values, dtype=float)))

    return {
        "final_loss": None if loss is None else asdict(loss),
        **(
            NO_SPEED | {"speed_up_note": f"not given: {reason}"}
            if reason
            else speed_up(losses_by_budget(entries, clock), losses_by_budget(baseline, clock), clock.budget)
        ),
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


def score_differences(
    entries: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any] | None]:
    """Paired differences of the other scores to the baseline's, by name: none is a verdict, none is corrected."""

    def by_seed(of: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
        return {e["seed"]: e["scores"][name] for e in of if e["scores"].get(name) is not None}

    names = dict.fromkeys(name for entry in entries for name in entry["scores"])
    found = {name: paired(by_seed(entries, name), by_seed(baseline, name)) for name in names}
    return {name: None if difference is None else asdict(difference) for name, difference in found.items()}


def verdict_with_scores(
    difference: Any, reason: str | None, entries: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """The verdict on the loss, and what other scores say against it."""
    said = verdict(difference, reason)
    if said["label"] in ("better", "no difference shown"):
        worse = [
            f"{name} is lower by {-found['mean']:.4f} (95 % interval {found['low']:+.4f} to {found['high']:+.4f}, not "
            "corrected)"
            for name, found in score_differences(entries, baseline).items()
            if found is not None and found["high"] < 0 and "loss" not in name
        ]
        if worse:
            said["text"] += f" But {'; '.join(worse)}."
    return said


def budget_text(clock: Clock) -> str:
    """A budget as people say it."""
    if clock.unit == "seconds":
        return duration(clock.budget)
    if clock.unit == "reference_seconds":
        return f"{duration(clock.budget)} of reference time"
    return f"{clock.budget:,.15g} {clock.unit}" if clock.budget < 1e12 else f"{clock.budget:.4g} {clock.unit}"
