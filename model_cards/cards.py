"""Writes the card of every trained recipe from the results files; with `--check`, only checks the cards.

python model_cards/cards.py
"""

import json
import sys
from pathlib import Path

import yaml

from hf_effpt.comparison.report_tables import amount, in_clock_unit, small
from hf_effpt.hub.card import duration

HERE = Path(__file__).parent
NOT_OURS = {"stock"}  # arms that were not trained with this package
PAGES = {HERE / "README.md", HERE / "speed.md"}  # pages beside the cards


def interval(found: dict | None, digits: int = 4) -> str:
    if found is None or found["mean"] is None:
        return "not defined" + (f": {found['note']}" if found and found.get("note") else "")
    shown = f"{found['mean']:.{digits}f}"
    return shown if found["low"] is None else f"{shown} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def speed(summary: dict, unit: str) -> str:
    found, reached, note = summary["speed_up"], summary["budget_to_baseline_loss"], summary["speed_up_note"]
    if found is None:
        return note
    shown = f"{found['value']:.2f}x"
    shown += f" ({found['low']:.2f} to {found['high']:.2f})" if found["low"] is not None else ""
    shown += f", after {in_clock_unit(reached['value'], unit)}" if reached else ""
    return shown + (f" ({note})" if note else "")


def losses(arm: dict, report: dict) -> list[tuple[str, str]]:
    """Returns the rows on the loss of an arm and its floor. Old reports have one floor for all arms."""
    summary = arm["summary"]
    if "loss_of" not in arm:
        return [
            ("Held-out loss (nats a masked token)", interval(summary["final_loss"])),
            ("Unigram floor", f"{report['unigram_floor']:.4f}"),
        ]
    rows = [
        (f"Held-out loss (nats; {arm['loss_of']})", interval(summary["final_loss"])),
        (arm["floor_name"].capitalize(), interval(summary["floor"])),
        ("Margin below it", interval(summary["margin"])),
    ]
    if summary["generator_loss"]:
        rows.append(("Loss of its generator (nats a masked token)", interval(summary["generator_loss"])))
    return rows


def cost_of_selection(arm: dict, report: dict) -> list[tuple[str, str]]:
    """Returns the rows on cost and gain of row selection, also on a clock that is not charged for it."""
    law = arm["summary"].get("cost_law")
    if law is None:
        return []
    rows = [("Cost to score a row, s, in rows learned from", f"{law['s']:.3f}")]
    rows.append(("Gain in samples needed, 1 + s/k", f"{law['needed']:.2f}x"))
    if law["gain"] is not None:
        gain = law["gain"]
        shown = f"{gain.get('bound') or ''} {gain['value']:.2f}x".strip()
        bounds = "" if gain["low"] is None else f" ({gain['low']:.2f}x to {gain['high']:.2f}x)"
        rows.append(("Gain in samples it had", shown + bounds))
    if arm.get("control_difference"):
        rows.append((f"Difference to `{arm['control']['arm']}`", interval(arm["control_difference"])))
    for free in (each for each in report["arms"] if each["free"] and each["recipe"]["methods"] == arm["methods"]):
        if free["difference"]:
            said = f"{interval(free['difference'])} to `{report['baseline']}`"
            rows.append(("Difference if scoring cost nothing", said))
    return rows


def card(name: str, arm: dict, report: dict, results: str) -> str:
    """Returns the card of one arm of a comparison."""
    summary, unit, energy = arm["summary"], report["clock"]["unit"], report["energy"]
    rows = [
        ("Budget of a run", report["clock"]["text"]),
        *losses(arm, report),
    ]
    if not arm["baseline"] and arm.get("comparable", True):
        rows.append((f"Difference to `{report['baseline']}`, paired by seed", interval(arm["difference"])))
        rows.append((f"Speed-up to the final loss of `{report['baseline']}`", speed(summary, unit)))
    rows += cost_of_selection(arm, report)
    for score, found in summary["scores"].items():
        rows.append((score, interval(found)))
        if "loss_of" in arm and (gap := arm["score_differences"].get(score)):
            rows.append((f"{score}, difference to `{report['baseline']}`", interval(gap)))
    rows += [
        ("Time of a run", duration(summary["seconds"])),
        ("Tokens", amount(summary["tokens"])),
        ("Compute", amount(summary["flops"], "FLOP")),
        ("Energy", f"{small(summary['kwh'], 'kWh')}, {energy['source']}"),
    ]
    carbon = f"{small(summary['co2e'], 'g CO2e')} at {energy['carbon_intensity']:g} g/kWh, {energy['carbon_source']}"
    rows.append(("Carbon", carbon))
    seeds, others = len(report["seeds"]), [each["name"] for each in report["arms"] if each is not arm]
    lines = [
        f"# {name}",
        "",
        f"Means over {seeds} seeds, with 95 % intervals. {arm['verdict']['text']}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {label} | {value} |" for label, value in rows),
        "",
        *(f"- {note}" for note in report["notes"] if not any(f"{other}, seed" in note for other in others)),
        "",
        "```yaml",
        yaml.safe_dump(arm["recipe"], sort_keys=False, allow_unicode=True).strip(),
        "```",
        "",
        f"From [results/{results}](results/{results}), made by",
        "",
        "```bash",
        report["command"],
        "```",
        "",
        f"on {report['environment']['device']}, torch {report['environment']['torch']}, transformers "
        f"{report['environment']['transformers']}.",
    ]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def cards() -> dict[Path, str]:
    """Returns all cards by file."""
    found = {}
    for path in sorted((HERE / "results").glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        for arm in report.get("arms", ()):
            if arm["name"] not in NOT_OURS and not arm.get("free"):
                name = f"{path.stem}_{arm['name']}"
                found[HERE / f"{name}.md"] = card(name, arm, report, path.name)
    return found


if __name__ == "__main__":
    for path, text in cards().items():
        if "--check" in sys.argv:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                sys.exit(f"{path.name} does not say what the results say; run python model_cards/cards.py")
        else:
            path.write_text(text, encoding="utf-8")
    if "--check" in sys.argv and (extra := {*HERE.glob("*.md")} - set(cards()) - PAGES):
        sys.exit(f"{', '.join(path.name for path in extra)} belong to no result")
