"""Times and sizes of the cuts and random tickets, as plain numbers without a model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hf_effpt.core.depth import every_other
from hf_effpt.core.shares import part_of
from hf_effpt.core.ticket import Ticket


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
    return Size(*(most - part_of(done / rounds, most - left) for most, left in zip(whole, wanted, strict=True)))


def thinned(left: Sequence[int], layers: int, wanted: int, depth: int) -> list[int]:
    """The `depth` layers of those `left` that stay in this cut; those that go are evenly spread over those to go last.

    Layers are positions among the `layers` that ran before the first cut. After the last cut, `wanted` of them are
    left, at equal distances.
    """
    last = set(every_other(layers, wanted))
    to_go = [place for place in left if place not in last]
    gone = {to_go[place] for place in every_other(len(to_go), len(left) - depth)}
    return [place for place in left if place not in gone]


def at_random(ticket: Ticket, generator: np.random.Generator) -> Ticket:
    """Ticket of the same widths as `ticket`, of heads and neurons drawn at random: the control of the others."""
    heads, neurons = (
        tuple(
            tuple(np.sort(generator.permutation(whole[kind])[: len(layer)]).tolist())
            for layer, whole in zip(kept, ticket.shape, strict=True)
        )
        for kind, kept in enumerate((ticket.heads, ticket.neurons))
    )
    return Ticket(heads, neurons, ticket.shape)
