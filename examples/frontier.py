"""Frontier of `compare_compressed.py`: held-out loss against model size and measured latency, with controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_effpt.comparison.statistics import interval, paired
from hf_effpt.core.errors import EffptError

COMPRESSED, RANDOM, SMALL, LARGE = "compressed", "random", "small", "large"
CONTROLS = {
    RANDOM: "the same cut with heads, neurons and layers chosen at random",
    SMALL: "the small shape, trained from scratch on the whole budget",
    LARGE: "the large model, left whole",
}
AXES = {"parameters": "parameters", "latency_1": "latency of 1 row, ms", "latency_32": "latency of 32 rows, ms"}
FIGURES = ("held_out_loss", "parameters", "bytes", *AXES)

Points = Mapping[str, Mapping[int, Mapping[str, Any]]]  # measures by model name and seed


def frontier(points: Points) -> dict[str, Any]:
    """Returns the mean measures of all models and the differences of the compressed model to its controls.

    Args:
        points (`Mapping`): measures by model name and seed: `held_out_loss`, `parameters`, `bytes`, and `latency_1`
            and `latency_32` in milliseconds, without which a model is only smaller in memory. `compressed`, `random`,
            `small` and `large` are needed.

    Returns:
        `models`: mean and 95 % interval by model name and measure; `differences`: the difference in held-out loss to
        each control, paired by seed.

    Raises:
        EffptError: if a control is missing, has other seeds or another shape, or has no latency.
    """
    check_controls(points)
    models = {
        name: {
            figure: asdict(found)
            for figure in FIGURES
            if (found := interval([point[figure] for point in by_seed.values() if figure in point])) is not None
        }
        for name, by_seed in points.items()
    }
    losses = {name: {seed: point["held_out_loss"] for seed, point in of.items()} for name, of in points.items()}
    differences = {}
    for control in CONTROLS:
        gap = paired(losses[COMPRESSED], losses[control])
        differences[control] = gap and asdict(gap)
    return {"models": models, "differences": differences}


def check_controls(points: Points) -> None:
    """Checks that the controls of the compressed model are complete.

    Raises:
        EffptError: if a control is missing, has other seeds or another shape, or has no latency.
    """
    if COMPRESSED not in points:
        raise EffptError(f"There is no model `{COMPRESSED}` to compare, but {', '.join(points) or 'none'}.")
    for control, what in CONTROLS.items():
        if control not in points:
            raise EffptError(
                f"The control `{control}` is missing: {what}. Without it a compressed model's loss says nothing; "
                "train it on the same budget with the same seeds."
            )
        if set(points[control]) != set(points[COMPRESSED]):
            raise EffptError(
                f"The control `{control}` has the seeds {sorted(points[control])}, and `{COMPRESSED}` has "
                f"{sorted(points[COMPRESSED])}; train both with the same."
            )
    for seed, point in points[LARGE].items():
        if point["parameters"] <= points[COMPRESSED][seed]["parameters"]:
            raise EffptError(
                f"The control `{LARGE}` with seed {seed} has {point['parameters']:,} parameters, no more than "
                f"`{COMPRESSED}`: it was cut, too, or nothing was; train it without `compress`."
            )
    for name in (COMPRESSED, *CONTROLS):
        for seed, point in points[name].items():
            if lacking := [axis for axis in AXES if point.get(axis) is None]:
                raise EffptError(
                    f"`{name}` with seed {seed} has no {', '.join(lacking)}; measure it with `latency`: fewer "
                    "parameters do not say that a model is faster."
                )
            same = points[COMPRESSED][seed]["parameters"]
            if name in (RANDOM, SMALL) and point["parameters"] != same:
                raise EffptError(
                    f"The control `{name}` with seed {seed} has {point['parameters']:,} parameters, and "
                    f"`{COMPRESSED}` has {same:,}; give it the same shape."
                )


def table(found: Mapping[str, Any]) -> str:
    """Returns the frontier as a Markdown table."""
    lines = ["| model | held-out loss | parameters | MB | 1 row, ms | 32 rows, ms |", "|---|---|---:|---:|---:|---:|"]
    for name, figures in found["models"].items():
        cells = [_spread(figures["held_out_loss"], 4), f"{figures['parameters']['mean']:,.0f}"]
        cells.append(f"{figures['bytes']['mean'] / 1e6:.2f}")
        cells += [f"{figures[axis]['mean']:.2f}" if axis in figures else "" for axis in ("latency_1", "latency_32")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for control, gap in found["differences"].items():
        if gap is not None:
            lines += ["", f"Compressed minus {control}: {gap['mean']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f})."]
    return "\n".join([*lines, ""])


def _spread(figure: Mapping[str, Any], digits: int) -> str:
    told = f"{figure['mean']:.{digits}f}"
    return told if figure["low"] is None else f"{told} ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"


def plot(found: Mapping[str, Any], path: str | Path, axes: Sequence[str] = tuple(AXES)) -> Path:
    """Draws the held-out loss with its interval against each axis, a point per model, as a PNG file."""
    from matplotlib.figure import Figure  # without pyplot, which would keep every figure and choose a window system

    figure = Figure(figsize=(4.2 * len(axes), 4.4), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        for number, (name, figures) in enumerate(found["models"].items()):
            if axis in figures:
                place, loss = figures[axis], figures["held_out_loss"]
                panel.errorbar(
                    place["mean"], loss["mean"], xerr=_arms(place), yerr=_arms(loss), fmt="o", capsize=3,
                    color=f"C{number}", label=name,
                )  # fmt: skip
        panel.set_xlabel(AXES[axis])
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25, linewidth=0.6)
    panels[0].set_ylabel("held-out loss, nats")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    return Path(path)


def _arms(figure: Mapping[str, Any]) -> list[list[float]] | None:
    """Returns the distances from the mean to the lower and the upper bound; `None` if there are no bounds."""
    if figure["low"] is None:
        return None
    return [[figure["mean"] - figure["low"]], [figure["high"] - figure["mean"]]]
