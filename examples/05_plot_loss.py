"""Draws the loss curve of a run against its clock, with the unigram floor, from its run.json.

python examples/05_plot_loss.py out --png out/loss.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", type=Path, help="the folder of a finished run")
parser.add_argument("--png", type=Path, help="the picture to write (default: loss.png in the run's folder)")
args = parser.parse_args()

run = json.loads((args.run / "run.json").read_text(encoding="utf-8"))
entries = [entry for entry in run["history"] if "loss" in entry]
unit = run["clock"]["unit"]
spent = [entry["step"] if unit in ("steps", "joules") else entry[unit] for entry in entries]

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(spent, [entry["loss"] for entry in entries], marker=".", label="training loss")
evaluation = run.get("evaluation", {})
if "unigram_floor" in evaluation:
    axes.axhline(evaluation["unigram_floor"], linestyle="--", color="grey", label="unigram floor")
if "held_out_loss" in evaluation and spent:
    axes.plot(spent[-1], evaluation["held_out_loss"], "o", color="C1", label="held-out loss at the end")
for event in run["ledger"]["events"]:
    at = next((x for x, entry in zip(spent, entries, strict=True) if entry["step"] >= event["step"]), None)
    if at is not None:
        axes.axvline(at, color="C2", linewidth=0.8)
        axes.annotate(event["what"], (at, axes.get_ylim()[1]), fontsize=7, rotation=90, va="top", ha="right")
axes.set(xlabel=unit, ylabel="loss, nats a masked token", title=str(args.run))
axes.legend()
png = args.png or args.run / "loss.png"
figure.savefig(png, dpi=120)
print(f"Loss curve in {png}")
