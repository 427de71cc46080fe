"""How likely layers are to be skipped, by place and by how far the run is."""

import math

import numpy as np

# Of progressive subnetworks: 6, 8, 10, then 12 of 12 layers on average, for equally long (Panigrahi et al., 2024).
STAGES = 4
# Of progressive layer dropping: gamma times the number of steps (Zhang and He, 2020).
STEEPNESS = 100.0


def constant(p: float, depth: int, progress: float) -> np.ndarray:
    """The same rate everywhere and always (Fan et al., 2020)."""
    return np.full(depth, p)


def pld(p: float, depth: int, progress: float) -> np.ndarray:
    """A rate that rises at once from 0 and with the depth, to `p` of the last layer (Zhang and He, 2020).

    The share theta(t) = (1 - theta) exp(-gamma t) + theta, theta = 1 - p, is what the last of L layers is kept with;
    layer i of 1..L is skipped with probability (i / L) (1 - theta(t)).
    """
    return p * (1.0 - math.exp(-STEEPNESS * progress)) * np.arange(1, depth + 1) / depth


def progressive(p: float, depth: int, progress: float) -> np.ndarray:
    """A mean rate that falls in equal stages from `p` to 0; first and last always run (Panigrahi et al., 2024).

    What the two do not skip the others do, so that depth * (1 - rate) layers run on average.
    """
    stage = min(int(progress * STAGES), STAGES - 1)
    rate = p * (1.0 - stage / (STAGES - 1))
    rates = np.full(depth, min(1.0, rate * depth / max(1, depth - 2)))
    rates[[0, -1]] = 0.0
    return rates


def largest_progressive(depth: int) -> float:
    """The largest `p` with which two of `depth` layers can always run."""
    return max(0.0, 1.0 - 2.0 / depth)


SCHEDULES = {"constant": constant, "pld": pld, "progressive": progressive}
