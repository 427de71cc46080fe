"""Scores on a model card: BLiMP and fine-tuning tasks, each with its spread and notes."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult


def score_rows(scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns the cells of the card's table of scores; the held-out loss has its own table."""
    return [
        {
            "name": name,
            "value": "undefined" if score["value"] is None else f"{score['value']:.4f}",
            "spread": "" if score.get("spread") is None else f"{score['spread']:.4f}",
            "n": f"{score['n']:,}",
            "notes": "; ".join(score.get("notes") or ()).replace("|", "\\|"),
        }
        for name, score in scores.items()
        if name != "held_out_loss"
    ]


def score_results(scores: Mapping[str, Mapping[str, Any]], fills_masks: bool) -> list[EvalResult]:
    """Returns the defined scores as the Hub indexes them; the protocol stays part of a metric's name.

    If `fills_masks` is `True`, BLiMP counts as a score of the task fill-mask.
    """
    of_blimp = "fill-mask" if fills_masks else "other"
    results = []
    for name, score in scores.items():
        task, _, figure = name.partition("/")
        if figure and score["value"] is not None:
            results.append(
                EvalResult(
                    task_type=of_blimp if task == "blimp" else "text-classification",
                    dataset_type=task,
                    dataset_name=task,
                    metric_type=figure.partition("@")[0],
                    metric_name=name,
                    metric_value=round(score["value"], 4),
                )
            )
    return results
