"""Draws the loss curve of a run against its clock, with the floor of its objective, from its run.json.

python examples/05_plot_loss.py out --png out/loss.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

from hf_effpt.core.objectives import floor_in, measured_as, objective_in

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# The part of a composite loss that is plotted; the sum of the parts is on no meaningful scale.
MAIN = ("discriminator_loss", "candidate_loss", "prediction_loss")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", type=Path, help="the folder of a finished run")
parser.add_argument("--png", type=Path, help="the picture to write (default: loss.png in the run's folder)")
args = parser.parse_args()

run = json.loads((args.run / "run.json").read_text(encoding="utf-8"))
entries = [entry for entry in run["history"] if "loss" in entry]
losses = [next((entry[name] for name in MAIN if name in entry), entry["loss"]) for entry in entries]
unit = run["clock"]["unit"]
spent = [entry["step"] if unit in ("steps", "joules") else entry[unit] for entry in entries]

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(spent, losses, marker=".", label="training loss")
evaluation = run.get("evaluation", {})
kind, floor = measured_as(objective_in(run), evaluation), floor_in(evaluation)
if floor is not None:
    axes.axhline(floor, linestyle="--", color="grey", label=kind.floor)
if "held_out_loss" in evaluation and spent:
    axes.plot(spent[-1], evaluation["held_out_loss"], "o", color="C1", label="held-out loss at the end")
for event in run["ledger"]["events"]:
    at = next((x for x, entry in zip(spent, entries, strict=True) if entry["step"] >= event["step"]), None)
    if at is not None:
        axes.axvline(at, color="C2", linewidth=0.8)
        axes.annotate(event["what"], (at, axes.get_ylim()[1]), fontsize=7, rotation=90, va="top", ha="right")
axes.set(xlabel=unit, ylabel=f"loss, nats a {kind.per}", title=str(args.run))
axes.legend()
png = args.png or args.run / "loss.png"
figure.savefig(png, dpi=120)
print(f"Loss curve in {png}")
