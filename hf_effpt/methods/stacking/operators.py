"""Growth operators: the trained layer that each layer of the grown model is copied from (Gong et al., 2019).

A position is a place in the order in which layers run, from 0. An operator returns, for each position of the grown
model, the position in the shallow one that its weights come from; every trained layer is used at least once.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from hf_effpt.core.anatomy import attention_of, feed_forward_of
from hf_effpt.core.depth import LayerStack
from hf_effpt.core.errors import EffptError


def stacked(depth: int, grown: int, block: int) -> list[int]:
    """Repeats the whole stack: i mod l (Gong et al., 2019; G_stack, Du et al., 2024)."""
    return [position % depth for position in range(grown)]


def interpolated(depth: int, grown: int, block: int) -> list[int]:
    """Repeats each layer k times in a row: i div k (compared in G_stack, Du et al., 2024)."""
    if grown % depth:
        raise EffptError(
            f"`stacking.operator` `interpolate` repeats every layer equally often, so {depth} layers cannot become "
            f"{grown}; list depths of which each is a multiple of the one before in `stacking.depth`, or use `stack`."
        )
    return [position // (grown // depth) for position in range(grown)]


def middle_repeated(depth: int, grown: int, block: int) -> list[int]:
    """Repeats the middle block of layers once (MIDAS, Saunshi et al., 2024)."""
    if depth % block or grown != depth + block:
        raise EffptError(
            f"`stacking.operator` `midas` adds one block of {block} layers in each growth, so {depth} layers cannot "
            f"become {grown}; let the depths be multiples of the first, one block apart."
        )
    end = (depth // block + 1) // 2 * block  # end of the middle block, the lower one of two
    return [*range(end), *range(end - block, depth)]


def top_appended(depth: int, grown: int, block: int) -> list[int]:
    """Repeats the top layers on top of themselves (MSLT, Yang et al., 2020)."""
    if grown > 2 * depth:
        raise EffptError(
            f"`stacking.operator` `append_top` copies the layers it adds from the top, so {depth} layers can become "
            f"at most {2 * depth}, not {grown}; start deeper or give more growths."
        )
    return [*range(depth), *range(2 * depth - grown, depth)]


# Arguments of an operator: the depth before and after a growth, and the depth at the start.
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
    """Assigns indices to the layers of the grown model: trained ones keep theirs, copies take the next free ones.

    For each position of the grown model, `sources` has the position in `order` of its source. Returns the order of the
    grown model, and pairs of indices of a trained layer and its copy.
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


def check_types(operator: str, stages: Sequence[int], types: Sequence[str] | None) -> None:
    """Raises an `EffptError` if a copy in a growth would attend in another way than its original.

    `types` are the kinds of attention of the allocated layers; `None` if there is one kind.
    """
    if types is None:
        return
    order = tuple(range(stages[0]))
    for before, after in pairwise(stages):
        grown, copies = arrange(order, OPERATORS[operator](before, after, stages[0]))
        for trained, copy in copies:
            if types[trained] != types[copy]:
                raise EffptError(
                    f"`stacking.operator` `{operator}` would copy layer {trained}, of {types[trained]}, to layer "
                    f"{copy}, of {types[copy]}, when {before} layers become {after}; choose `stacking.depth` and "
                    "`layer_types` such that both are alike, for example with depths that are multiples of 3."
                )
        order = tuple(grown)


@torch.no_grad()
def grow(stack: LayerStack, sources: list[int], silent: bool) -> list[tuple[nn.Module, nn.Module]]:
    """Copies trained layers into new ones and sets the order; returns pairs of original and copy.

    If `silent`, copies in a pre-LN model add nothing to their input.
    """
    order, copies = arrange(stack.order, sources)
    for trained, copy in copies:
        stack.copy_layer(trained, copy)
        for dense in (attention_of(stack[copy]).output, feed_forward_of(stack[copy]).down) if silent else ():
            for parameter in dense.parameters():
                parameter.zero_()
    stack.order = order
    return [(stack[trained], stack[copy]) for trained, copy in copies]


def copy_state(optimizer: torch.optim.Optimizer, pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Copies the optimizer state of each layer to its copy, averages and step counts together.

    Averages of zero with an old step count, or the other way round, would make the first update a wrong multiple of
    the learning rate.
    """
    for trained, copy in pairs:
        targets = dict(copy.named_parameters())
        for name, source in trained.named_parameters():
            if source in optimizer.state:
                optimizer.state[targets[name]] = {
                    name: value.clone() if isinstance(value, Tensor) else value
                    for name, value in optimizer.state[source].items()
                }
