"""Growth operators: which trained layer each layer of the grown model begins as (Gong et al., 2019, and successors).

A position is a place in the order in which layers run, from 0. An operator says, for each position of the grown model,
from which position of the shallow one its weights come; every trained layer is named at least once.
"""

from collections.abc import Callable
from typing import Any

import torch

from hf_effpt.core.depth import LayerStack
from hf_effpt.core.errors import EffptError


def stacked(depth: int, grown: int, block: int) -> list[int]:
    """The trained layers again and again: i mod l (Gong et al., 2019; G_stack, Du et al., 2024)."""
    return [position % depth for position in range(grown)]


def interpolated(depth: int, grown: int, block: int) -> list[int]:
    """Each trained layer so many times in a row: i div k (compared in G_stack, Du et al., 2024)."""
    if grown % depth:
        raise EffptError(
            f"`stacking.operator` `interpolate` repeats every layer equally often, so {depth} layers cannot become "
            f"{grown}; list depths of which each is a multiple of the one before in `stacking.depth`, or use `stack`."
        )
    return [position // (grown // depth) for position in range(grown)]


def middle_repeated(depth: int, grown: int, block: int) -> list[int]:
    """The middle block of layers twice (MIDAS, Saunshi et al., 2024)."""
    if depth % block or grown != depth + block:
        raise EffptError(
            f"`stacking.operator` `midas` adds one block of {block} layers in each growth, so {depth} layers cannot "
            f"become {grown}; let the depths be multiples of the first, one block apart."
        )
    end = (depth // block + 1) // 2 * block  # of the middle block, the lower one of two
    return [*range(end), *range(end - block, depth)]


def top_appended(depth: int, grown: int, block: int) -> list[int]:
    """The top layers again on top of themselves (MSLT, Yang et al., 2020)."""
    if grown > 2 * depth:
        raise EffptError(
            f"`stacking.operator` `append_top` copies the layers it adds from the top, so {depth} layers can become "
            f"at most {2 * depth}, not {grown}; start deeper or give more growths."
        )
    return [*range(depth), *range(2 * depth - grown, depth)]


# What an operator is called with: the depth before and after a growth, and the depth at the start.
OPERATORS: dict[str, Callable[[int, int, int], list[int]]] = {
    "stack": stacked,
    "interpolate": interpolated,
    "midas": middle_repeated,
    "append_top": top_appended,
    "identity": stacked,
    "ligo_depth": stacked,
}
BY_BLOCKS = ("midas", "append_top")  # add the same number of layers in each growth


def arrange(order: tuple[int, ...], sources: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Where the layers of the grown model are: trained ones stay where they are, copies take the next free places.

    Args:
        order (`tuple[int, ...]`): indices of the layers that run.
        sources (`list[int]`): of each position of the grown model, its position in `order`.

    Returns:
        The order of the grown model, and pairs of the index of a trained layer and of its copy.
    """
    free = iter(index for index in range(len(sources)) if index not in order)
    grown, copies = [], []
    for source in sources:
        index = order[source]
        if index in grown:
            copies.append((index, next(free)))
            index = copies[-1][1]
        grown.append(index)
    return grown, copies


@torch.no_grad()
def silence(layer: Any) -> None:
    """Has a pre-LN layer add nothing to its input, so that the model computes what it did without it."""
    for dense in (layer.attention.output.dense, layer.output.dense):
        dense.weight.zero_()
        dense.bias.zero_()


def grow(stack: LayerStack, sources: list[int], silent: bool) -> list[tuple[int, int]]:
    """Copies trained layers into the places of new ones and has them run; returns pairs of original and copy."""
    order, copies = arrange(stack.order, sources)
    for trained, copy in copies:
        stack.copy_layer(trained, copy)
        if silent:
            silence(stack[copy])
    stack.order = order
    return copies
