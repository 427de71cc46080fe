"""Entry of one run in `report.json`: its state, loss, costs, curve and scores as plain values."""

import math
from collections.abc import Mapping
from typing import Any

from hf_effpt.core.clock import JOULES_A_KWH
from hf_effpt.core.errors import EffptError
from hf_effpt.core.objectives import objective_in
from hf_effpt.evaluation.held_out_text import fingerprint_in

from .report_tables import finite
from .run_grid import Run

CLOCK = ("steps", "tokens", "flops", "seconds", "reference_seconds", "joules")


def run_entry(run: Run, fault: str | None, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Collects the entry of a run; raises an `EffptError` if it was trained without held-out text.

    `fault` is the reason if the run or its evaluation failed. If `asked`, the arguments of its evaluation, is given,
    scores of any other evaluation are left out.
    """
    entry: dict[str, Any] = {"seed": run.seed, "fraction": run.fraction, "folder": str(run.folder), "note": fault}
    entry |= {"objective": run.recipe.model.objective, "evaluation": {}}
    record = run.record()
    if record is None:
        state = "missing" if fault is None else "failed"
        return entry | {"state": state, "held_out_loss": None, "clock": {}, "co2e": None, "final_learning_rate": None,
                        "costs": {}, "accounts": {}, "curve": [], "scores": {}, "score_notes": {}}  # fmt: skip
    parts = ("evaluation", "energy", "learning_rate", "data")
    evaluation, energy, rates, rows = (record.get(part) or {} for part in parts)
    loss = evaluation.get("held_out_loss")
    if loss is None:
        raise EffptError(
            f"{run.folder} was trained without held-out text, so there is nothing to compare; set `data.validation`."
        )
    diverged = not math.isfinite(loss)
    evaluated = (run.scores() or {}) if run.fraction == 1.0 else {}
    scores = _scores(evaluated) if not asked or evaluated.get("asked") == asked else {}
    return entry | {
        "state": "diverged" if diverged else "finished",
        "note": "its held-out loss is not finite" if diverged else fault,
        "held_out_loss": None if diverged else loss,
        "objective": objective_in(record),
        "evaluation": finite(evaluation),
        "clock": {name: record["clock"].get(name) for name in CLOCK},
        "co2e": energy.get("co2e_grams"),
        "final_learning_rate": rates.get("final"),
        "peak_learning_rate": rates.get("peak"),
        "costs": record.get("costs") or {},
        "accounts": record.get("accounts") or {},
        "curve": curve(record.get("history") or []),
        "scores": {name: score["value"] for name, score in scores.items()},
        "score_notes": {name: "; ".join(score["notes"]) for name, score in scores.items() if score.get("notes")},
        "reference_faults": (record.get("reference") or {}).get("faults") or [],
        # losses can be compared if these are equal
        "data": [fingerprint_in(record), rows.get("sequence_length"), evaluation.get("masked_tokens")],
        "energy": {key: energy.get(key) for key in ("source", "measured", "carbon_intensity", "carbon_source")},
        "environment": record.get("environment") or {},
    }


def _scores(evaluated: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the scores of an evaluation by name, with the average of its fine-tuned scores."""
    scores, average = dict(evaluated.get("scores") or {}), evaluated.get("average")
    if average:
        scores[average["name"]] = {"value": average["value"], "notes": [average["note"].replace("; ", ", ")]}
    return scores


def curve(history: list[dict[str, Any]]) -> list[dict[str, float | None]]:
    """Returns the finite held-out losses along a run with the costs until then; the last one of each step."""
    points = {}
    for point in history:
        if "eval_loss" in point and "clock" in point and math.isfinite(point["eval_loss"]):
            joules = point.get("joules")
            points[point["step"]] = {
                **{name: point[name] for name in ("clock", "seconds", "tokens", "flops")},
                "reference_seconds": point.get("reference_seconds"),
                "kwh": None if joules is None else joules / JOULES_A_KWH,
                "loss": point["eval_loss"],
            }
    return [points[step] for step in sorted(points)]
