"""Report of a comparison as one self-contained HTML file, which needs no server and no network."""

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
    baseline_of,
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
    """Writes the interactive report, with its data and plotting library inside, as HTML.

    Raises an `EffptError` if plotly is not installed.
    """
    require_plotting()
    from plotly.offline import get_plotlyjs

    report = finite(report)
    machine, void = report["environment"].items(), "<strong>This comparison says nothing.</strong>"
    parts = {
        "title": escape(report["title"]),
        "held_equal": escape(held_equal(report)),
        "void": f'<p class="void" role="alert">{void} {escape(report["void"])}</p>' if report["void"] else "",
        "verdicts": "".join(_verdict(arm) for arm in report["arms"]),
        "notes": "".join(f"<li>{escape(note)}</li>" for note in report["notes"]),
        "curves_note": escape(chart_series.curves_note(report)),
        "results": _table(results_table(report)),
        "runs": _table(runs_table(report)),
        "command": escape(report["command"]),
        "environment": "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in machine),
        "recipes": "".join(_recipe(arm) for arm in report["arms"]),
        # HTML does not unescape script elements; JSON and JavaScript do
        "data": json.dumps(chart_data(report), allow_nan=False).replace("<", "\\u003c"),
        "plotly": get_plotlyjs().replace("</script", "<\\/script"),
        "page": (_HERE / "page.js").read_text(encoding="utf-8"),
    }
    template = (_HERE / "page.html").read_text(encoding="utf-8")
    # in one pass, so that placeholders inside a part stay as they are
    html = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def chart_data(report: Report) -> dict[str, Any]:
    """Returns the data that the charts of the page are drawn from; `page.js` reads these keys."""
    clock, baseline = report["clock"], baseline_of(report)
    target = (baseline["summary"]["final_loss"] or {}).get("mean")
    groups, colours = chart_series.groups(report), chart_series.colours(report)

    def of_arm(arm: Mapping[str, Any]) -> dict[str, Any]:
        reached = (arm["summary"]["budget_to_baseline_loss"] or {}).get("value")
        crosses = not arm["baseline"] and reached is not None and target is not None
        text, runs = in_clock_unit(reached, clock["unit"]) if crosses else None, chart_series.full_runs(arm)
        return {
            "name": arm["name"],
            "baseline": arm["baseline"],
            "colour": colours[arm["name"]],
            "group": next(number for number, group in enumerate(groups) if group.loss_of == arm["loss_of"]),
            "curves": [{"seed": run["seed"], "state": run["state"], **chart_series.lines(run)} for run in runs],
            "mean": chart_series.mean_line(arm),
            "ends": chart_series.ends(arm),
            "pairs": chart_series.paired_differences(arm, report),
            "difference": arm["difference"],
            "no_difference": chart_series.why_no_difference(arm),
            "by_budget": chart_series.by_budget(arm, report),
            "crossing": {"x": reached, "loss": target, "text": text} if crosses else None,  # of the baseline's loss
        }

    def of_axis(axis: chart_series.Axis) -> dict[str, Any]:
        unit, title = chart_series.axis_unit(axis, report), chart_series.axis_title(axis, report)
        missing = chart_series.why_missing(axis, report["arms"])
        return {"key": axis.key, "name": axis.name, "unit": unit, "title": title, "missing": missing}

    symbol = {"seconds": ", s", "reference_seconds": ", s", "joules": ", J"}.get(clock["unit"], "")
    found = {
        "axes": [of_axis(axis) for axis in chart_series.AXES],
        "first_axis": "kwh" if clock["unit"] == "joules" else clock["unit"],
        # each group has its own charts of losses; the baseline's is the first
        "groups": [{"loss_of": each.loss_of, "floor_name": each.floor_name, "floors": each.floors} for each in groups],
        "target": target,
        "budget_title": f"Budget of a run: {UNITS[clock['unit']]}{symbol}",
        "budget": clock["budget"],
        "arms": [of_arm(arm) for arm in report["arms"]],
    }
    return finite(found)


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
    # a wide table scrolls by itself, also by keyboard
    return f'<div class="wide" tabindex="0"><table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>'


def _recipe(arm: Mapping[str, Any]) -> str:
    recipe = yaml.safe_dump(arm["recipe"], sort_keys=False, allow_unicode=True)
    return f"<h4>{escape(arm['name'])}</h4><pre>{escape(recipe)}</pre>"
