"""LiGO in depth: each grown layer begins as a learned mixture of the trained ones (Wang et al., 2023).

Copying layers is a linear map with one-hot rows. Here each kind of parameter, the weight or bias of a module in a
layer, has a map of its own, which begins near that one and learns to lower the loss while the weights are frozen.
K kinds of parameter, L layers that run after the growth, J trained layers.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import LayerStack
from hf_effpt.core.modes import aside, uncompiled
from hf_effpt.core.processes import add_up, world

STEPS = 100  # of the paper
NOISE = 0.03  # of the authors' code, as are rows that sum to one and the clipping
# Our choice, a tenth of the largest that is stable in small models: the authors' code warms AdamW up for 10,000
# steps, so that 100 of them would hardly change anything.
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
    """Overwrites the layers of `order` with learned mixtures of those of `old_order`; nothing else changes.

    Args:
        stack ([`LayerStack`]): layers of the backbone, the trained ones unchanged.
        sources (`Sequence[int]`): for each position in `order`, the position in `old_order` of the layer that it would
            be a copy of without learning.
        order, old_order (`Sequence[int]`): indices of the layers that run after and before the growth.
        context ([`RunContext`]): live run that provides the model, charged batches, and the seed of the noise.
        steps (`int`), learning_rate (`float`): of stochastic gradient descent, with one batch a step.
        noise (`float`, *optional*, defaults to 0.03): largest initial share of layers other than the copied one,
            before normalisation.
    """
    model = context.model
    assert context.draw_batches is not None
    assert context.charged is not None
    every = [dict(stack[index].named_parameters()) for index in order]
    kinds = list(max(every, key=len))
    trained = [[_parameter(stack[index], kind, every).detach() for index in old_order] for kind in kinds]
    grown = [[layer.get(kind) for layer in every] for kind in kinds]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    mixed_in = [parameter for layers in grown for parameter in layers if parameter is not None]
    inside = [[each is not None and f"model.{names[id(each)]}" for each in layers] for layers in grown]
    spared = {f"model.{name}": buffer.clone() for name, buffer in model.named_buffers()}  # forwards write to some
    mixing_KLJ = _near_copies(len(kinds), sources, len(old_order), noise, context.seed + context.step)
    mixing_KLJ = mixing_KLJ.to(next(backbone.parameters()).device).requires_grad_()
    optimizer = torch.optim.SGD([mixing_KLJ], learning_rate)
    slopes = _Slopes(model, mixing_KLJ)
    with aside(backbone), uncompiled(backbone), _alone(stack, order):
        for batch in context.draw_batches(steps):
            weights = {}
            with context.charged(batch, mixed_in):
                for named, mixed in zip(inside, _mixtures(mixing_KLJ, trained), strict=True):
                    weights |= {name: tensor for name, tensor in zip(named, mixed, strict=True) if name}
                slope_KLJ = functional_call(slopes, {**weights, **spared}, (batch,))
            slope_KLJ = add_up(slope_KLJ) / world()
            mixing_KLJ.grad = slope_KLJ
            nn.utils.clip_grad_norm_([mixing_KLJ], 1.0)
            optimizer.step()
    with torch.no_grad():
        for parameters, mixed in zip(grown, _mixtures(mixing_KLJ, trained), strict=True):
            for parameter, tensor in zip(parameters, mixed, strict=True):
                if parameter is not None:
                    parameter.copy_(tensor)


def _parameter(layer: nn.Module, kind: str, every: Sequence[dict[str, nn.Parameter]]) -> Tensor:
    """A parameter of a layer; ones for the norm that the first layer of a ModernBERT lacks."""
    own = dict(layer.named_parameters()).get(kind)
    return torch.ones_like(next(other[kind] for other in every if kind in other)) if own is None else own


class _Slopes(nn.Module):
    """Gradient of a model's loss by the mixing weights, computed inside `functional_call`.

    Outside that call, checkpointed layers would be run again with the model's own parameters.
    """

    def __init__(self, model: nn.Module, mixing_KLJ: Tensor) -> None:
        super().__init__()
        self.model, self.mixing_KLJ = model, mixing_KLJ

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.autograd.grad(self.model(**batch).loss, self.mixing_KLJ)[0]


def _near_copies(kinds: int, sources: Sequence[int], trained: int, noise: float, seed: int) -> Tensor:
    """Initial mixing weights: rows that sum to one, with the largest share for the copied layer."""
    mixing_KLJ = noise * torch.rand(kinds, len(sources), trained, generator=torch.Generator().manual_seed(seed))
    mixing_KLJ[:, range(len(sources)), list(sources)] = 1.0
    return mixing_KLJ / mixing_KLJ.sum(dim=-1, keepdim=True)


def _mixtures(mixing_KLJ: Tensor, trained: Iterable[Sequence[Tensor]]) -> Iterator[Tensor]:
    """Mixed parameters of all layers, kind by kind; sums instead of matrix products, which devices may round."""
    for mixing_LJ, layers in zip(mixing_KLJ, trained, strict=True):
        shares_JL = mixing_LJ.T.reshape(len(layers), -1, *[1] * layers[0].ndim)
        parts = [share * layer for share, layer in zip(shares_JL, layers, strict=True)]
        yield reduce(torch.add, parts).to(layers[0].dtype)


@contextmanager
def _alone(stack: LayerStack, order: Sequence[int]) -> Iterator[None]:
    """Context in which only the layers of `order` run, on all rows."""
    kept = stack.order, stack.dropped, stack.scales, stack.router
    stack.order, stack.dropped, stack.scales, stack.router = order, frozenset(), {}, None
    try:
        yield
    finally:
        stack.order, stack.dropped, stack.scales, stack.router = kept
