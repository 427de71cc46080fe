"""Losses of an arm's runs: their kind, their floor, and which of them can be compared."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from hf_effpt.core.objectives import Objective, floor_in, measured_as
from hf_effpt.models.generator_settings import CANDIDATES

Entries = Sequence[Mapping[str, Any]]
LOSS = "held_out_loss"  # name of the loss among the measures of an arm
EQUAL_RATES = 1e-3  # largest relative difference of the replaced rates of two equal generators


def finals_of(entries: Entries) -> list[Mapping[str, Any]]:
    """Returns the finished runs on the whole budget."""
    return [entry for entry in entries if entry["fraction"] == 1.0 and entry["state"] == "finished"]


def final_losses(entries: Entries) -> dict[int, float]:
    """Returns the held-out loss by seed of the finished runs on the whole budget."""
    return {entry["seed"]: entry["held_out_loss"] for entry in finals_of(entries)}


def kind_of(entries: Entries) -> Objective:
    """Returns the objective of an arm's runs, as recorded in the first evaluation."""
    first = next((entry for entry in entries if entry["evaluation"]), entries[0])
    return measured_as(first["objective"], first["evaluation"])


def loss_of(entries: Entries, recipe: Mapping[str, Any]) -> str:
    """Describes an arm's loss. Only losses of equal description can be compared."""
    objective, kind = entries[0]["objective"], kind_of(entries)
    if objective == "mcbert":  # a choice among more candidates is harder
        model = recipe.get("model") or {}
        objective += f" of {model.get('candidates') or CANDIDATES[model.get('candidates_at', 'all')]} candidates"
    return f"{objective}, per {kind.per}"


def floors(entries: Entries) -> list[float]:
    """Returns the known loss floors of the finished runs on the whole budget."""
    return [floor for entry in finals_of(entries) if (floor := floor_in(entry["evaluation"])) is not None]


def margins(entries: Entries) -> list[float]:
    """Returns floor minus held-out loss of each finished run on the whole budget, where the floor is known."""
    finals = finals_of(entries)
    return [floor - e["held_out_loss"] for e in finals if (floor := floor_in(e["evaluation"])) is not None]


def metric_values(entries: Entries, name: str) -> list[float]:
    """Returns a value of the evaluation, such as `replaced_rate`, of each full run that has it."""
    return [value for entry in finals_of(entries) if (value := entry["evaluation"].get(name)) is not None]


def weakness(entries: Entries) -> str | None:
    """Describes where an arm ends if it has learned next to nothing; `None` if it has learned enough.

    That is the case too if a generator is no better than token frequencies: then frequencies alone tell its
    replacements from the original tokens.
    """
    found, kind = margins(entries), kind_of(entries)
    generators, unigrams = metric_values(entries, "generator_loss"), metric_values(entries, "unigram_floor")
    if generators and unigrams and (above := fmean(generators) - fmean(unigrams)) >= 0:
        return f"with a generator {above:.3f} nats above the unigram floor (it has to get below)"
    gain = fmean(found) if found else None
    if gain is None or gain >= kind.least_gain:
        return None
    digits = 3 if kind.least_gain > 0.1 else 4
    where = f"only {gain:.{digits}f} nats below" if gain > 0 else f"{-gain:.{digits}f} nats above"
    return f"{where} the {kind.floor} ({kind.least_gain:g} below it are needed)"


def unequal_generators(entries: Entries, baseline: Entries) -> str | None:
    """Returns a note if the generators of two arms replace tokens at different rates; else `None`."""
    own, other = (metric_values(of, "replaced_rate") for of in (entries, baseline))
    if not own or not other:
        return None
    rate, of_baseline = fmean(own), fmean(other)
    if abs(rate - of_baseline) <= EQUAL_RATES * of_baseline:
        return None
    return (
        f"its generator replaces {rate:.2%} of the tokens judged and the baseline's {of_baseline:.2%}: a loss depends "
        "on the generator too, so the difference of theirs is not of the models alone; see the scores"
    )
