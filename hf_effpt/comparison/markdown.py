"""Report of a comparison as GitHub Markdown."""

from __future__ import annotations

import re

import yaml

from hf_effpt.core.files import finite

from .chart_series import DIFFERENCES, axis_title, curves_note, pictures
from .report_tables import Cell, Report, Table, held_equal, results_table, runs_table

_SPECIAL = re.compile(r"([\\`*_\[\]#|~$])")


def _literal(text: str) -> str:
    """Escapes `text` for Markdown and puts it on one line."""
    entities = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", entities)


def _cell(cell: Cell) -> str:
    return f"{_literal(cell.text)} ({_literal(cell.note)})" if cell.note else _literal(cell.text)


def _table(table: Table) -> list[str]:
    lines = [map(_literal, table.header), ["---", *["---:"] * (len(table.header) - 1)]]
    lines += [map(_cell, row) for row in table.rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _indented(text: str) -> list[str]:
    """Returns the lines of an indented code block, which no text can close."""
    return [f"    {line}" for line in text.strip().splitlines()]


def markdown(report: Report) -> str:
    """Returns the report as Markdown, verdicts first, with links to the pictures of `write_plots`."""
    report = finite(report)
    lines = [f"# {_literal(report['title'])}", "", _literal(held_equal(report)), ""]
    if report["void"]:
        lines += [f"> **This comparison says nothing.** {_literal(report['void'])}", ""]
    lines += ["## Verdicts", "", "| arm | verdict | |", "|---|---|---|"]
    for arm in report["arms"]:
        verdict = arm["verdict"]
        lines.append(f"| {_literal(arm['name'])} | **{_literal(verdict['label'])}** | {_literal(verdict['text'])} |")
    if report["notes"]:
        lines += ["", *(f"- {_literal(note)}" for note in report["notes"])]
    lines += ["", "## Results", "", "Means over the seeds, with 95 % intervals.", ""]
    lines += _table(results_table(report))
    lines += ["", "## Curves", "", _literal(curves_note(report)), ""]
    lines += [
        f"![Held-out loss ({group.loss_of}) against {axis_title(axis, report)}]({name})"
        for name, (axis, group) in pictures(report).items()
    ]
    if len(report["arms"]) > 1:
        lines += ["", f"![Paired differences to the baseline]({DIFFERENCES})"]
    lines += ["", "<details><summary>Every run</summary>", "", *_table(runs_table(report)), "", "</details>"]
    lines += ["", "## To repeat it", "", *_indented(report["command"]), "", "| | |", "|---|---|"]
    lines += [f"| {_literal(name)} | {_literal(str(value))} |" for name, value in report["environment"].items()]
    for arm in report["arms"]:
        recipe = yaml.safe_dump(arm["recipe"], sort_keys=False, allow_unicode=True)
        lines += ["", f"Recipe of {_literal(arm['name'])}:", "", *_indented(recipe)]
    return "\n".join(lines) + "\n"
