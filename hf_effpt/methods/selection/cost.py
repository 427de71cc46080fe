"""The cost law of selection (Braasch, section 4.2).

If a share k of the rows is kept, and scoring a row costs s times as much as learning from it, a step costs 1 + s / k
times a plain one. The rows must therefore teach more than 1 + s / k times as much as random ones.
"""

from typing import Any

from hf_effpt.core.row_method import CostReport

from .strategy import ResolvedSettings


def cost_report(
    resolved: ResolvedSettings, strategy: str, picks_rows: bool, counts: tuple[int, ...], spent: CostReport
) -> dict[str, Any]:
    """Cost of selection in a run, from the rows seen, scored and trained on (`counts`) and the costs `spent`.

    Unless `picks_rows`, no rows are left out, and the law has k = 1 whatever `keep`.

    Returns:
        `keep`, `seen`, `scored`, `trained`; for FLOPs and seconds `s`, the break-even gain 1 + s / k, and the share
        of the run spent upfront (`prepaid`); a sentence in `text`.
    """
    seen, scored, trained = counts
    told: dict[str, Any] = {"keep": resolved.keep, "seen": seen, "scored": scored, "trained": trained}
    for unit in ("flops", "seconds"):
        own, total, before = (getattr(spent, f"{kind}{unit}") for kind in ("method_", "", "upfront_"))
        rest = total - own if spent.charged else total
        if trained and rest > 0 and seen:
            cost = (own - before) / (scored or seen) / (rest / trained)
            told |= {f"s_{unit}": cost, f"break_even_{unit}": 1.0 + cost / (resolved.keep if picks_rows else 1.0)}
            told[f"prepaid_{unit}"] = before / total if spent.charged else 0.0
    told["text"] = _sentence(told, resolved, strategy, picks_rows, spent)
    return told


def _sentence(
    told: dict[str, Any], resolved: ResolvedSettings, strategy: str, picks_rows: bool, spent: CostReport
) -> str:
    seen, trained = told["seen"], told["trained"]
    if picks_rows and seen == trained:
        return (
            f"Selection has picked no rows: it does so between {resolved.start:g} and {resolved.end:g} of the budget, "
            f"after {resolved.warmup} steps of warm-up."
        )
    if strategy == "random":
        return f"Selection learned from {trained:,} of {seen:,} rows, drawn by lot."
    looked = f"Selection learned from {trained:,} of {seen:,} rows" if picks_rows else "Selection kept all rows"
    looked += f" and judged {told['scored']:,}" if told["scored"] else ""
    if "s_flops" not in told:
        return f"{looked}."
    judged = "judge one" if told["scored"] else "choose among them"
    paid = "" if spent.charged else ", which the clock did not pay for"
    needed = f"{told['break_even_flops']:.2f} ({told['break_even_seconds']:.2f})"
    before = ""
    if spent.upfront_flops:
        share = f", {told['prepaid_flops']:.0%} of the run" if spent.charged else ""
        before = f" The model that it compares with had cost {spent.upfront_flops:.3g} FLOPs before{share}."
    law = (
        f"With keep {told['keep']:g} a row has to teach more than {needed} times as much as a random one; `effpt "
        "compare` with the plain run and `strategy: random` measures whether it did"
        if picks_rows
        else f"A step has to teach more than {needed} times as much as a plain one; `effpt compare` measures it"
    )
    return (
        f"{looked}: to {judged} cost {told['s_flops']:.3f} of learning from it in FLOPs, {told['s_seconds']:.3f} in "
        f"time{paid}. {law}.{before}"
    )
