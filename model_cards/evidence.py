"""Writes the evidence that `effpt plan` forecasts losses by from the results files.

    python model_cards/evidence.py
    python model_cards/evidence.py --pilots text/

The second line makes short runs of the recipes of those results anew, on the text that they had, each for as long as
`--dry_run` measures, into results/pilots.json.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_effpt import Recipe
from hf_effpt.core.files import read_json, write_json
from hf_effpt.planning.forecasting import KNOWN_METHODS, traits_of
from hf_effpt.planning.law import Traits, fit, traits_in
from hf_effpt.planning.measuring import measure
from hf_effpt.planning.plan import DRY_RUN_SECONDS

RESULTS = Path(__file__).parent / "results"
PILOTS = RESULTS / "pilots.json"
TARGET = Path(__file__).parents[1] / "hf_effpt" / "planning" / "evidence.json"
MOST = "encyclopedia and novels"
LEAST_WAY = 2  # times the tokens of the short run: nearer by, the scatter of losses is larger than what they fall
FILES = "backbones fast_against_stock fast_ingredients modern".split()  # which had one text


def evidence() -> dict[str, Any]:
    """Losses of masked language modelling by recipe and tokens, far enough from those of their short runs."""
    runs = [run for run in measured_runs() if run["tokens"] >= LEAST_WAY * run["pilot"]["tokens"]]
    return {"command": "python model_cards/evidence.py", "runs": runs}


def measured_runs() -> list[dict[str, Any]]:
    """All runs with a short run."""
    pilots = read_json(PILOTS)["results"]
    runs = [entry for source, arm in arms() for entry in _entries(source, arm, pilots[source])]
    for file in ("forecasts_before", "forecasts"):
        runs += [_of_forecast(row) for row in read_json(RESULTS / f"{file}.json")["results"]]
    return runs


def left_out(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Forecasts all runs by laws that had not seen their text, or of the text of most runs their recipe.

    `runs` are the evidence. Some kinds of recipe were measured on that text only.
    """
    found = []
    for run in measured_runs():
        key = "source" if run["text"] == MOST else "text"
        law = fit(other for other in runs if other[key] != run[key])
        pilot = run["pilot"]
        expected = law.forecast(traits_in(run), run["tokens"], pilot["tokens"], pilot["loss"])
        inside = sum(expected.low <= loss <= expected.high for loss in run["losses"])
        kind = law.growths[traits_in(run).kind]
        found.append(
            {key: run[key] for key in ("source", "text", "backbone", "vectors")}
            | {"gain": kind.gain, "half": kind.half, "runs": len(run["losses"]), "inside": inside}
        )
    return found


def arms() -> Iterator[tuple[str, dict[str, Any]]]:
    """Arms of the results whose losses are forecast, with names of their own."""
    for file in FILES:
        for arm in read_json(RESULTS / f"{file}.json")["arms"]:
            recipe = arm["recipe"]
            plain = not arm["free"] and {*recipe["methods"]} <= KNOWN_METHODS
            if plain and recipe["training"]["optim"] != "muon" and recipe["data"]["mlm_probability"] == 0.15:
                yield f"{file}/{arm['name']}", arm


def _entries(source: str, arm: Mapping[str, Any], pilot: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: dict[float, list[Mapping[str, Any]]] = {}
    for run in arm["runs"]:
        if run["state"] == "finished":
            found.setdefault(run["fraction"], []).append(run)
    return [
        {
            "source": source,
            "text": MOST,
            **{key: pilot[key] for key in ("backbone", "vectors", "layers", "width")},
            "pilot": {"tokens": pilot["tokens"], "loss": pilot["loss"]},
            "tokens": round(sum(run["clock"]["tokens"] for run in runs) / len(runs)),
            "losses": [round(run["held_out_loss"], 4) for run in runs],
        }
        for runs in found.values()
    ]


def _of_forecast(row: Mapping[str, Any]) -> dict[str, Any]:
    """A run that was forecast on another text, from the short run of its forecast."""
    return {
        "source": f"{row['recipe']}, {row['text']}, {row['budget']}",
        "text": row["text"],
        **row["traits"],
        "pilot": {"tokens": row["measured"]["tokens"], "loss": row["measured"]["loss"]},
        "tokens": row["tokens"]["actual"],
        "losses": [row["held_out_loss"]["actual"]],
    }


def pilots(text: str) -> dict[str, Any]:
    """Makes the short run of each arm; returns its tokens and loss beside the traits of its recipe."""
    found = {}
    for source, arm in arms():
        sections = arm["recipe"]
        recipe = Recipe.load({**sections, "data": {**sections["data"], "dataset": text}})
        measured = measure(recipe.resolved(), DRY_RUN_SECONDS)
        traits = traits_of(recipe, measured)
        if not isinstance(traits, Traits) or measured.loss is None:
            sys.exit(f"{source}: {traits}")
        found[source] = vars(traits) | {"tokens": round(measured.tokens), "loss": round(measured.loss, 4)}
        print(source, found[source], flush=True)
    command = shlex.join(["python", "model_cards/evidence.py", *sys.argv[1:]])
    return {"command": command, "results": found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pilots", metavar="TEXT", help="make the short runs first, on this text")
    args = parser.parse_args()
    if args.pilots:
        write_json(PILOTS, pilots(args.pilots))
    found = evidence()
    TARGET.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_json(RESULTS / "left_out.json", {"command": found["command"], "results": left_out(found["runs"])})
