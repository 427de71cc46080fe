"""Rows of the tables of measurements: speed, memory, processes, faults, forecasts."""

import statistics
from dataclasses import asdict

from hf_effpt.comparison.statistics import interval


def benchmark_cpu(results: dict) -> list[str]:
    rows = []
    for model, comparisons in results.items():
        for dropout, found in comparisons.items():
            speed, ratio, memory = found["tokens_per_second"], found["ratio"], found["peak_memory_mb"]
            rows.append(
                f"| {model} | {dropout} | {speed['stock']:,.0f} | {speed['hf_effpt']:,.0f} | "
                f"{ratio['median']:.2f}x ({ratio['lowest']:.2f} to {ratio['highest']:.2f}) | "
                f"{memory['stock']:,.0f} against {memory['hf_effpt']:,.0f} |"
            )
    return rows


def benchmark_data(results: dict) -> list[str]:
    return [
        f"| {name} | {row['megabytes']:.1f} MB | {row['megabytes_per_core_second']:.2f} | "
        f"{row['second_call_seconds']:.2f} s |"
        for name, row in results.items()
    ]


def benchmark_pack(found: dict) -> list[str]:
    """Returns one row per size of text and number of workers: peak memory, CPU time, and what came out."""
    rows = []
    for size, result in found["results"].items():
        for name in [one for one in result if "worker" in one]:
            one = result[name]
            peak, done = one["peak_mb"], one["killed_after_tasks"]
            memory = f"{peak['main']:,.0f}" + ("" if peak["worker"] is None else f", {peak['worker']:,.0f}")
            killed = f"after {done} of 16 tasks" if done else "no"
            seconds = f"{one['cpu_seconds']:,.0f} | {one['seconds']:,.0f}"
            rows.append(
                f"| {size} | {name[0]} | {killed} | {memory} | {seconds} | {one['documents']:,} | "
                f"{one['rows']:,} | {one['tokens']:,} | `{one['fingerprint'][:8]}` |"
            )
    return rows


def benchmark_steps(results: dict) -> list[str]:
    rows = []
    for model, dropouts in results.items():
        for dropout, arms in dropouts.items():
            for name, found in arms.items():
                ratios = [
                    f"{ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
                    for ratio in (found["ratio_to"][base] for base in ("mlm", "mlm, last layer everywhere", "electra"))
                ]
                cells = [model, dropout.removeprefix("dropout "), name, f"{found['gflops']:.1f}", *ratios]
                rows.append(f"| {' | '.join(cells)} |")
    return rows


def benchmark_notes(results: dict) -> list[str]:
    return [
        f"| {width} | {found['dictionary_mb']:.0f} MB | "
        + " | ".join(
            f"{found[part]['seconds'] * 1e3:,.0f} ms, {found[part]['extra_mb']:,.0f} MB"
            for part in ("look-up", "update", "whole")
        )
        + " |"
        for width, found in results.items()
    ]


def benchmark_layers(results: dict, digits: int) -> list[str]:
    """Returns one row per model and arm: time, FLOPs (ratio with `digits` decimals) and bytes saved."""
    rows = []
    for model, arms in results.items():
        base = next(iter(arms.values()))
        for name, found in arms.items():
            ratio = found["ratio"]
            middle = f"{ratio['mean']:.2f}x on average" if found.get("drawn") else f"{ratio['median']:.2f}x"
            rows.append(
                f"| {model} | {name} | {middle} ({ratio['low']:.2f} to {ratio['high']:.2f}) | "
                f"{found['gflops']:.1f} ({found['gflops'] / base['gflops']:.{digits}f}x) | "
                f"{found['saved_mb']:.0f} MB ({found['saved_mb'] / base['saved_mb']:.2f}x) |"
            )
    return rows


def pruned(results: dict) -> list[str]:
    """Returns one row per model: its loss and its difference to the small model from scratch."""
    return [
        f"| {name} | {mean(found['held_out_loss'])} | {mean(found['difference_to_small'], '+.3f')} |"
        for name, found in results.items()
    ]


def adapted(results: dict) -> list[str]:
    """Returns one row per model: each of its scores, and their differences to the model as it was."""
    rows = []
    for name, scores in results.items():
        cells = [name]
        for found in scores.values():
            cells += [mean(found["value"]), mean(found["difference"], "+.3f")]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def processes(results: dict) -> list[str]:
    """Returns one row per method: what of a run in two and four processes is that of one."""
    rows = []
    for name, by_number in results.items():
        equal = all(found["processes_equal"] and found["counts_equal"] for found in by_number.values())
        as_one = all(found["counts_of_one"] and found["events_of_one"] for found in by_number.values())
        cells = [name, *("yes" if holds else "no" for holds in (equal, as_one))]
        cells += [f"{found['largest_difference']:.0e}" for found in by_number.values()]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def faults(results: dict) -> list[str]:
    """Returns one row per kind of fault: how many were injected and survived, and the steps trained again."""
    return [
        f"| {kind} | {found['injected']} | {found['survived']} | {len(found['failures'])} | "
        f"{found['steps_lost']['mean']:.1f} ({found['steps_lost']['max']}) |"
        for kind, found in results.items()
    ]


def time_to_stock(found: dict) -> list[str]:
    """Returns one row per budget of the recipe: its loss, stock's after half an hour, and the share of its time."""
    whole = [run for run in found["stock"] if run["clock"]["budget"] == found["tokens"]]
    stock = interval([run["held_out_loss"] for run in whole])
    rows = [f"| stock | {found['stock_seconds']:,.0f} s | {found['tokens'] / 1e6:.2f} M | {mean(asdict(stock))} | |"]
    for one in found["timed"]:
        ((name, runs),) = [(name, runs) for name, runs in one.items() if name not in ("seconds", "stock")]
        tokens = statistics.mean(run["clock"]["tokens"] for run in runs)
        loss = mean(asdict(interval([run["held_out_loss"] for run in runs])))
        share = f"1/{found['stock_seconds'] / one['seconds']:.0f}"
        rows.append(f"| {name} | {one['seconds']:.0f} s | {tokens / 1e6:.2f} M | {loss} | {share} |")
    return rows


def equal_time(found: dict) -> list[str]:
    """Returns one row per time and side: tokens, loss and scores, and their differences to stock's."""
    rows = []
    names = list(
        dict.fromkeys(name for sides in found["minutes"].values() for one in sides.values() for name in one["means"])
    )
    for minutes, sides in found["minutes"].items():
        for name, one in sides.items():
            tokens = statistics.mean(run["clock"]["tokens"] for run in one["runs"])
            cells = [f"{minutes} min", name, f"{tokens / 1e6:.2f} M"]
            for measure in names:
                gap = one["differences"].get(measure)
                level = f"{one['means'][measure]['mean']:.3f}" if measure in one["means"] else ""
                cells.append(f"{level}, {mean(gap, '+.3f')}" if gap else level)
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def left_out(rows: list[dict]) -> list[str]:
    """Returns one row per kind of recipe: runs in the interval of a law that had not seen their text, or recipe."""
    kinds = {
        ("bert", False): "BERT",
        ("modernbert", False): "rotary",
        ("modernbert", True): "rotary, from word vectors",
    }
    lines = []
    for kind, name in kinds.items():
        mine = [row for row in rows if (row["backbone"], row["vectors"] and row["backbone"] != "bert") == kind]
        shares = [
            f"{sum(row['inside'] for row in part)} of {sum(row['runs'] for row in part)}" if part else ""
            for is_most in (False, True)
            for part in [[row for row in mine if (row["text"] == "encyclopedia and novels") is is_most]]
        ]
        lines.append(f"| {name} | {len({row['text'] for row in mine})} | {' | '.join(shares)} |")
    return lines


def diagnosis(rows: list[dict]) -> list[str]:
    """Returns one row per planted fault and healthy run: what was expected of `doctor`, and all that it found."""
    return [
        f"| {row['case']} | {named([row['expected']] if row['expected'] else [])} | {named(row['found'])} |"
        for row in rows
    ]


def named(checks: list[str]) -> str:
    return ", ".join(f"`{one}`" for one in checks) or "nothing"


def fuzz(results: dict) -> list[str]:
    """Returns one row per kind of random case: how many were accepted and refused, and whether any failed."""
    return [
        f"| {kind} | {found['accepted']:,} | {found['refused']:,} | {found['failure'] or 'none'} |"
        for kind, found in results.items()
    ]


def forecasts(rows: list[dict]) -> list[str]:
    """Returns one row per run: what was forecast of its time, memory and loss, and what came."""
    lines = []
    for row in rows:
        tokens, seconds, power = row["tokens"], row["seconds"], row["tokens_per_joule"]
        by_time = tokens["forecast"] / tokens["actual"]
        if seconds["forecast"]:  # a budget in tokens
            by_time = seconds["actual"] / seconds["forecast"]
        memory, loss = row["memory_mb"], row["held_out_loss"]
        lines.append(
            f"| `{row['recipe']}`, {row['text']}, {row['budget']} | {tokens['actual'] / 1e3:.0f} k | {by_time:.2f} | "
            f"{power['forecast'] / power['actual']:.2f} | {memory['forecast']}, {memory['actual']} | "
            f"{loss['forecast']:.2f}, {loss['low']:.2f} to {loss['high']:.2f}, **{loss['actual']:.2f}** |"
        )
    return lines


def frontier(models: dict) -> list[str]:
    """Returns one row per model: loss, size, memory and latency."""
    return [
        f"| {name} | {mean(found['held_out_loss'])} | {found['parameters']['mean']:,.0f} | "
        f"{found['bytes']['mean'] / 1e6:.2f} MB | "
        + " | ".join(
            f"{found[latency]['mean']:.2f} ms" if latency in found else "" for latency in ("latency_1", "latency_32")
        )
        + " |"
        for name, found in models.items()
    ]


def mean(found: dict | None, form: str = ".3f") -> str:
    """Mean with its interval."""
    if found is None or found["mean"] is None:
        return "" if found is None else f"undefined ({found['note']})"
    return f"{found['mean']:{form}} ({found['low']:{form}} to {found['high']:{form}})"
