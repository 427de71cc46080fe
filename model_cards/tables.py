"""Writes the tables of README.md and of the pages beside this file from the results files; `--check` only checks them.

python model_cards/tables.py
"""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

from measured import (
    adapted,
    benchmark_cpu,
    benchmark_data,
    benchmark_layers,
    benchmark_notes,
    benchmark_pack,
    benchmark_steps,
    diagnosis,
    faults,
    forecasts,
    frontier,
    fuzz,
    left_out,
    mean,
    processes,
    pruned,
    time_to_stock,
)

from hf_effpt.comparison.statistics import interval, paired

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "model_cards/README.md",
    "model_cards/speed.md",
    "docs/data.md",
    "docs/diagnosis.md",
    "docs/planning.md",
    "docs/recipes.md",
    "docs/training.md",
)


def comparison(report: dict) -> list[str]:
    """Returns one row per arm: loss, difference and speed-up, scores, Wh per run, verdict."""
    if len({arm.get("loss_of") for arm in report["arms"]}) > 1:
        return of_objectives(report)
    rows = []
    for arm in report["arms"]:
        found = arm["summary"]
        cells = [arm["name"], mean(found["final_loss"]), mean(arm["difference"], "+.3f"), _speed(found)]
        cells += [mean(found["scores"][name]) for name in _scores(report)]
        cells += [f"{found['kwh'] * 1e3:.3f}", arm["verdict"]["label"]]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def by_budget(report: dict) -> list[str]:
    """Returns one row per arm: at each budget its loss and its paired difference to the baseline; its verdict."""

    def losses(arm: dict, fraction: float) -> dict[int, float]:
        return {run["seed"]: run["held_out_loss"] for run in arm["runs"] if run["fraction"] == fraction}

    rows, base = [], report["arms"][0]
    for arm in report["arms"]:
        cells = [arm["name"]]
        for fraction in sorted(report["fractions"]):
            found = losses(arm, fraction)
            gap = None if arm is base else paired(found, losses(base, fraction))
            cells += [mean(asdict(interval(list(found.values())))), mean(gap and asdict(gap), "+.3f")]
        rows.append(f"| {' | '.join([*cells, arm['verdict']['label']])} |")
    return rows


def selection(report: dict) -> list[str]:
    """Returns one row per strategy: cost, gain, loss and differences, with scoring charged and free."""
    arms = {arm["name"]: arm for arm in report["arms"]}
    rows = []
    for name, arm in arms.items():
        if arm["free"]:
            continue
        law, free = arm["summary"].get("cost_law") or {}, arms.get(f"{name} (methods free)", {})
        cells = [name, "" if law.get("s") is None else f"{law['s']:.3f}"]
        cells += ["" if law.get("needed") is None else f"{law['needed']:.2f}x", _gain(law.get("gain"))]
        cells += [mean(arm["summary"]["final_loss"]), mean(arm["difference"], "+.3f")]
        cells += [mean(arm["control_difference"], "+.3f"), arm["verdict"]["label"]]
        if any(each["free"] for each in report["arms"]):
            cells += [mean(free.get(key), "+.3f") for key in ("difference", "control_difference")]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _gain(found: dict | None) -> str:
    if found is None:
        return ""
    interval = "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"
    return f"{found.get('bound') or ''} {found['value']:.2f}x{interval}".strip()


def selection_costs(results: dict) -> list[str]:
    rows = []
    for model, arms in results.items():
        for name, found in arms.items():
            seconds, law = found["s_seconds"], [found[key]["seconds"] for key in ("per_trained", "per_seen")]
            rows.append(
                f"| {model} | {name} | {found['s_flops']:.3f} | {seconds['median']:.3f} ({seconds['low']:.3f} to "
                f"{seconds['high']:.3f}) | {law[0]:.2f}x | {law[1]:.2f}x |"
            )
    return rows


def of_objectives(report: dict) -> list[str]:
    """Returns one row per arm whose losses cannot be compared.

    The columns: arm, kind of loss, held-out loss, floor, margin; each score and its paired difference to the baseline;
    Wh per run; verdict.
    """
    rows = []
    for arm in report["arms"]:
        found, gaps = arm["summary"], arm["score_differences"]
        cells = [arm["name"], arm["loss_of"], mean(found["final_loss"], ".4f")]
        cells += ["" if found["floor"] is None else f"{found['floor']['mean']:.4f}", mean(found["margin"], ".4f")]
        for name in _scores(report):
            cells += [mean(found["scores"].get(name)), mean(gaps.get(name), "+.3f")]
        cells += [f"{found['kwh'] * 1e3:.3f}", arm["verdict"]["label"]]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _scores(report: dict) -> list[str]:
    names = {name for arm in report["arms"] for name in arm["summary"]["scores"]}
    return sorted(names, key=lambda name: (not name.startswith("blimp"), not name.startswith("sst2"), name))


def _speed(summary: dict) -> str:
    found, note = summary["speed_up"], summary["speed_up_note"] or ""
    if found is None:
        return ""
    bound = "at least " if note.startswith("at least") else ""
    interval = "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"
    return f"{bound}{found['value']:.2f}x{interval}"


TABLES = {
    "benchmark_cpu": lambda found: benchmark_cpu(found["results"]),
    "benchmark_modernbert": lambda found: benchmark_cpu(found["results"]),
    "benchmark_pack": benchmark_pack,
    "benchmark_data": lambda found: benchmark_data(found["results"]),
    "benchmark_steps": lambda found: benchmark_steps(found["results"]),
    "benchmark_notes": lambda found: benchmark_notes(found["results"]),
    "benchmark_depth": lambda found: benchmark_layers(found["results"], 2),
    "benchmark_width": lambda found: benchmark_layers(found["results"], 3),
    "frontier": lambda found: frontier(found["models"]),
    "pruned": lambda found: pruned(found["results"]),
    "fuzz": lambda found: fuzz(found["results"]),
    "left_out": lambda found: left_out(found["results"]),
    "diagnosis": lambda found: diagnosis(found["results"]),
    "forecasts": lambda found: forecasts(found["results"]),
    "forecasts_before": lambda found: forecasts(found["results"]),
    "against_stock": comparison,
    "fast_against_stock": comparison,
    "fast_ingredients": comparison,
    "time_to_stock": time_to_stock,
    "processes": lambda found: processes(found["results"]),
    "faults": lambda found: faults(found["results"]),
    "backbones": by_budget,
    "adapted": lambda found: adapted(found["results"]),
    "modern": comparison,
    "masks": comparison,
    "depth": comparison,
    "width": comparison,
    "methods": comparison,
    "objectives": comparison,
    "notes": comparison,
    "selection": selection,
    "selection_spoiled": selection,
    "selection_costs": lambda found: selection_costs(found["results"]),
    "selection_costs_256": lambda found: selection_costs(found["results"]),
}


# What each method is for, the results that show what it gave, and when not to use it.
OVERVIEW = {
    "stacking": (
        "start shallow and grow: the first steps are cheap", ("modern", "stack"), "the gain shrinks as budgets grow"
    ),
    "layerdrop": (
        "skip layers at random: cheaper steps, and a depth that can be chosen afterwards", ("modern", "layerdrop"),
        "a model of few layers",
    ),
    "layerskip": (
        "learn which layers a row can do without", ("depth", "layerskip"), "experimental; small batches on a GPU"
    ),
    "earlybert": (
        "find early which heads and neurons to keep, and train only those", ("width", "earlybert"),
        "heads drawn at random did as well",
    ),
    "compress": (
        "train a large model, then cut it to the size you need", ("frontier", "small"),
        "short budgets: the small model from scratch was better",
    ),
    "lottery": ("research on sparse subnetworks", None, "you want to save time: scattered zeros save none"),
    "selection": (
        "learn from the rows that teach most", ("modern", "selective_backprop"), "scoring costs a forward pass"
    ),
    "tnf": (
        "give rare words a note of the contexts they were seen in", ("modern", "notes"),
        "equal time: its steps cost more",
    ),
}  # fmt: skip


def overview() -> list[str]:
    """Returns one row per method: its page, its use, its difference to plain training, and when to do without."""
    rows = []
    for name, (use, source, unless) in OVERVIEW.items():
        rows.append(f"| [`{name}`](hf_effpt/methods/{name}/README.md) | {use} | {_given(source)} | {unless} |")
    return rows


def _given(source: tuple[str, str] | None) -> str:
    """Difference in held-out loss that a method made, by the name of the results and of the arm."""
    if source is None:
        return "not measured against the clock"
    found = _results(source[0])
    if source[0] == "frontier":  # the difference of the compressed model to the named one
        return f"{mean(found['differences'][source[1]], '+.3f')} to the small model from scratch, on BERT"
    (arm,) = (arm for arm in found["arms"] if arm["name"] == source[1])
    where = "" if source[0] == "modern" else ", on BERT"
    return f"{mean(arm['difference'], '+.3f')}: {arm['verdict']['label']}{where}"


def _results(name: str) -> dict:
    return json.loads((ROOT / "model_cards" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def filled(pages: dict[str, str]) -> dict[str, str]:
    """Returns the pages, by path, with new rows in every marked table."""
    tables = {f"{name}.json": rows_of(_results(name)) for name, rows_of in TABLES.items()} | {"overview": overview()}
    for marker, rows in tables.items():
        table = re.compile(rf"(<!-- {re.escape(marker)} -->\n\|[^\n]*\n\|[^\n]*\n)(?:\|[^\n]*\n)*(<!-- end -->)")
        text = "".join(row + "\n" for row in rows)
        if not any(table.search(page) for page in pages.values()):
            sys.exit(f"None of {', '.join(pages)} has a table marked `{marker}`")
        pages = {
            path: table.sub(lambda match, text=text: match[1] + text + match[2], page) for path, page in pages.items()
        }
    return pages


if __name__ == "__main__":
    before = {path: (ROOT / path).read_text(encoding="utf-8") for path in PAGES}
    after = filled(before)
    if "--check" in sys.argv and before != after:
        changed = ", ".join(path for path in PAGES if before[path] != after[path])
        sys.exit(f"{changed}: not what the results files say; run python model_cards/tables.py")
    for path, text in after.items():
        (ROOT / path).write_text(text, encoding="utf-8")
