"""LiGO, in depth: learns which mixture of the trained layers each grown one begins as (Wang et al., 2023).

Copying layers is a linear map with one-hot rows; here each kind of parameter, the weight or the bias of a module in a
layer, has a map of its own, which begins near that one and learns to lower the loss while all weights rest.
K kinds of parameter, L layers that run after the growth, J trained layers.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import LayerStack
from hf_effpt.core.metrics import accumulator_of
from hf_effpt.core.processes import add_up, world

STEPS = 100  # of the paper
NOISE = 0.03  # of the authors' code, as are rows that sum to one and the clipping
# Ours, a tenth of the largest that is stable in small models: the authors' code warms AdamW up for 10,000 steps, of
# which these 100 would hardly move anything.
LEARNING_RATE = 0.1


def learn_growth(
    backbone: Any,
    stack: LayerStack,
    sources: Sequence[int],
    order: Sequence[int],
    old_order: Sequence[int],
    context: RunContext,
    *,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    noise: float = NOISE,
) -> None:
    """Gives the layers of `order` learnt mixtures of those of `old_order`, in place; nothing else changes.

    Args:
        backbone: whose tally what is learnt here stays out of.
        stack ([`LayerStack`]): its layers, the trained ones unchanged.
        sources (`Sequence[int]`): for each place in `order`, the place in `old_order` of the layer that is copied
            without learning.
        order, old_order (`Sequence[int]`): indices of the layers that run after and before the growth.
        context ([`RunContext`]): of a live run: the model whose loss is lowered, batches, and who pays for them. Its
            seed and step decide the noise.
        steps (`int`, *optional*, defaults to 100): of stochastic gradient descent, one batch each.
        learning_rate (`float`, *optional*, defaults to 0.1): of these steps.
        noise (`float`, *optional*, defaults to 0.03): largest share, before normalisation, that other layers than the
            copied one have at first.
    """
    model = context.model
    assert context.draw_batches is not None
    assert context.charged is not None
    kinds = [name for name, _ in stack[old_order[0]].named_parameters()]
    trained = [[stack[index].get_parameter(kind).detach() for index in old_order] for kind in kinds]
    grown = [[stack[index].get_parameter(kind) for index in order] for kind in kinds]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    inside = [[f"model.{names[id(parameter)]}" for parameter in each] for each in grown]
    spared = {f"model.{name}": buffer.clone() for name, buffer in model.named_buffers()}  # forwards write to some
    mixing_KLJ = _near_copies(len(kinds), sources, len(old_order), noise, context.seed + context.step)
    mixing_KLJ = mixing_KLJ.to(grown[0][0].device).requires_grad_()
    optimizer = torch.optim.SGD([mixing_KLJ], learning_rate)
    slopes = _Slopes(model, mixing_KLJ)
    with _alone(backbone, stack, order, mixing_KLJ.device):
        for batch in context.draw_batches(steps):
            weights = {}
            with context.charged(batch):
                for named, mixed in zip(inside, _mixtures(mixing_KLJ, trained), strict=True):
                    weights |= dict(zip(named, mixed, strict=True))
                slope_KLJ = functional_call(slopes, {**weights, **spared}, (batch,))
            slope_KLJ = add_up(slope_KLJ) / world()
            mixing_KLJ.grad = slope_KLJ
            nn.utils.clip_grad_norm_([mixing_KLJ], 1.0)
            optimizer.step()
    with torch.no_grad():
        for parameters, mixed in zip(grown, _mixtures(mixing_KLJ, trained), strict=True):
            for parameter, tensor in zip(parameters, mixed, strict=True):
                parameter.copy_(tensor)


class _Slopes(nn.Module):
    """Calls a model and differentiates its loss, both with the parameters that stand in for its own.

    Outside that call, layers that save no activations would be run again with others.
    """

    def __init__(self, model: nn.Module, mixing_KLJ: Tensor) -> None:
        super().__init__()
        self.model, self.mixing_KLJ = model, mixing_KLJ

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.autograd.grad(self.model(**batch).loss, self.mixing_KLJ)[0]


def _near_copies(kinds: int, sources: Sequence[int], trained: int, noise: float, seed: int) -> Tensor:
    """Rows that sum to one, the copied layer's share the largest."""
    mixing_KLJ = noise * torch.rand(kinds, len(sources), trained, generator=torch.Generator().manual_seed(seed))
    mixing_KLJ[:, range(len(sources)), list(sources)] = 1.0
    return mixing_KLJ / mixing_KLJ.sum(dim=-1, keepdim=True)


def _mixtures(mixing_KLJ: Tensor, trained: Iterable[Sequence[Tensor]]) -> Iterator[Tensor]:
    """By kind, the parameters of all layers that run; without a product of matrices, which devices may round."""
    for mixing_LJ, layers in zip(mixing_KLJ, trained, strict=True):
        shares_JL = mixing_LJ.T.reshape(len(layers), -1, *[1] * layers[0].ndim)
        parts = [share * layer for share, layer in zip(shares_JL, layers, strict=True)]
        yield reduce(torch.add, parts).to(layers[0].dtype)


@contextmanager
def _alone(backbone: Any, stack: LayerStack, order: Sequence[int], device: torch.device) -> Iterator[None]:
    """Runs the layers of `order`, all rows in each, and leaves no trace in the random numbers, tally or graphs."""
    tally, random = accumulator_of(backbone), [device] if device.type == "cuda" else []
    sums, kept = tally.take(), (stack.order, stack.dropped, stack.scales, stack.router)
    stack.order, stack.dropped, stack.scales, stack.router = order, frozenset(), {}, None
    compiled = any(layer._compiled_call_impl is not None for layer in stack.children())
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    try:
        with torch.random.fork_rng(devices=random), eager:
            yield
    finally:
        stack.order, stack.dropped, stack.scales, stack.router = kept
        tally.sums = sums
