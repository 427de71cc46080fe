"""Counter-based random numbers: pure functions of seed and index, without a state."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def mix(values: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele et al., 2014); uint64 in and out, of equal shape."""
    mixed = values + _GOLDEN
    mixed ^= mixed >> np.uint64(30)
    mixed *= _FIRST
    mixed ^= mixed >> np.uint64(27)
    mixed *= _SECOND
    mixed ^= mixed >> np.uint64(31)
    return mixed


def fold(*parts: np.ndarray | int) -> np.ndarray:
    """Hash of integers as uint64; at least one part is an array, arrays are broadcast, negative numbers wrapped."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = mix(key ^ np.atleast_1d(np.asarray(part)).astype(np.uint64))
    return key


def uniform(index: np.ndarray, seed: int) -> np.ndarray:
    """Uniform float64 in [0, 1) for each index."""
    return (fold(seed, index) >> np.uint64(11)).astype(np.float64) * 2.0**-53
