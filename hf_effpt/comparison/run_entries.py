"""What a comparison knows of one run: the plain values of `report.json`."""

import math
from collections.abc import Mapping
from typing import Any

from hf_effpt.core.clock import JOULES_A_KWH
from hf_effpt.core.errors import EffptError
from hf_effpt.core.objectives import objective_in
from hf_effpt.evaluation.held_out import fingerprint_in

from .run_grid import Run

CLOCK = ("steps", "tokens", "flops", "seconds", "reference_seconds", "joules")


def run_entry(run: Run, fault: str | None, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """State, loss, totals, curve and scores of a run.

    Args:
        run ([`Run`]): the run.
        fault (`str`, *optional*): why it, or its evaluation, failed.
        asked (`Mapping`, *optional*): how it was to be evaluated; scores of another evaluation are left out.
    """
    entry: dict[str, Any] = {"seed": run.seed, "fraction": run.fraction, "folder": str(run.folder), "note": fault}
    entry |= {"objective": run.recipe.model.objective, "evaluation": {}}
    record = run.record()
    if record is None:
        state = "missing" if fault is None else "failed"
        return entry | {"state": state, "held_out_loss": None, "clock": {}, "co2e": None, "final_learning_rate": None,
                        "costs": {}, "accounts": {}, "curve": [], "scores": {}, "score_notes": {}}  # fmt: skip
    evaluation, energy = record.get("evaluation") or {}, record.get("energy") or {}
    loss = evaluation.get("held_out_loss")
    if loss is None:
        raise EffptError(
            f"{run.folder} was trained without held-out text, so there is nothing to compare; set `data.validation`."
        )
    diverged = not math.isfinite(loss)
    evaluated = (run.scores() or {}) if run.fraction == 1.0 else {}
    scores = scores_of(evaluated) if not asked or evaluated.get("asked") == asked else {}
    return entry | {
        "state": "diverged" if diverged else "finished",
        "note": "its held-out loss is not finite" if diverged else fault,
        "held_out_loss": None if diverged else loss,
        "objective": objective_in(record),
        "evaluation": {key: value if is_known(value) else None for key, value in evaluation.items()},
        "clock": {name: record["clock"].get(name) for name in CLOCK},
        "co2e": energy.get("co2e_grams"),
        "final_learning_rate": (record.get("learning_rate") or {}).get("final"),
        "peak_learning_rate": (record.get("learning_rate") or {}).get("peak"),
        "costs": record.get("costs") or {},
        "accounts": record.get("accounts") or {},
        "curve": curve(record.get("history") or []),
        "scores": {name: score["value"] for name, score in scores.items()},
        "score_notes": {name: "; ".join(score["notes"]) for name, score in scores.items() if score.get("notes")},
        "reference_faults": (record.get("reference") or {}).get("faults") or [],
        "data": data_of(record),
        "energy": {key: energy.get(key) for key in ("source", "measured", "carbon_intensity", "carbon_source")},
        "environment": record.get("environment") or {},
    }


def is_known(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def scores_of(evaluated: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of an evaluation by name, with the average of its fine-tuned ones."""
    scores, average = dict(evaluated.get("scores") or {}), evaluated.get("average")
    if average:
        scores[average["name"]] = {"value": average["value"], "notes": [average["note"].replace("; ", ", ")]}
    return scores


def curve(history: list[dict[str, Any]]) -> list[dict[str, float | None]]:
    """Held-out loss along a run, against all that was spent until then; one point a moment, finite ones only."""
    points = {
        point["step"]: {
            "clock": point["clock"],
            "seconds": point["seconds"],
            "tokens": point["tokens"],
            "flops": point["flops"],
            "reference_seconds": point.get("reference_seconds"),
            "kwh": None if point.get("joules") is None else point["joules"] / JOULES_A_KWH,
            "loss": point["eval_loss"],
        }
        for point in history
        if "eval_loss" in point and "clock" in point and math.isfinite(point["eval_loss"])
    }
    return [points[step] for step in sorted(points)]


def data_of(record: dict[str, Any]) -> list[Any]:
    """What must be equal for held-out losses to be comparable: rows by content, and what they were made of."""
    data, masked = record.get("data") or {}, (record.get("evaluation") or {}).get("masked_tokens")
    return [fingerprint_in(record), data.get("sequence_length"), masked]
