"""Draws README's picture: held-out loss against time of stock BERT, of our default and of our fastest recipe.

python model_cards/picture.py
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from hf_effpt.comparison.chart_series import mean_line

HERE = Path(__file__).parent
# arm: what it is called here, and its colour, as in the reports
LINES = {
    "stock": ("stock Trainer", "#6b6b6b"),
    "tiny": ("hf_effpt, default", "#0072B2"),
    "fast_tiny": ("hf_effpt, fastest", "#D55E00"),
}


def draw(report: dict) -> Figure:
    """Draws the mean over the seeds of each arm with its 95 % interval, on white, for light and dark pages alike."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for arm in report["arms"]:
        (name, colour), mean = LINES[arm["name"]], mean_line(arm)
        seconds, losses = mean["x"]["seconds"], mean["loss"]
        axes.plot(seconds, losses, color=colour, linewidth=2.5)
        axes.fill_between(seconds, mean["low"], mean["high"], color=colour, alpha=0.18, linewidth=0)
        end = arm["summary"]["final_loss"]["mean"]
        axes.annotate(f"{name}: {end:.2f}", (seconds[-1], losses[-1]), (8, 0), textcoords="offset points",
                      color=colour, fontsize=11, fontweight="bold", va="center")  # fmt: skip
    floor = report["arms"][0]["summary"]["floor"]["mean"]
    axes.axhline(floor, linestyle="--", color="black", linewidth=1)
    axes.text(0.01, floor + 0.04, "token frequencies only", fontsize=9, va="bottom",
              transform=axes.get_yaxis_transform())  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="seconds of training, one CPU core", ylabel="held-out loss, nats a masked token")
    axes.set_xlim(0, report["clock"]["budget"] * 1.02)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fast_against_stock.png")
    args = parser.parse_args()
    report = json.loads((HERE / "results" / "fast_against_stock.json").read_text(encoding="utf-8"))
    draw(report).savefig(args.out, dpi=100)
