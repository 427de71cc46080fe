"""Times and sizes of the cuts, as plain numbers without a model."""

from typing import NamedTuple

from hf_effpt.core.depth import every_other


class Size(NamedTuple):
    """Size of a model: layers that run, heads of each, and feed-forward neurons of each on average."""

    depth: int
    heads: int
    neurons: int


def cut_at(at: float, until: float, rounds: int) -> list[float]:
    """Fractions of the clock of all rounds, equally spaced from `at` to `until`."""
    return [at + (until - at) * number / max(1, rounds - 1) for number in range(rounds)]


def size_after(done: int, rounds: int, whole: Size, wanted: Size) -> Size:
    """Size after `done` rounds, each of which removes the same number of parts."""
    return Size(*(most - round((most - left) * done / rounds) for most, left in zip(whole, wanted, strict=True)))


def thinned(order: tuple[int, ...], layers: int, wanted: int, depth: int) -> list[int]:
    """Layers of `order` that stay in this cut; those that go are evenly spread over those to go in the end.

    Args:
        order (`tuple[int, ...]`): indices of the layers that run.
        layers (`int`): number of layers of the whole model.
        wanted (`int`): number of layers after the last cut, at equal distances.
        depth (`int`): number of layers after this cut.
    """
    last = set(every_other(layers, wanted))
    to_go = [index for index in order if index not in last]
    gone = {to_go[place] for place in every_other(len(to_go), len(order) - depth)}
    return [index for index in order if index not in gone]
