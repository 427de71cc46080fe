"""The pre-training objectives: names, corruption of tokens, and the floor of the loss."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Objective:
    """A pre-training objective.

    Args:
        summary (`str`): one sentence.
        per (`str`): unit that the held-out loss is averaged over.
        floor (`str`): name of the loss of a trivial predictor; a lower one shows that the model learned from the text.
        least_gain (`float`): distance below the floor, in nats, that a baseline must reach for arms to be comparable.
        corruption (`tuple[float, float, float]`): shares of the chosen tokens that are masked, replaced by a random
            token, and left.
        reads_mask (`bool`, *optional*, defaults to `False`): If `True`, the exported model can fill masks.
    """

    summary: str
    per: str
    floor: str
    least_gain: float
    corruption: tuple[float, float, float]
    reads_mask: bool = False


_ELECTRA = (0.85, 0.0, 0.15)  # google-research/electra, `pretrain_helpers`

# Least gains are about half of what 4 layers of size 128 reach in 90 s on one CPU core, where that is known.
OBJECTIVES: dict[str, Objective] = {
    # 0.40 nats of 6.17
    "mlm": Objective(
        "Predicts masked tokens (BERT).", "masked token", "unigram floor", 0.25, (0.8, 0.1, 0.1), reads_mask=True
    ),
    # 0.009 nats of 0.425: a binary choice with unequal classes leaves less to gain than one from a vocabulary.
    "electra": Objective(
        "Tells tokens that a generator has replaced from original ones (ELECTRA).",
        "token", "prior entropy", 0.005, _ELECTRA,
    ),
    # The same share of its floor, 0.056 nats, as for electra: nearly all chosen tokens are replaced.
    "electra_15": Objective(
        "As electra, with a loss at the chosen positions only.", "masked token", "prior entropy", 0.001, _ELECTRA
    ),
    # As mlm.
    "replace_mlm": Objective(
        "Predicts the original of tokens that a generator has replaced.",
        "masked token", "unigram floor", 0.25, _ELECTRA,
    ),
    # As mlm, for the 15 % of the tokens that are replaced.
    "all_tokens_mlm": Objective(
        "As replace_mlm, for every token, with a copy mechanism.", "token", "copy floor", 0.04, _ELECTRA
    ),
    # 0.015 nats of 0.77 after 152 steps
    "mcbert": Objective(
        "Chooses the original of each token among candidates of a meta controller (MC-BERT).",
        "token", "floor of always rejecting", 0.01, (1.0, 0.0, 0.0),
    ),
}  # fmt: skip
# Candidates at chosen positions only, always with the original: 0.05 nats of 2.30 after 53 steps.
_SELECTING = replace(
    OBJECTIVES["mcbert"], per="masked token", floor="loss of a guess among the candidates", least_gain=0.1
)
# Knowledge of the trivial predictor behind each floor.
FLOORS = {
    "unigram floor": "knows how frequent each token is and nothing else",
    "prior entropy": "knows what share of the tokens it judges is replaced and nothing else",
    "copy floor": "knows how often a token is the original, else how frequent each token is, and nothing else",
    "floor of always rejecting": "knows how often none of the candidates is right and guesses among them otherwise",
    "loss of a guess among the candidates": "takes every candidate to be as likely as any other",
}


def objective_of(config: object) -> str:
    """Objective that a model of this configuration is trained with."""
    return getattr(config, "objective", "mlm")


def objective_in(run: Mapping[str, Any]) -> str:
    """Objective of a run by its `run.json`; `mlm` for old files, which name none."""
    parts = [run.get("evaluation"), run.get("model"), (run.get("recipe") or {}).get("model")]
    return next((part["objective"] for part in parts if part and part.get("objective")), "mlm")


def measured_as(objective: str, evaluation: Mapping[str, Any]) -> Objective:
    """The [`Objective`] that an evaluation measured; MC-BERT has a variant for chosen positions only."""
    return _SELECTING if objective == "mcbert" and "detection_loss" in evaluation else OBJECTIVES[objective]


def floor_in(evaluation: Mapping[str, Any]) -> float | None:
    """Floor of an evaluation's held-out loss, in nats; `None` if unknown."""
    return evaluation.get("floor") if "objective" in evaluation else evaluation.get("unigram_floor")
