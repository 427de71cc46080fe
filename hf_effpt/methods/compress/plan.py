"""When a model is cut, and to which size: plain numbers, without a model."""

from typing import NamedTuple

from hf_effpt.core.depth import every_other


class Size(NamedTuple):
    """The size of a model: layers that run, heads of each, and feed-forward neurons of each on average."""

    depth: int
    heads: int
    neurons: int


def cut_at(at: float, until: float, rounds: int) -> list[float]:
    """The fractions of the clock of all rounds: the first at `at`, the last at `until`, at equal distances."""
    return [at + (until - at) * number / max(1, rounds - 1) for number in range(rounds)]


def size_after(done: int, rounds: int, whole: Size, wanted: Size) -> Size:
    """The size after so many rounds, each of which takes away the same share of what is to go."""
    return Size(*(most - round((most - left) * done / rounds) for most, left in zip(whole, wanted, strict=True)))


def thinned(order: tuple[int, ...], layers: int, wanted: int, depth: int) -> list[int]:
    """Which `depth` of the layers in `order` stay, on the way to every other one: those not to stay go evenly.

    Args:
        order (`tuple[int, ...]`): indices of the layers that run.
        layers (`int`): of the whole model.
        wanted (`int`): that are to be left in the end.
        depth (`int`): that are to be left now.
    """
    last = set(every_other(layers, wanted))
    to_go = [index for index in order if index not in last]
    gone = {to_go[place] for place in every_other(len(to_go), len(order) - depth)}
    return [index for index in order if index not in gone]
