"""Dropout of attention heads: the outputs of dropped heads are zeroed in training, which saves no time.

B batch, L row length or the number of wanted positions, D width of all heads together.
"""

import numpy as np
import torch
from torch import Tensor, nn

from hf_effpt.core.anatomy import attention_of
from hf_effpt.core.depth import LayerStack
from hf_effpt.core.random import HEADS, step_rng

MASK = "heads_kept"  # buffer of the projection that mixes the heads, of shape (D,)


def draw_heads(p: float, shapes: list[int], step: int, seed: int) -> list[np.ndarray]:
    """Masks of the heads that are kept in `step`, for layers of so many; each is dropped with probability `p`."""
    generator = step_rng(seed, step, HEADS)
    return [generator.random(heads) >= p for heads in shapes]


def set_heads(stack: LayerStack, p: float, step: int, seed: int) -> None:
    """Masks the heads that are dropped in `step`, in place, so that a compiled layer is compiled once.

    The masks are made at the first call: a model that is built without storage and then loaded would have no values
    for buffers that no checkpoint holds.
    """
    attentions = [attention_of(stack[index]) for index in stack.order]
    drawn = draw_heads(p, [attention.heads for attention in attentions], step, seed)
    for (_, output, size), kept in zip(attentions, drawn, strict=True):
        if not hasattr(output, MASK):
            output.register_forward_pre_hook(_mask)
        if len(getattr(output, MASK, ())) != output.in_features:  # no mask, or heads were cut since
            output.register_buffer(MASK, torch.ones_like(output.weight[0]), persistent=False)
        getattr(output, MASK).copy_(torch.from_numpy(np.repeat(kept, size)))


def remove_heads(stack: LayerStack) -> None:
    """Removes the masks."""
    for output in [attention_of(layer).output for layer in stack.children()]:
        if hasattr(output, MASK):
            delattr(output, MASK)
            hooks = output._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook is _mask]:
                del hooks[key]


def _mask(output: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
    if not output.training:
        return None
    mixed_BLD, kept_D = args[0], getattr(output, MASK)
    return (mixed_BLD * kept_D.to(mixed_BLD.dtype),)
