"""Tickets by scores of heads and neurons in the layers that run, or at random as a control."""

from typing import Any

import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.core.gates import Scores
from hf_effpt.core.random import TICKETS, step_rng
from hf_effpt.core.shares import part_of
from hf_effpt.core.ticket import Ticket, draw_widths, unit_of
from hf_effpt.core.width import draw_running, layers_that_run


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


def best(scores: Scores, backbone: Any, head_keep: float, ffn_keep: float) -> Ticket:
    """Ticket of the highest scores; heads are ranked within each layer, neurons over all layers that run."""
    layers = layers_that_run(backbone)
    every = sum(len(scores[1][layer]) for layer in layers)
    heads, neurons = part_of(head_keep, len(scores[0][layers[0]])), part_of(ffn_keep, every)
    return draw_running(backbone, scores, heads, neurons)


def worst(scores: Scores, good: Ticket) -> Ticket:
    """Ticket of the lowest scores, with the widths of `good`."""
    heads, neurons = ([-of_layer for of_layer in of] for of in scores)
    return draw_widths(heads, neurons, good.widths)


def any_like(good: Ticket, seed: int, step: int) -> Ticket:
    """Random ticket with the widths of `good`, a function of seed and step."""
    generator = step_rng(seed, step, TICKETS)
    drawn = [[torch.from_numpy(generator.random(number)) for number in layer] for layer in good.shape]
    return draw_widths([heads for heads, _ in drawn], [neurons for _, neurons in drawn], good.widths)
