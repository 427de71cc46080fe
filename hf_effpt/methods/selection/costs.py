"""The cost law of selection: what it costs to judge rows, and what that has to bring.

With a share k of the rows looked at learned from, and a cost s of judging one beside that of learning from one, a step
costs 1 + s / k. So rows have to teach more than so many times as much as random ones (Braasch, section 4.2).
"""

from typing import Any

from hf_effpt.core.look import Spent

from .strategy import Uses


def account(uses: Uses, picks_rows: bool, counts: tuple[int, int, int], spent: Spent) -> dict[str, Any]:
    """What a run with selection has cost.

    Args:
        uses ([`Uses`]): the settings.
        picks_rows (`bool`): whether rows are left out; else `keep` is no share of them, and the law has k = 1.
        counts (`tuple[int, int, int]`): rows looked at, judged, and trained on.
        spent ([`Spent`]): by the run, and by selection.

    Returns:
        `keep`, `seen`, `scored`, `trained`, and where rows were judged the cost `s` and the break-even gain 1 + s / k,
        by FLOPs and by seconds; a sentence in `text`.
    """
    seen, scored, trained = counts
    told: dict[str, Any] = {"keep": uses.keep, "seen": seen, "scored": scored, "trained": trained}
    for unit in ("flops", "seconds"):
        own, total = getattr(spent, f"method_{unit}"), getattr(spent, unit)
        rest = total - own if spent.charged else total
        judging = own - getattr(spent, f"prepared_{unit}")
        if trained and rest > 0 and seen:
            cost = judging / (scored or seen) / (rest / trained)
            told |= {f"s_{unit}": cost, f"break_even_{unit}": 1.0 + cost / (uses.keep if picks_rows else 1.0)}
    told["text"] = _sentence(told, picks_rows, spent)
    return told


def _sentence(told: dict[str, Any], picks_rows: bool, spent: Spent) -> str:
    looked = f"Selection learned from {told['trained']:,} of {told['seen']:,} rows and judged {told['scored']:,}"
    if "s_flops" not in told:
        return f"{looked}."
    paid = "" if spent.charged else ", which the clock did not pay for"
    before = ""
    if spent.prepared_flops:
        before = f" The model that it compares with had cost {spent.prepared_flops:.3g} FLOPs before."
    which = f"With keep {told['keep']:g} its rows" if picks_rows else "They"
    return (
        f"{looked}: to judge one cost {told['s_flops']:.3f} of learning from it in FLOPs, {told['s_seconds']:.3f} in "
        f"time{paid}. {which} have to teach more than {told['break_even_flops']:.2f} "
        f"({told['break_even_seconds']:.2f}) times as much as random ones; `effpt compare` with `strategy: random` "
        f"measures whether they did.{before}"
    )
