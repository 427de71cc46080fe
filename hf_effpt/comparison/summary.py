"""From finished runs to the content of `report.json`: what each arm came to, and what may be said of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.hub.card import duration

from .arms import Arm
from .entries import KWH, run_entry
from .grid import Run
from .speed import speed_up
from .statistics import holm, interval, paired, verdict

# A comparison says nothing where even the baseline ends this near to the unigram floor, in nats.
LEAST_GAIN = 0.25
# How far over the budget the last step may go before it is said; how much of its peak a decayed learning rate has.
OVERSHOOT, DECAYED = 0.02, 0.02


def report(
    arms: Sequence[Arm],
    runs: Sequence[Run],
    clock: Clock,
    *,
    failed: Mapping[Run, str],
    command: str = "",
) -> dict[str, Any]:
    """The content of `report.json`.

    Args:
        arms (`Sequence[Arm]`): the baseline first.
        runs (`Sequence[Run]`): the grid.
        clock (`Clock`): of the whole budget.
        failed (`Mapping[Run, str]`): why runs failed.
        command (`str`, *optional*): what made the comparison.

    Raises:
        EffptError: if no run of the baseline on the whole budget has finished.
    """
    found = {arm.name: [run_entry(run, failed.get(run)) for run in runs if run.arm == arm.name] for arm in arms}
    return summarized(found, {arm.name: runs_recipe(runs, arm.name) for arm in arms}, clock, command=command)


def runs_recipe(runs: Sequence[Run], name: str) -> dict[str, Any]:
    """The resolved recipe of an arm, without what is each run's own."""
    recipe = next(run.recipe for run in runs if run.arm == name).resolved()
    own = ("budget", "seed", "output_dir", "eval_strategy", "eval_steps", "save_total_limit")
    return recipe | {"training": {key: value for key, value in recipe["training"].items() if key not in own}}


def summarized(
    found: Mapping[str, list[dict[str, Any]]], recipes: Mapping[str, Mapping[str, Any]], clock: Clock, *, command: str
) -> dict[str, Any]:
    """The content of `report.json` from the entries of the runs of each arm, the baseline first.

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
    reasons = {name: unlearned or no_verdict(found[name], found[baseline]) for name in others}
    differences = {name: paired(final_losses(found[name]), final_losses(found[baseline])) for name in others}
    judged = [name for name in others if differences[name] is not None and reasons[name] is None]
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
        "notes": notes(found, clock),
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
                "summary": summary(entries, found[baseline], clock),
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


def void_reason(baseline: Mapping[int, float], floor: float | None) -> str | None:
    """Why a comparison says nothing at all."""
    gain = None if floor is None else floor - float(np.mean(list(baseline.values())))
    if gain is None or gain >= LEAST_GAIN:
        return None
    where = f"only {gain:.3f} nats below" if gain > 0 else f"{-gain:.3f} nats above"
    return (
        f"The baseline ends {where} the unigram floor ({LEAST_GAIN} below it are needed), so next to nothing was "
        "learned that arms could differ in; give a longer budget."
    )


def no_verdict(entries: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> str | None:
    """Why there can be no verdict on an arm."""
    for entry in [*baseline, *entries]:
        if entry["fraction"] == 1.0 and entry["state"] == "diverged":
            return f"seed {entry['seed']} has diverged{' in the baseline' if entry in baseline else ''}"
    finals = [entry for entry in [*baseline, *entries] if entry["fraction"] == 1.0 and entry["state"] == "finished"]
    if len({tuple(entry["data"]) for entry in finals}) > 1:
        return "it was evaluated on other text or tokens than the baseline"
    return None


def notes(found: Mapping[str, list[dict[str, Any]]], clock: Clock) -> list[str]:
    """What a reader has to know of runs that are not as they should be."""
    every = [entry for entries in found.values() for entry in entries]
    faults = dict.fromkeys(fault for entry in every for fault in entry.get("reference_faults", ()))
    said = [f"reference times: {fault}" for fault in faults]
    for name, entries in found.items():
        for entry in entries:
            where = f"{name}, seed {entry['seed']}, {entry['fraction']:.0%} of the budget"
            if entry["state"] != "finished":
                said.append(f"{where}: {entry['state']}" + (f" ({entry['note']})" if entry["note"] else ""))
                continue
            over = (entry["clock"].get(clock.unit) or 0.0) / (clock.budget * entry["fraction"]) - 1
            if over > OVERSHOOT:
                said.append(f"{where}: its last step ended {over:.1%} over the budget")
            elif over < -1e-9:
                said.append(f"{where}: it ended at {1 + over:.1%} of its budget")
            rate, peak = entry["final_learning_rate"], entry.get("peak_learning_rate")
            if rate is not None and peak and rate > DECAYED * peak:
                said.append(f"{where}: its learning rate ended at {rate:.2g}, not fully decayed")
            said += [f"{where}, {score}: {note}" for score, note in entry["score_notes"].items()]
    return said


def summary(
    entries: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], clock: Clock
) -> dict[str, Any]:
    """Means and intervals of an arm over its finished runs on the whole budget."""
    finals = [entry for entry in entries if entry["fraction"] == 1.0 and entry["state"] == "finished"]
    loss = interval([entry["held_out_loss"] for entry in finals])

    def mean(values: list[float | None]) -> float | None:
        return None if not values or None in values else float(np.mean(np.array(values, dtype=float)))

    return {
        "final_loss": None if loss is None else asdict(loss),
        **speed_up(losses_by_budget(entries, clock), losses_by_budget(baseline, clock), clock.budget),
        "scores": {
            name: score_summary(finals, name) for name in dict.fromkeys(n for e in finals for n in e["scores"])
        },
        **{name: mean([entry["clock"].get(name) for entry in finals]) for name in ("seconds", "tokens", "flops")},
        "kwh": mean([None if e["clock"].get("joules") is None else e["clock"]["joules"] / KWH for e in finals]),
        "co2e": mean([entry["co2e"] for entry in finals]),
        "method_seconds": mean([sum(entry["costs"].values()) for entry in finals]),
    }


def losses_by_budget(entries: Sequence[Mapping[str, Any]], clock: Clock) -> dict[float, dict[int, float]]:
    """Final loss by budget, and there by seed."""
    losses: dict[float, dict[int, float]] = {}
    for entry in entries:
        if entry["state"] == "finished":
            losses.setdefault(entry["fraction"] * clock.budget, {})[entry["seed"]] = entry["held_out_loss"]
    return losses


def score_summary(finals: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Mean and interval of a score over the runs; without a mean where it is undefined for one of them."""
    values = [entry["scores"].get(name) for entry in finals]
    undefined = [str(e["seed"]) for e, value in zip(finals, values, strict=True) if value is None]
    if undefined:
        note = f"undefined for seed {', '.join(undefined)}"
        return {"mean": None, "low": None, "high": None, "n": len(values), "note": note}
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
