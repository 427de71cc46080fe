"""What the losses of an arm are of, and which of them may be set against each other."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_effpt.core.objectives import Objective, floor_in, measured_as
from hf_effpt.models.configuration_electra import CANDIDATES

Entries = Sequence[Mapping[str, Any]]
# How much two replaced rates may differ, as a share of the rate, before generators are called unequal.
EQUAL_RATES = 1e-3
ANOTHER = "its loss is not that of the baseline and cannot be compared; see the scores"


def finals_of(entries: Entries) -> list[Mapping[str, Any]]:
    """The finished runs on the whole budget."""
    return [entry for entry in entries if entry["fraction"] == 1.0 and entry["state"] == "finished"]


def final_losses(entries: Entries) -> dict[int, float]:
    """Held-out loss by seed of the finished runs on the whole budget."""
    return {entry["seed"]: entry["held_out_loss"] for entry in finals_of(entries)}


def kind_of(entries: Entries) -> Objective:
    """The objective of an arm's runs, as far as it was measured."""
    first = next((entry for entry in entries if entry["evaluation"]), entries[0])
    return measured_as(first["objective"], first["evaluation"])


def loss_of(entries: Entries, recipe: Mapping[str, Any]) -> str:
    """What an arm's loss is, in words: only losses with the same words may be compared."""
    objective, kind = entries[0]["objective"], kind_of(entries)
    if objective == "mcbert":  # a choice among more is harder
        model = recipe.get("model") or {}
        objective += f" of {model.get('candidates') or CANDIDATES[model.get('candidates_at', 'all')]} candidates"
    return f"{objective}, per {kind.per}"


def floors(entries: Entries) -> list[float]:
    """The floors of the finished runs, as far as they are known."""
    found = [floor_in(entry["evaluation"]) for entry in finals_of(entries)]
    return [floor for floor in found if floor is not None]


def margins(entries: Entries) -> list[float]:
    """How far below its floor each finished run has ended."""
    found = [(floor_in(entry["evaluation"]), entry["held_out_loss"]) for entry in finals_of(entries)]
    return [floor - loss for floor, loss in found if floor is not None]


def figures(entries: Entries, name: str) -> list[float]:
    """A figure of the evaluation of each finished run that has it, such as `replaced_rate`."""
    found = [entry["evaluation"].get(name) for entry in finals_of(entries)]
    return [value for value in found if value is not None]


def weakness(entries: Entries) -> str | None:
    """Where an arm ends, if that is so near to its floor that next to nothing was learned.

    What a generator that is no better than token frequencies puts in is told apart by them, without any language.
    """
    found, kind = margins(entries), kind_of(entries)
    generators, unigrams = figures(entries, "generator_loss"), figures(entries, "unigram_floor")
    if generators and unigrams and (above := sum(generators) / len(generators) - sum(unigrams) / len(unigrams)) >= 0:
        return f"with a generator {above:.3f} nats above the unigram floor (it has to get below)"
    gain = sum(found) / len(found) if found else None
    if gain is None or gain >= kind.least_gain:
        return None
    digits = 3 if kind.least_gain > 0.1 else 4
    where = f"only {gain:.{digits}f} nats below" if gain > 0 else f"{-gain:.{digits}f} nats above"
    return f"{where} the {kind.floor} ({kind.least_gain:g} below it are needed)"


def unequal_generators(entries: Entries, baseline: Entries) -> str | None:
    """What to know of a difference in loss between runs whose generators replace tokens at different rates."""
    own, other = (figures(of, "replaced_rate") for of in (entries, baseline))
    if not own or not other:
        return None
    rate, of_baseline = sum(own) / len(own), sum(other) / len(other)
    if abs(rate - of_baseline) <= EQUAL_RATES * of_baseline:
        return None
    return (
        f"its generator replaces {rate:.2%} of the tokens judged and the baseline's {of_baseline:.2%}: a loss depends "
        "on the generator too, so the difference of theirs is not of the models alone; see the scores"
    )
