"""Forecasts runs as `effpt pretrain --dry_run` does, makes them, and writes what was forecast beside what came.

    python examples/forecast_errors.py --case fast_tiny news/ 60s news --case tiny films/ 40s films --out OUT.json

Each case is a recipe, a text, a budget and a name for the text. Times need a machine on which nothing else runs, or
one core of which nothing else has.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hf_effpt import Recipe
from hf_effpt.core.files import read_json, write_json
from hf_effpt.planning.forecasting import forecast, traits_of
from hf_effpt.planning.law import Traits
from hf_effpt.planning.measuring import measure
from hf_effpt.planning.plan import DRY_RUN_SECONDS
from hf_effpt.preparation import prepare_data

MEGABYTE = 2**20


def one(recipe: str, text: str, budget: str, name: str, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Forecasts and makes one run; returns both figures of its time, power, memory and loss."""
    settings = ["--data.dataset", text, "--training.budget", budget, "--training.output_dir", str(folder), *overrides]
    wanted = Recipe.load(recipe, settings)
    prepare_data(wanted)
    measured = measure(wanted.resolved(), DRY_RUN_SECONDS)
    traits = traits_of(wanted, measured)
    planned = wanted.training.clock
    if planned is None:
        sys.exit(f"{recipe} on {text}: there is no budget to forecast")
    expected = forecast(measured, planned, traits if isinstance(traits, Traits) else None)
    command = [sys.executable, "-m", "hf_effpt.cli.main", "pretrain", recipe, *settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{shlex.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    run = read_json(folder / "run.json")
    clock, loss = run["clock"], run["evaluation"]["held_out_loss"]
    if expected.loss is None or measured.watts is None or measured.peak_bytes is None:
        sys.exit(f"{recipe} on {text}: this machine or recipe tells no loss, power or memory")
    in_time = planned.unit == "seconds"
    return {
        "recipe": recipe,
        "text": name,
        "budget": budget,
        "load": os.getloadavg()[0],
        "traits": vars(traits),
        "measured": {"tokens": round(measured.tokens), "loss": measured.loss},
        "tokens": {"forecast": round(expected.tokens), "actual": clock["tokens"]},
        "seconds": {
            "forecast": None if in_time else round(expected.seconds, 1),
            "actual": None if in_time else round(clock["seconds"], 1),
        },
        "tokens_per_joule": {
            "forecast": round(expected.tokens / (measured.watts * expected.seconds)),
            "actual": round(clock["tokens"] / clock["joules"]),
        },
        "memory_mb": {
            "forecast": round(measured.peak_bytes / MEGABYTE),
            "actual": round(usage.ru_maxrss * 1024 / MEGABYTE),
        },
        "held_out_loss": {
            "forecast": round(expected.loss.value, 3),
            "low": round(expected.loss.low, 3),
            "high": round(expected.loss.high, 3),
            "actual": round(loss, 3),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--case", nargs=4, action="append", required=True, metavar=("RECIPE", "TEXT", "BUDGET", "NAME"),
        help="a run to forecast and make; several are made in turn",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="file of the results")
    args, overrides = parser.parse_known_args()
    found = []
    for number, (recipe, text, budget, name) in enumerate(args.case):
        with TemporaryDirectory() as folder:
            found.append(one(recipe, text, budget, name, Path(folder) / str(number), overrides))
        command = shlex.join(["python", "examples/forecast_errors.py", *sys.argv[1:]])
        write_json(args.out, {"command": command, "results": found})


if __name__ == "__main__":
    main()
