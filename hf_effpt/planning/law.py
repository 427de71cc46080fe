"""Law of the held-out loss: a power of the tokens learned from, fitted to the package's own measured runs.

With L the loss, F that of token frequencies alone, and q the share of F that a token's neighbour saves in this text,
log(F / L) / q is linear in the logarithm of the tokens and in what the recipe has. BERT's line is a plateau, which a
rotary encoder leaves. That an easier text gains in proportion to q is derived here.
"""

import json
import math
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

EVIDENCE = Path(__file__).with_name("evidence.json")
COVERAGE = 0.9  # of the interval
# Share of log(F / L) by which two texts of equal q may differ. A guess: nearly all runs measured had one text.
TEXT_SPREAD = 0.2
BEYOND = 0.5  # share of what the law adds outside the measured tokens, by which it may be wrong there: a guess, too
NAMES = {"step_tokens": "tokens a step", "vocabulary": "tokens of vocabulary", "layers": "layers", "width": "width"}


@dataclass(frozen=True)
class Traits:
    """All of a recipe that the law knows of.

    `window` is `True` with a narrow window in lower layers, `vectors` with word vectors and `frequencies` with token
    frequencies at the start.
    """

    backbone: str
    window: bool
    vectors: bool
    frequencies: bool
    vocabulary: int
    step_tokens: int
    layers: int
    width: int

    @property
    def kind(self) -> tuple[str, bool]:
        """Recipes whose losses scatter alike."""
        return self.backbone, self.vectors and self.backbone != "bert"


@dataclass(frozen=True)
class LossForecast:
    """Predicted held-out loss in nats a masked token, the interval for 9 of 10 runs, and the measured ranges left."""

    value: float
    low: float
    high: float
    outside: tuple[str, ...]


@dataclass(frozen=True)
class LossLaw:
    """The fitted law: coefficients, and the measured ranges and residuals that its intervals come from."""

    coefficients: np.ndarray
    tokens: dict[str, tuple[float, float]]  # least and most, by backbone
    ranges: dict[str, tuple[float, float]]  # of the other numbers
    spread: dict[tuple[str, bool], float]  # of log(F / L) / q, by kind of recipe

    def forecast(
        self, traits: Traits, tokens: float, floor: float, predictability: float, also: tuple[str, ...] = ()
    ) -> LossForecast:
        """Forecasts the loss after so many tokens of a text with this floor and predictability.

        Outside the measured tokens the interval widens with the distance; with another number outside its range, or
        for one of the reasons in `also`, it is twice as wide.
        """
        left = [
            f"{least:,.0f} to {most:,.0f} {NAMES[key]}"
            for key, (least, most) in self.ranges.items()
            if not least <= getattr(traits, key) <= most
        ]
        least, most = self.tokens[traits.backbone]
        middle, plateau = self._reached(traits, tokens)
        half = math.hypot(self.spread[traits.kind], TEXT_SPREAD * middle) * (2 if left or also else 1)
        if not least <= tokens <= most:
            half += BEYOND * abs(middle - self._reached(traits, min(max(tokens, least), most))[0])
            left.insert(0, f"{least / 1e6:.2g} to {most / 1e6:.2g} million tokens")
        worst = middle - half
        if traits.backbone != "bert":  # which leaves BERT's plateau late, but does not fall behind it
            worst = max(worst, plateau - 2 * self.spread["bert", False])
        value, low, high = (floor * math.exp(-predictability * reached) for reached in (middle, middle + half, worst))
        return LossForecast(value, low, high, (*left, *also))

    def _reached(self, traits: Traits, tokens: float) -> tuple[float, float]:
        """log(F / L) / q after so many tokens, and on BERT's plateau.

        The way to the plateau, shorter than any run measured, is taken to be straight.
        """
        first = self.tokens["bert"][0]
        line, on = (features(traits, at, self.ranges) for at in (tokens, max(tokens, first)))
        plateau = plateau_of(on, self.coefficients) * min(1.0, tokens / first)
        return max(plateau, float(line @ self.coefficients) if traits.backbone != "bert" else plateau), plateau


def features(traits: Traits, tokens: float, ranges: dict[str, tuple[float, float]] | None = None) -> np.ndarray:
    """Numbers that log(F / L) / q is linear in. Outside `ranges` batch and vocabulary count as at the nearest end."""
    batch, vocabulary = (
        float(np.clip(getattr(traits, key), *(ranges or {}).get(key, (0, math.inf))))
        for key in ("step_tokens", "vocabulary")
    )
    decades, rotary = math.log10(tokens / 1e6), traits.backbone != "bert"
    both = [1, decades, traits.frequencies, math.log2(vocabulary / 8192)]
    own = [1, decades, traits.window, traits.vectors, math.log2(batch / 1024)]
    return np.array([*both, *(own if rotary else [0] * len(own))], float)


def plateau_of(line: np.ndarray, coefficients: np.ndarray) -> float:
    """The part of the line that BERT has, too."""
    return float(line[:4] @ coefficients[:4])


def height(line: np.ndarray, coefficients: np.ndarray) -> float:
    return max(float(line @ coefficients), plateau_of(line, coefficients))


@lru_cache
def loss_law() -> LossLaw:
    """The law as fitted to the evidence in the package."""
    return fit(json.loads(EVIDENCE.read_text(encoding="utf-8"))["runs"])


def fit(runs: list[dict[str, Any]]) -> LossLaw:
    """Fits the law by least squares; the spread is that of runs of arms which a fit had not seen."""
    traits = [Traits(**{one.name: run[one.name] for one in fields(Traits)}) for run in runs]
    x = np.stack([features(one, run["tokens"]) for one, run in zip(traits, runs, strict=True)])
    reached = [[math.log(run["floor"] / loss) / run["predictability"] for loss in run["losses"]] for run in runs]
    y = np.array([np.mean(arm) for arm in reached])
    residuals: dict[tuple[str, bool], list[float]] = {}
    for number, (one, arm) in enumerate(zip(traits, reached, strict=True)):
        others = np.arange(len(y)) != number
        expected = height(x[number], _solve(x[others], y[others]))
        residuals.setdefault(one.kind, []).extend(abs(value - expected) for value in arm)
    seen = {name: [run["tokens"] for run in runs if run["backbone"] == name] for name, _ in residuals}
    numbers = {key: [getattr(one, key) for one in traits] for key in NAMES}
    return LossLaw(
        _solve(x, y),
        {name: (min(found), max(found)) for name, found in seen.items()},
        {key: (min(found), max(found)) for key, found in numbers.items()},
        {kind: float(np.quantile(found, COVERAGE)) for kind, found in residuals.items()},
    )


def _solve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(x, y, rcond=None)[0]
