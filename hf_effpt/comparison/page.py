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

from hf_effpt.core.files import finite

from .chart_series import chart_data, curves_note
from .report_tables import FEW_ARMS, Cell, Report, Table, held_equal, results_table, runs_table

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
    """Writes the interactive report, with its data and plotting library inside, as HTML."""
    report = finite(report)
    machine, void = report["environment"].items(), "<strong>This comparison says nothing.</strong>"
    parts = {
        "title": escape(report["title"]),
        "held_equal": escape(held_equal(report)),
        "void": f'<p class="void" role="alert">{void} {escape(report["void"])}</p>' if report["void"] else "",
        "layout": "rows" if len(report["arms"]) > FEW_ARMS else "cards",
        "verdicts": "".join(_verdict(arm) for arm in report["arms"]),
        "notes": "".join(f"<li>{escape(note)}</li>" for note in report["notes"]),
        "curves_note": escape(curves_note(report)),
        "results": _table(results_table(report)),
        "runs": _table(runs_table(report)),
        "command": escape(report["command"]),
        "environment": "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in machine),
        "recipes": "".join(_recipe(arm) for arm in report["arms"]),
        # HTML does not unescape script elements; JSON and JavaScript do
        "data": json.dumps(_rounded(chart_data(report)), allow_nan=False).replace("<", "\\u003c"),
        # the basic bundle of plotly.js, under its MIT licence, as npm has it (plotly.js-basic-dist-min)
        "plotly": (_HERE / "plotly-basic.min.js").read_text(encoding="utf-8"),
        "page": (_HERE / "page.js").read_text(encoding="utf-8"),
    }
    template = (_HERE / "page.html").read_text(encoding="utf-8")
    # in one pass, so that placeholders inside a part stay as they are
    html = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def _rounded(value: Any) -> Any:
    """Returns numbers with seven digits, more than a chart can show."""
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


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
