"""Probabilities of skipping each layer, by position and progress of the run."""

import math

import numpy as np

STAGES = 4  # equally long: 6, 8, 10, then 12 of 12 layers on average (Panigrahi et al., 2024)
STEEPNESS = 100.0  # gamma times the number of steps of progressive layer dropping (Zhang and He, 2020)


def constant(p: float, depth: int, progress: float) -> np.ndarray:
    """Rate `p` for every layer in every step (Fan et al., 2020)."""
    return np.full(depth, p)


def pld(p: float, depth: int, progress: float) -> np.ndarray:
    """Rates that rise quickly from 0, and with the depth up to `p` for the last layer (Zhang and He, 2020).

    Layer i of 1..L is skipped with probability (i / L) (1 - theta(t)), theta(t) = p exp(-gamma t) + 1 - p, as in the
    paper and in Kaddour et al. (2023, `layer_drop.py`); the authors' code (`modelingpreln_layerdrop.py`) has i - 1.
    """
    return p * (1.0 - math.exp(-STEEPNESS * progress)) * np.arange(1, depth + 1) / depth


def progressive(p: float, depth: int, progress: float) -> np.ndarray:
    """Rates whose mean falls in equal stages from `p` to 0; first and last are 0 (Panigrahi et al., 2024).

    The other layers have higher rates for it, so that depth * (1 - mean) layers run on average.
    """
    stage = min(int(progress * STAGES), STAGES - 1)
    rate = p * (1.0 - stage / (STAGES - 1))
    rates = np.full(depth, min(1.0, rate * depth / max(1, depth - 2)))
    rates[[0, -1]] = 0.0
    return rates


SCHEDULES = {"constant": constant, "pld": pld, "progressive": progressive}

# Differences from the publications, for model cards.
DEPARTURES = {
    "pld": "as by the paper's formula the first layer is skipped like the others, by its rate, and with p = 0.5 "
    "(3L - 1) / 4 of L layers run on average in the end, where the authors' code always runs the first, and "
    "(3L + 1) / 4; the model is post-norm, and what a layer adds is not divided by its share of kept steps.",
    "progressive": "what layers put out is not scaled, since the model is post-norm.",
}
