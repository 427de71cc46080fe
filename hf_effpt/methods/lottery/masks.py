"""Masks of single weights of an encoder's matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hf_effpt.core.anatomy import attention_of, feed_forward_of, layers_of, pooler_of
from hf_effpt.core.depth import order_of, stack_of

from .ticket import SparseTicket, renumbered

NAME = "masks"  # attribute of the backbone


def prunable(backbone: Any) -> dict[str, nn.Linear]:
    """Matrices that can be pruned, by names that all architectures share, such as `layer.0.query` and `pooler`.

    They are those of attention, feed-forward blocks and pooler; no embeddings, LayerNorms or biases (`LT_pretrain.py`
    of Chen et al., 2020). Layers are numbered as they are stored.
    """
    found: dict[str, nn.Linear] = {}
    for index, layer in enumerate(layers_of(backbone).children()):
        attention, block = attention_of(layer), feed_forward_of(layer)
        inner = ("query", "key", "value") if len(attention.inner) > 1 else ("qkv",)
        matrices = (*attention.inner, attention.output, block.up, block.down)
        parts = zip((*inner, "output", "up", "down"), matrices, strict=True)
        found |= {f"layer.{index}.{part}": matrix for part, matrix in parts}
    pooler = pooler_of(backbone)
    return found if pooler is None else found | {"pooler": pooler}


def running_names(backbone: Any) -> dict[str, str]:
    """Names of the matrices that run, first to last, each with its name in the exported model and in tickets."""
    return renumbered(prunable(backbone), order_of(backbone))


def running_matrices(backbone: Any) -> dict[str, nn.Linear]:
    """The matrices of [`prunable`] that run, first to last: those that are compared, drawn and counted."""
    matrices = prunable(backbone)
    return {name: matrices[name] for name in running_names(backbone)}


class MaskedLinear(nn.Linear):
    """Linear layer with a masked matrix; the class that [`Masks`] gives to the stock modules."""

    def forward(self, input: Tensor) -> Tensor:
        masks: Masks = self.__dict__["masks"]
        return nn.functional.linear(input, masks.masked(self), self.bias)


class Masks(nn.Module):
    """Boolean buffer for each matrix that is pruned, `True` where a weight is kept; at first everywhere.

    The forward pass multiplies by them, so that a weight that is not kept has no gradient either. They are read from
    the file `ticket`, if given; if `persistent`, checkpoints hold them.
    """

    def __init__(self, backbone: Any, ticket: str | None = None, persistent: bool = True) -> None:
        super().__init__()
        stack_of(backbone)  # from here on the order of the configuration holds
        self.ticket, self.places = ticket, running_names(backbone)
        for name, linear in prunable(backbone).items():
            kept = torch.ones_like(linear.weight, dtype=torch.bool)
            self.register_buffer(_key(name), kept, persistent=persistent)
        if ticket is not None and not next(self.buffers()).is_meta:
            self._read(ticket)

    def _read(self, path: str) -> None:
        own = self.kept()
        ticket = SparseTicket.load(path).fitted({new: own[name].shape for name, new in self.places.items()})
        self.put({name: ticket[new] for name, new in self.places.items() if new in ticket})

    def reset_missing_parameters(self) -> None:
        """Fills the masks if the loaded weights have none, as those of a stock model."""
        missing = [mask for mask in self.buffers() if not getattr(mask, "_is_hf_initialized", False)]
        for mask in missing:
            if not mask.is_meta:
                mask.fill_(True)
        if self.ticket is not None and len(missing) == len(self._buffers) and not missing[0].is_meta:
            self._read(self.ticket)

    def attach(self, backbone: Any) -> None:
        """Makes the masks part of `backbone`, whose matrices are then masked."""
        setattr(backbone, NAME, self)
        for name, linear in prunable(backbone).items():
            linear.__class__ = MaskedLinear
            linear.__dict__.update(masks=self, masked_as=name)

    def detach(self, backbone: Any) -> None:
        """Removes the masks, and leaves the weights as evaluation saw them."""
        self.eval()
        self.impress(backbone)
        delattr(backbone, NAME)
        for linear in prunable(backbone).values():
            linear.__class__ = nn.Linear
            for name in ("masks", "masked_as"):
                linear.__dict__.pop(name)

    def kept(self) -> dict[str, Tensor]:
        """Masks by the names of [`prunable`]."""
        return {name.replace("/", "."): mask for name, mask in self.named_buffers()}

    def exported(self, backbone: Any) -> dict[str, Tensor]:
        """Masks of the matrices that run, by their names in the exported model."""
        kept = self.kept()
        return {new: kept[name] for name, new in running_names(backbone).items()}

    @torch.no_grad()
    def put(self, kept: dict[str, Tensor]) -> None:
        """Replaces masks, all or some, by others of the same shapes."""
        for name, mask in kept.items():
            self.get_buffer(_key(name)).copy_(mask)

    def mask_of(self, linear: nn.Module) -> Tensor:
        """Mask of a module."""
        return self.get_buffer(_key(linear.__dict__["masked_as"]))

    def masked(self, linear: nn.Linear) -> Tensor:
        """Matrix of a module as the forward pass uses it."""
        return torch.where(self.mask_of(linear), linear.weight, 0.0)

    @torch.no_grad()
    def impress(self, backbone: Any) -> None:
        """Overwrites the weights with the matrices that the forward pass uses."""
        for linear in prunable(backbone).values():
            linear.weight.copy_(self.masked(linear))

    def left(self, backbone: Any) -> Tensor:
        """Number of weights that run and are kept, a scalar on the device."""
        return torch.stack([self.mask_of(linear).sum() for linear in running_matrices(backbone).values()]).sum()

    def size(self, backbone: Any) -> int:
        """Number of weights that run and can be pruned."""
        return sum(linear.weight.numel() for linear in running_matrices(backbone).values())


def _key(name: str) -> str:
    """Name of a buffer, which must not have dots."""
    return name.replace(".", "/")
