"""Pictures of a report, drawn with matplotlib."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hf_effpt.core.errors import EffptError

from . import chart_series
from .report_tables import FEW_ARMS, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def require_plotting() -> None:
    """Raises an `EffptError` if matplotlib is not installed, before anything is trained."""
    if importlib.util.find_spec("matplotlib") is None:
        raise EffptError(
            "A comparison's report is drawn with matplotlib, which is not installed. "
            "Install it: `pip install 'hf_effpt[plot]'`."
        )


def write_plots(report: Report, folder: str | os.PathLike) -> list[Path]:
    """Draws the held-out loss against each known axis, and the paired differences, as PNG files in `folder`.

    Raises an `EffptError` if matplotlib is not installed.
    """
    require_plotting()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: _losses(report, *drawn) for name, drawn in chart_series.pictures(report).items()}
    if len(report["arms"]) > 1:
        pictures[chart_series.DIFFERENCES] = _differences(report)
    for name, figure in pictures.items():
        figure.savefig(folder / name, dpi=150)
    return [folder / name for name in pictures]


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # without pyplot, which would keep every figure and choose a window system

    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def _name(text: str) -> str:
    """Escapes a name: a dollar sign would begin a formula, a leading underscore would hide a legend entry."""
    literal = text.replace("$", r"\$")
    return f" {literal}" if text.startswith("_") else literal


def _losses(report: Report, axis: chart_series.Axis, group: chart_series.Group) -> Figure:
    """Draws a line per seed, a thick mean line with the band of its interval, and a mark at the end of each run.

    Of many arms only the means and the marks.
    """
    few = len(group.arms) <= FEW_ARMS
    figure, axes = _figure(4.8 if few else 4.8 + 0.07 * len(group.arms))
    styles = chart_series.styles(report)
    for arm in group.arms:
        colour, dash = styles[arm["name"]]
        dash = {"dash": "dashed", "dot": "dotted"}.get(dash, dash)
        for run in chart_series.full_runs(arm) if few else ():
            line = chart_series.lines(run)
            if line["x"][axis.key] is not None:
                axes.plot(line["x"][axis.key], line["loss"], color=colour, linewidth=0.7, alpha=0.5)
        mean = chart_series.mean_line(arm)
        x = mean and mean["x"][axis.key]
        if x is not None:
            axes.plot(x, mean["loss"], color=colour, linestyle=dash, linewidth=2.2)
            if few and mean["low"] is not None:
                axes.fill_between(x, mean["low"], mean["high"], color=colour, alpha=0.15, linewidth=0)
        for end in chart_series.ends(arm):
            if end["x"][axis.key] is not None:
                shape = {"marker": "o"} if end["fraction"] == 1.0 else {"marker": "D", "markerfacecolor": "white"}
                axes.plot(end["x"][axis.key], end["loss"], color=colour, markersize=4, zorder=3, **shape)
        axes.plot([], [], color=colour, linestyle=dash, linewidth=2.2, label=_name(arm["name"]))
    for number, floor in enumerate(group.floors):
        label = None if number else group.floor_name
        axes.axhline(floor, linestyle="--", color="black", linewidth=1, label=label)
    axes.plot([], [], "kD", markersize=4, markerfacecolor="white", label="end of a shorter, fully decayed run")
    axes.set(xlabel=chart_series.axis_title(axis, report), ylabel=f"Held-out loss, nats\n({group.loss_of})")
    axes.set_title(chart_series.curves_note(report).replace(". ", ".\n"), fontsize=8)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _differences(report: Report) -> Figure:
    """Draws a dot for each seed and a bar for the interval of their mean, arm by arm."""
    styles = chart_series.styles(report)
    arms = [arm for arm in report["arms"] if not arm["baseline"]]
    figure, axes = _figure(1.6 + 0.6 * len(arms))
    for row, arm in enumerate(arms):
        colour, _ = styles[arm["name"]]
        values = [pair["value"] for pair in chart_series.paired_differences(arm, report)]
        axes.plot(values, [row + 0.18] * len(values), "o", color=colour, alpha=0.6, markersize=5)
        difference = arm["difference"]
        if difference is None:
            where = axes.get_yaxis_transform()
            axes.text(0.01, row, chart_series.why_no_difference(arm), transform=where, fontsize=8, va="center")
            continue
        axes.plot(difference["mean"], row, "D", color=colour, markersize=7)
        if difference["low"] is not None:
            axes.plot([difference["low"], difference["high"]], [row, row], color=colour, linewidth=2.5)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(arms)), [_name(arm["name"]) for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel("Held-out loss minus the baseline's, nats, seed by seed (left of zero is better)")
    return figure
