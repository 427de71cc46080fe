"""Reasons against a verdict, and the notes of a report on runs that did not go as planned."""

from collections.abc import Mapping
from typing import Any

from hf_effpt.core.clock import Clock

from .arm_losses import Entries, loss_of, unequal_generators, weakness

OVERSHOOT = 0.02  # share of the budget by which the last step may exceed it without a note
DECAYED = 0.02  # largest share of its peak at which a learning rate counts as decayed


def void_reason(baseline: Entries) -> str | None:
    """Returns the reason why a whole comparison says nothing; `None` if the baseline has learned enough."""
    where, rest = weakness(baseline), "so next to nothing was learned that arms could differ in; give a longer budget."
    return where and f"The baseline ends {where}, {rest}"


def loss_notes(found: Mapping[str, Entries], recipes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns notes on losses that cannot be compared with those of the first arm, the baseline, or only with care."""
    (name, baseline), *others = found.items()
    said, of_baseline = [], loss_of(baseline, recipes[name])
    for other, entries in others:
        own = loss_of(entries, recipes[other])
        if own != of_baseline:
            said.append(f"{other}: its loss is of {own}, the baseline's of {of_baseline}; only scores compare them")
            if where := weakness(entries):
                said.append(f"{other}: it ends {where}: next to nothing was learned, and its scores show little else")
        elif unequal := unequal_generators(entries, baseline):
            said.append(f"{other}: {unequal}")
    return said


def no_verdict(entries: Entries, baseline: Entries, unit: str, against: str = "the baseline") -> str | None:
    """Returns the reason against a verdict on an arm on a clock of this `unit`; `None` if there is none.

    `against` is the name of the baseline in the text.
    """
    whole = [entry for entry in [*baseline, *entries] if entry["fraction"] == 1.0]
    for entry in whole:
        where = f" in {against}" if entry in baseline else ""
        if entry["state"] == "diverged":
            return f"seed {entry['seed']} has diverged{where}"
        if entry["state"] == "finished" and _is_hot(entry):
            return f"the learning rate of seed {entry['seed']}{where} had not decayed at the end of its budget"
    finals = [entry for entry in whole if entry["state"] == "finished"]
    if len({tuple(entry["data"]) for entry in finals}) > 1:
        return f"it was evaluated on other text or tokens than {against}"
    if unit in ("seconds", "joules") and len({_machine(entry) for entry in finals}) > 1:
        return (
            f"its runs and those of {against} were made on different devices or versions, which a budget in {unit} "
            "depends on"
        )
    return None


def _is_hot(entry: Mapping[str, Any]) -> bool:
    rate, peak = entry["final_learning_rate"], entry.get("peak_learning_rate")
    return rate is not None and bool(peak) and rate > DECAYED * peak


def _machine(entry: Mapping[str, Any]) -> tuple:
    return tuple(sorted(entry.get("environment", {}).items()))


def share_of(clock: Clock, fraction: float) -> float:
    """Returns the budget of a run on a fraction of the clock, in units of the clock; steps are rounded."""
    return Clock.parse(clock.share(fraction)).budget


def notes(
    found: Mapping[str, Entries], clock: Clock, primary: str, planned: Mapping[str, Any] | None = None
) -> list[str]:
    """Returns the notes of a report on changes of the plan, on its environments and on each unusual run.

    `planned` has the number of `seeds` and the `primary` measure at the first call of the comparison.
    """
    planned = planned or {}
    every = [entry for entries in found.values() for entry in entries]
    faults = dict.fromkeys(fault for entry in every for fault in entry.get("reference_faults", ()))
    said = [f"reference times: {fault}" for fault in faults]
    seeds = len({entry["seed"] for entry in every})
    if seeds > planned.get("seeds", seeds):
        said.append(
            f"it began with {planned['seeds']} seeds and now has {seeds}: where seeds are added after a look at the "
            "result, p-values are too small"
        )
    if planned.get("primary", primary) != primary:
        said.append(
            f"it began with {planned['primary']} as the measure of its verdicts and is now judged by {primary}: where "
            "a measure is chosen after a look at the result, p-values are too small"
        )
    if len(machines := {_machine(entry) for entry in every if entry["state"] == "finished"}) > 1:
        said.append(f"its runs were made in {len(machines)} different environments (device or versions)")
    for name, entries in found.items():
        for entry in entries:
            where = f"{name}, seed {entry['seed']}, {entry['fraction']:.0%} of the budget"
            if entry["state"] != "finished":
                said.append(f"{where}: {entry['state']}" + (f" ({entry['note']})" if entry["note"] else ""))
                continue
            if entry["note"]:
                said.append(f"{where}: trained, but its evaluation {entry['note']}")
            over = (entry["clock"].get(clock.unit) or 0.0) / share_of(clock, entry["fraction"]) - 1
            if over > OVERSHOOT:
                said.append(f"{where}: its last step ended {over:.1%} over the budget")
            elif over < -1e-9:
                said.append(f"{where}: it ended at {1 + over:.1%} of its budget")
            if _is_hot(entry):
                rate = entry["final_learning_rate"]
                said.append(f"{where}: its learning rate ended at {rate:.2g}, not fully decayed")
    return said + _score_notes(found)


def _score_notes(found: Mapping[str, Entries]) -> list[str]:
    """Returns each distinct note on a score once, with its run or the number of its runs."""
    runs: dict[str, list[str]] = {}
    for name, entries in found.items():
        for entry in entries:
            for score, note in entry["score_notes"].items():
                for part in note.split("; "):
                    runs.setdefault(f"{score}: {part}", []).append(f"{name}, seed {entry['seed']}")
    return [f"{note} ({where[0] if len(where) == 1 else f'{len(where)} runs'})" for note, where in runs.items()]
