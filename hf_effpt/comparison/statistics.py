"""Statistics of a comparison: intervals, paired differences, Holm's correction, loss crossings, and verdicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import stats

LEAST_SEEDS = 3  # fewer pairs give no verdict
CONFIDENCE = 0.95
FARTHEST = 10.0  # largest factor between the budget of a run and one that is extrapolated from it


@dataclass(frozen=True)
class Interval:
    """Mean with its 95 % confidence interval by Student's t. The bounds are `None` if `n` is 1."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of arm minus baseline, paired by seed, with its 95 % confidence interval.

    `p` is the two-sided p-value of the paired t-test, `n` the number of pairs, `p_holm` is `p` corrected for the
    number of arms.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int
    p_holm: float | None = None


def interval(values: Sequence[float]) -> Interval | None:
    """Returns the mean and 95 % interval of some values; `None` if there are none."""
    if not (n := len(values)):
        return None
    mean = float(np.mean(values))
    if n == 1:
        return Interval(mean, None, None, n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def paired(arm: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Returns the difference of a measure by seed, paired over common seeds; `None` with fewer than three pairs."""
    seeds = sorted(set(arm) & set(baseline))
    if len(seeds) < LEAST_SEEDS:
        return None
    gaps = [arm[seed] - baseline[seed] for seed in seeds]
    found = interval(gaps)
    if found.high == found.low:  # no spread, for which the test has no statistic; equal arms do not differ
        p = 1.0 if found.mean == 0 else 0.0
    else:
        p = float(stats.ttest_1samp(gaps, 0.0).pvalue)
    return Difference(found.mean, found.low, found.high, p, found.n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted by Holm's step-down correction (1979), in the order given."""
    order = np.argsort(p_values)
    adjusted = np.arange(len(order), 0, -1) * np.asarray(p_values)[order]
    return np.minimum(np.maximum.accumulate(adjusted), 1.0)[np.argsort(order)].tolist()


def crossing(losses: Mapping[float, float], target: float, beyond: bool = False) -> tuple[float | None, str | None]:
    """Interpolates the budget at which fully decayed runs reach a loss, linearly in the logarithm of the budget.

    `losses` are final losses by budget, `target` is the loss to reach. If `beyond`, the first two and the last two
    runs are extrapolated to budgets up to ten times as short or long.

    Returns the budget and `None`, or `None` and the reason. If the shortest run already reaches the target, the budget
    of that run and a note.
    """
    points = sorted(losses.items())
    if not points:
        return None, "no finished runs"
    segments = list(pairwise(points))
    if points[0][1] <= target:
        found = _along(segments[0], target) if beyond and segments else None
        return (found, None) if found else (points[0][0], "reached by the shortest run already: it may need less")
    for segment in segments:
        if segment[1][1] <= target:
            return _along(segment, target), None
    found = _along(segments[-1], target) if beyond and segments else None
    return found, None if found else "not reached within the budget"


def _along(segment: tuple[tuple[float, float], tuple[float, float]], target: float) -> float | None:
    """Returns the budget at which the line through two runs has a loss; `None` if it is farther than `FARTHEST`."""
    (short, worse), (long, better) = segment
    if worse <= better:
        return None
    logs = (worse - target) / (worse - better) * math.log(long / short)
    near = -math.log(FARTHEST) <= logs <= math.log(FARTHEST * long / short)
    return short * math.exp(logs) if near else None


def verdict(difference: Difference | None, reason: str | None = None, score: str | None = None) -> dict[str, str]:
    """Returns the `label` and `text` of the verdict on a difference in loss or, if named, in a `score`.

    A loss is better if lower, a score if higher. If there is a `reason` against a verdict, the verdict only names it.
    """
    if reason is not None or difference is None:
        reason = reason or f"fewer than {LEAST_SEEDS} paired seeds have finished"
        return {"label": "no verdict", "text": f"No verdict: {reason}."}
    p = difference.p if difference.p_holm is None else difference.p_holm
    confidence = (
        f"95 % interval {difference.low:+.4f} to {difference.high:+.4f}, p = {p:.3g} after Holm's correction, "
        f"{difference.n} paired seeds"
    )
    lower = difference.mean < 0
    change = f"its {score or 'loss'} is {abs(difference.mean):.4f} {'' if score else 'nats '}"
    change += "lower" if lower else "higher"
    label, text = "no difference shown", f"No difference to the baseline is shown: {change} ({confidence})."
    if p < 1 - CONFIDENCE:
        label = "better" if lower == (score is None) else "worse"
        word = "pays" if label == "better" else "does not pay"
        text = f"It {word} here: {change} than the baseline's ({confidence})."
    return {"label": label, "text": text}
