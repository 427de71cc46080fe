"""Writes the evidence that `effpt plan` forecasts losses by from the results files.

python model_cards/evidence.py
"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TARGET = Path(__file__).parents[1] / "hf_effpt" / "planning" / "evidence.json"
FILES = "backbones depth fast_against_stock fast_ingredients notes objectives selection width".split()
# Share of the floor that a neighbour saves ([`TextMeasures`]) in the text of these runs, by size of the vocabulary.
PREDICTABILITY = {2048: 0.2264, 8192: 0.1437}
METHODS = {"stacking", "layerdrop", "layerskip", "earlybert"}  # whose effect is that a step costs less


def evidence() -> dict[str, Any]:
    """Losses of masked language modelling by recipe and tokens, of all arms that have a floor."""
    runs = [
        entry
        for file in FILES
        for arm in json.loads((RESULTS / f"{file}.json").read_text())["arms"]
        for entry in _entries(file, arm)
    ]
    return {"command": "python model_cards/evidence.py", "runs": runs}


def _entries(file: str, arm: dict[str, Any]) -> list[dict[str, Any]]:
    recipe, found = arm["recipe"], {}
    model, data, training = (recipe[name] for name in ("model", "data", "training"))
    plain = not arm["free"] and {*recipe["methods"]} <= METHODS and training["optim"] != "muon"
    if not plain or model["objective"] != "mlm" or isinstance(data["mlm_probability"], dict):
        return []
    for run in arm["runs"]:
        if run["state"] == "finished" and (run.get("evaluation") or {}).get("unigram_floor"):
            found.setdefault(run["fraction"], []).append(run)
    start = model.get("start") or {}
    return [
        {
            "source": f"{file}/{arm['name']}",
            "tokens": round(sum(run["clock"]["tokens"] for run in runs) / len(runs)),
            "backbone": model.get("backbone", "bert"),
            "window": model.get("local_attention") is not None,
            "vectors": "embeddings" in start,
            "frequencies": "bias" in start,
            "vocabulary": data["vocab_size"],
            "step_tokens": training["per_device_train_batch_size"] * data["sequence_length"],
            "layers": model.get("num_hidden_layers") or 2,
            "width": model.get("hidden_size") or 128,
            "predictability": PREDICTABILITY[data["vocab_size"]],
            "floor": round(runs[0]["evaluation"]["unigram_floor"], 4),
            "losses": [round(run["held_out_loss"], 4) for run in runs],
        }
        for runs in found.values()
    ]


if __name__ == "__main__":
    TARGET.write_text(json.dumps(evidence(), indent=1) + "\n")
