"""Tickets by scores of heads and neurons in the layers that run, or at random as a control."""

import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.core.gates import Scores
from hf_effpt.core.random import TICKETS, step_rng
from hf_effpt.core.shares import part_of
from hf_effpt.core.ticket import Ticket, draw, draw_widths, unit_of


def check_shares(head_keep: float, ffn_keep: float, heads: int, neurons: int) -> None:
    """Raises an `EffptError` unless a layer of this width keeps at least one head and one unit of neurons."""
    if part_of(head_keep, heads) < 1:
        raise EffptError(
            f"`earlybert.head_keep` {head_keep} leaves none of the {heads} heads of a layer; keep at least "
            f"{1 / heads:.3g}."
        )
    unit = unit_of(neurons)
    if ffn_keep * neurons < unit:
        raise EffptError(
            f"`earlybert.ffn_keep` {ffn_keep} leaves {ffn_keep * neurons:.3g} of the {neurons} neurons of a layer, "
            f"and a layer needs {unit} at least, to which widths are rounded; keep at least {unit / neurons:.3g}."
        )


def check_cuts(head_keep: float, ffn_keep: float, layers: int, heads: int, neurons: int) -> None:
    """Raises an `EffptError` if a ticket from layers of this width would be all of them."""
    unit, every = unit_of(neurons), layers * neurons
    if part_of(head_keep, heads) == heads and round(part_of(ffn_keep, every) / unit) * unit == every:
        raise EffptError(
            f"`earlybert` has nothing to search: `head_keep` {head_keep:g} keeps all of the {heads} heads, and "
            f"`ffn_keep` {ffn_keep:g} all of the {neurons} neurons, in each of {layers} layers; set one of them to at "
            f"most {1 - 1 / heads:.3g} or {1 - unit / every:.3g}, or remove `earlybert`."
        )


def best(scores: Scores, head_keep: float, ffn_keep: float) -> Ticket:
    """Ticket of the highest scores; heads are ranked within each layer, neurons over all layers that run."""
    heads, neurons = scores
    every = sum(len(of_layer) for of_layer in neurons)
    return draw(heads, neurons, part_of(head_keep, len(heads[0])), part_of(ffn_keep, every))


def worst(scores: Scores, good: Ticket) -> Ticket:
    """Ticket of the lowest scores, with the widths of `good`."""
    heads, neurons = ([-of_layer for of_layer in of] for of in scores)
    return draw_widths(heads, neurons, good.widths)


def any_like(good: Ticket, seed: int, step: int) -> Ticket:
    """Random ticket with the widths of `good`, a function of seed and step."""
    generator = step_rng(seed, step, TICKETS)
    drawn = [[torch.from_numpy(generator.random(number)) for number in layer] for layer in good.shape]
    return draw_widths([heads for heads, _ in drawn], [neurons for _, neurons in drawn], good.widths)
