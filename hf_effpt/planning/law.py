"""Law of the held-out loss, which falls from that of a short run by a share for each tenfold of tokens.

With P the loss of a short run after p tokens and L that of a longer one after t, both decayed, on one text:
log(P / L) = gain * log10(t / p). The gain is the mean of measured runs of the same kind of recipe, over texts.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

EVIDENCE = Path(__file__).with_name("evidence.json")
COVERAGE = 0.9  # of the interval
# Tenfolds of tokens that an interval is at least for: short steps ahead have the scatter of both losses, too.
LEAST_DECADES = 0.5
LEAST_TEXTS = 3  # from which texts, and no longer recipes, are what a kind's gain is the mean over
NAMES = {"layers": "layers", "width": "width"}


@dataclass(frozen=True)
class Traits:
    """All of a recipe that the law knows of; `vectors` is `True` with word vectors at the start."""

    backbone: str
    vectors: bool
    layers: int
    width: int

    @property
    def kind(self) -> tuple[str, bool]:
        """Recipes whose losses fall alike; vectors do nothing for BERT, which keeps to its plateau."""
        return self.backbone, self.vectors and self.backbone != "bert"


@dataclass(frozen=True)
class LossForecast:
    """Predicted held-out loss in nats a masked token, the interval for 9 of 10 runs, and the measured ranges left."""

    value: float
    low: float
    high: float
    outside: tuple[str, ...]


@dataclass(frozen=True)
class Growth:
    """Gain of a kind of recipe for a tenfold of tokens, with half the width of its interval for a new text or recipe.

    `decades` is the longest way measured, in tenfolds.
    """

    gain: float
    half: float
    decades: float


@dataclass(frozen=True)
class LossLaw:
    """The fitted law: growth by kind of recipe, and the measured ranges of layers and width."""

    growths: dict[tuple[str, bool], Growth]
    ranges: dict[str, tuple[float, float]]

    def forecast(
        self, traits: Traits, tokens: float, pilot_tokens: float, pilot_loss: float, also: tuple[str, ...] = ()
    ) -> LossForecast:
        """Forecasts the loss after so many tokens, from that of a short run of the same recipe and text.

        Outside a measured range, or for one of the reasons in `also`, the interval is twice as wide.
        """
        growth = self.growths[traits.kind]
        decades = math.log10(tokens / pilot_tokens)
        outside = [
            f"{least:,.0f} to {most:,.0f} {NAMES[key]}"
            for key, (least, most) in self.ranges.items()
            if not least <= getattr(traits, key) <= most
        ]
        if decades > growth.decades:
            outside.insert(0, f"at most {10**growth.decades:.0f} times the tokens of their short runs")
        if decades < 0:
            outside.insert(0, "at least the tokens of their short runs")
        outside += also
        half = growth.half * max(abs(decades), LEAST_DECADES) * (2 if outside else 1)
        value, low, high = (pilot_loss * math.exp(shift - growth.gain * decades) for shift in (0.0, -half, half))
        return LossForecast(value, low, high, tuple(outside))


@lru_cache
def loss_law() -> LossLaw:
    """The law as fitted to the evidence in the package."""
    return fit(json.loads(EVIDENCE.read_text(encoding="utf-8"))["runs"])


def traits_in(run: Mapping[str, Any]) -> Traits:
    return Traits(run["backbone"], run["vectors"], run["layers"], run["width"])


def fit(runs: Iterable[Mapping[str, Any]]) -> LossLaw:
    """Fits the law: a kind's gain is the mean of its texts, its interval that of Student's t for one text more.

    With few texts, recipes are in their place. A recipe at several budgets is one, for its runs share a short run.
    """
    gains: dict[tuple[str, bool], dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    decades: dict[tuple[str, bool], float] = defaultdict(float)
    numbers: dict[str, list[int]] = {key: [] for key in NAMES}
    for run in runs:
        traits, way = traits_in(run), math.log10(run["tokens"] / run["pilot"]["tokens"])
        fallen = [math.log(run["pilot"]["loss"] / loss) / way for loss in run["losses"]]
        gains[traits.kind][run["text"], run["source"]].append(float(np.mean(fallen)))
        decades[traits.kind] = max(decades[traits.kind], way)
        for key, seen in numbers.items():
            seen.append(getattr(traits, key))
    growths = {kind: _growth(found, decades[kind]) for kind, found in gains.items()}
    return LossLaw(growths, {key: (min(seen), max(seen)) for key, seen in numbers.items()})


def _growth(gains: Mapping[tuple[str, str], list[float]], decades: float) -> Growth:
    """Growth of one kind from gains by text and recipe."""
    by_text: dict[str, list[float]] = defaultdict(list)
    for (text, _), found in gains.items():
        by_text[text].append(float(np.mean(found)))
    groups = list(by_text.values()) if len(by_text) >= LEAST_TEXTS else list(gains.values())
    means = np.array([np.mean(group) for group in groups])
    student = float(stats.t.ppf((1 + COVERAGE) / 2, len(means) - 1))
    return Growth(float(means.mean()), student * float(means.std(ddof=1)) * math.sqrt(1 + 1 / len(means)), decades)
