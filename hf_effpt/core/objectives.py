"""The pre-training objectives: their names, how tokens are corrupted, and what a loss is measured against."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Objective:
    """One way to learn from text.

    Args:
        summary (`str`): what is learned, in one sentence.
        per (`str`): what the held-out loss is a mean over.
        floor (`str`): what the loss is that a model has to get below to have learned anything of the text.
        least_gain (`float`): how far below that a baseline has to end, in nats, for arms to differ in anything.
        corruption (`tuple[float, float, float]`): the shares of the chosen tokens that become the mask token, become a
            random token, and stay.
        reads_mask (`bool`, *optional*, defaults to `False`): whether what is exported has read the mask token, and so
            may be asked to fill masks.
    """

    summary: str
    per: str
    floor: str
    least_gain: float
    corruption: tuple[float, float, float]
    reads_mask: bool = False


_ELECTRA = (0.85, 0.0, 0.15)  # google-research/electra, `pretrain_helpers`

# A least gain is about half of what runs of 4 layers of 128 come to in 90 s on one CPU core, where that is known.
OBJECTIVES: dict[str, Objective] = {
    # 0.40 nats of 6.17
    "mlm": Objective(
        "Predicts masked tokens (BERT).", "masked token", "unigram floor", 0.25, (0.8, 0.1, 0.1), reads_mask=True
    ),
    # 0.009 nats of 0.425: a choice between two, most often the same, has less to give than one of a vocabulary.
    "electra": Objective(
        "Tells tokens that a generator has replaced from original ones (ELECTRA).",
        "token",
        "prior entropy",
        0.005,
        _ELECTRA,
    ),
    # As large a part of its floor, 0.056 nats, as of electra's: of the chosen tokens nearly all are replaced.
    "electra_15": Objective(
        "As electra, with a loss at the chosen positions only.", "masked token", "prior entropy", 0.001, _ELECTRA
    ),
    # Of the same kind as mlm.
    "replace_mlm": Objective(
        "Predicts the original of tokens that a generator has replaced.",
        "masked token",
        "unigram floor",
        0.25,
        _ELECTRA,
    ),
    # That of mlm at the 15 % of the tokens that are replaced.
    "all_tokens_mlm": Objective(
        "As replace_mlm, for every token, with a copy mechanism.", "token", "copy floor", 0.04, _ELECTRA
    ),
    # 0.015 nats of 0.77 after 152 steps
    "mcbert": Objective(
        "Chooses the original of each token among candidates of a meta controller (MC-BERT).",
        "token",
        "floor of always rejecting",
        0.01,
        (1.0, 0.0, 0.0),
    ),
}
# With candidates at chosen positions only, where the original is always one of them: 0.05 nats of 2.30 after 53 steps.
_SELECTING = replace(
    OBJECTIVES["mcbert"], per="masked token", floor="loss of a guess among the candidates", least_gain=0.1
)
# What a predictor knows whose loss is a floor.
FLOORS = {
    "unigram floor": "knows how frequent each token is and nothing else",
    "prior entropy": "knows what share of the tokens it judges is replaced and nothing else",
    "copy floor": "knows how often a token is the original, else how frequent each token is, and nothing else",
    "floor of always rejecting": "knows how often none of the candidates is right and guesses among them otherwise",
    "loss of a guess among the candidates": "takes every candidate to be as likely as any other",
}


def objective_of(config: object) -> str:
    """The objective that a model of this configuration is trained with."""
    return getattr(config, "objective", "mlm")


def objective_in(run: Mapping[str, Any]) -> str:
    """The objective of a run by its `run.json`; of older ones, which do not name any, masked language modelling."""
    parts = [run.get("evaluation"), run.get("model"), (run.get("recipe") or {}).get("model")]
    return next((part["objective"] for part in parts if part and part.get("objective")), "mlm")


def measured_as(objective: str, evaluation: Mapping[str, Any]) -> Objective:
    """What a run's evaluation is of: the objective, with what its loss is a mean over and measured against."""
    return _SELECTING if objective == "mcbert" and "detection_loss" in evaluation else OBJECTIVES[objective]


def floor_in(evaluation: Mapping[str, Any]) -> float | None:
    """What the held-out loss of an evaluation has to get below; `None` where it is not known."""
    return evaluation.get("floor") if "objective" in evaluation else evaluation.get("unigram_floor")
