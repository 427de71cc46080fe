"""Random numbers on the device that are a pure function of what they are for; no generator is touched."""

from torch import Tensor


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mix(values: Tensor) -> Tensor:
    """One step of SplitMix64 (Steele et al., 2014) on int64 tensors, whose arithmetic wraps around."""
    mixed = values + _GOLDEN
    mixed = (mixed ^ _shifted(mixed, 30)) * _FIRST
    mixed = (mixed ^ _shifted(mixed, 27)) * _SECOND
    return mixed ^ _shifted(mixed, 31)


def uniform(keys: Tensor) -> Tensor:
    """A float64 number in [0, 1) for each int64 key."""
    return _shifted(mix(keys), 11).double() * 2.0**-53


def _shifted(values: Tensor, bits: int) -> Tensor:
    """A shift to the right that fills up with zeros, as on unsigned numbers."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
