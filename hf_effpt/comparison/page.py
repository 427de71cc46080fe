"""The report of a comparison as one HTML file that needs nothing else: no server, no network, no other file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import yaml

from . import chart_series
from .plots import require_plotting
from .report_tables import (
    UNITS,
    Cell,
    Report,
    Table,
    finite,
    held_equal,
    in_clock_unit,
    results_table,
    runs_table,
)

_HERE = Path(__file__).parent
_MARKS = {
    "better": "✓",
    "worse": "✗",
    "no difference shown": "=",
    "no verdict": "?",
    "baseline": "●",
    "another objective": "≠",
}


def write_page(report: Report, path: str | os.PathLike) -> None:
    """Writes the interactive report, with its data and its plotting library inside.

    Args:
        report (`Mapping`): the content of `report.json`.
        path (`str` or `os.PathLike`): the HTML file; its folder is created if need be.

    Raises:
        EffptError: where plotly is not installed.
    """
    require_plotting()
    from plotly.offline import get_plotlyjs

    report = finite(report)
    parts = {
        "title": escape(report["title"]),
        "held_equal": escape(held_equal(report)),
        "void": _void(report["void"]),
        "verdicts": "".join(_verdict(arm) for arm in report["arms"]),
        "notes": "".join(f"<li>{escape(note)}</li>" for note in report["notes"]),
        "curves_note": escape(chart_series.curves_note(report)),
        "results": _table(results_table(report)),
        "runs": _table(runs_table(report)),
        "command": escape(report["command"]),
        "environment": _environment(report["environment"]),
        "recipes": "".join(_recipe(arm) for arm in report["arms"]),
        # In a script element nothing is escaped but by the language inside it.
        "data": json.dumps(chart_data(report), allow_nan=False).replace("<", "\\u003c"),
        "plotly": get_plotlyjs().replace("</script", "<\\/script"),
        "page": (_HERE / "page.js").read_text(encoding="utf-8"),
    }
    template = (_HERE / "page.html").read_text(encoding="utf-8")
    # In one pass, so that a part that looks like a placeholder stays as it is.
    html = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def chart_data(report: Report) -> dict[str, Any]:
    """What the page's charts are drawn from."""
    clock = report["clock"]
    baseline = next(arm for arm in report["arms"] if arm["baseline"])
    target = (baseline["summary"]["final_loss"] or {}).get("mean")
    groups, colours = chart_series.groups(report), chart_series.colours(report)
    group_of = {arm["name"]: number for number, group in enumerate(groups) for arm in group.arms}
    return finite(
        {
            "axes": [
                {
                    "key": axis.key,
                    "name": axis.name,
                    "unit": chart_series.axis_unit(axis, report),
                    "title": chart_series.axis_title(axis, report),
                    "missing": chart_series.why_missing(axis, report),
                }
                for axis in chart_series.AXES
            ],
            "first_axis": "kwh" if clock["unit"] == "joules" else clock["unit"],
            # Each has its own charts of losses; the baseline's is the first.
            "groups": [
                {"loss_of": group.loss_of, "floor_name": group.floor_name, "floors": group.floors} for group in groups
            ],
            "target": target,
            "budget_title": f"Budget of a run: {UNITS[clock['unit']]}"
            + {"seconds": ", s", "reference_seconds": ", s", "joules": ", J"}.get(clock["unit"], ""),
            "budget": clock["budget"],
            "arms": [
                {
                    "name": arm["name"],
                    "baseline": arm["baseline"],
                    "colour": colours[arm["name"]],
                    "group": group_of[arm["name"]],
                    "curves": [
                        {"seed": run["seed"], "state": run["state"], **chart_series.lines(run)}
                        for run in chart_series.full_runs(arm)
                    ],
                    "mean": chart_series.mean_line(arm),
                    "ends": chart_series.ends(arm),
                    "pairs": chart_series.paired_differences(arm, report),
                    "difference": arm["difference"],
                    "no_difference": chart_series.why_no_difference(arm),
                    "by_budget": chart_series.by_budget(arm, report),
                    "crossing": _crossing(arm, clock["unit"], target),
                }
                for arm in report["arms"]
            ],
        }
    )


def _crossing(arm: Mapping[str, Any], unit: str, target: float | None) -> dict[str, Any] | None:
    """Where the arm's line meets the baseline's final loss."""
    x = (arm["summary"]["budget_to_baseline_loss"] or {}).get("value")
    return (
        None
        if arm["baseline"] or x is None or target is None
        else {"x": x, "loss": target, "text": in_clock_unit(x, unit)}
    )


def _void(why: str | None) -> str:
    return (
        f'<p class="void" role="alert"><strong>This comparison says nothing.</strong> {escape(why)}</p>' if why else ""
    )


def _verdict(arm: Mapping[str, Any]) -> str:
    verdict, label = arm["verdict"], escape(arm["verdict"]["label"])
    mark = _MARKS.get(verdict["label"], "")
    about = f'<span class="about">methods: {escape(arm["summary_of_methods"])}</span>'
    return (
        f'<li class="verdict" data-label="{label}"><h3>{escape(arm["name"])} {about}</h3>'
        f'<p class="label"><span aria-hidden="true">{mark}</span> {label}</p><p>{escape(verdict["text"])}</p></li>'
    )


def _content(cell: Cell) -> str:
    return escape(cell.text) + (f"<small>{escape(cell.note)}</small>" if cell.note else "")


def _table(table: Table) -> str:
    header = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    rows = "".join(
        f'<tr><th scope="row">{_content(row[0])}</th>{"".join(f"<td>{_content(cell)}</td>" for cell in row[1:])}</tr>'
        for row in table.rows
    )
    # Scrolls by itself where it is wide, also by keyboard.
    return f'<div class="wide" tabindex="0"><table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>'


def _environment(environment: Mapping[str, Any]) -> str:
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in environment.items())


def _recipe(arm: Mapping[str, Any]) -> str:
    recipe = yaml.safe_dump(arm["recipe"], sort_keys=False, allow_unicode=True)
    return f"<h4>{escape(arm['name'])}</h4><pre>{escape(recipe)}</pre>"
