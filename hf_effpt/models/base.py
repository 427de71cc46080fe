"""What every training model has: its methods put in, the backbone they act on, and the way back to a stock model."""

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_effpt.core.depth import flatten
from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method, build_methods


class EffptMixin:
    """Adds methods to a stock `PreTrainedModel` class; placed before it in the bases.

    With no methods, outputs, gradients, parameter names and the use of random numbers are those of the stock class.
    """

    stock_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        methods = build_methods(config.methods, config)
        super().__init__(config, *args, **kwargs)
        self.methods: list[Method] = methods
        for method in methods:
            method.inject(self.backbone)

    def add_method(self, name: str, **settings: Any) -> None:
        """Switches on a further method of an existing model.

        Raises:
            EffptError: if the model has it already, its settings are impossible, or it conflicts with another method.
        """
        if name in self.config.methods:
            raise EffptError(f"The model has the method `{name}` already; set it in `config.methods` instead.")
        ledger = {**self.config.methods, name: settings}
        self.methods = build_methods(ledger, self.config)
        self.config.methods = ledger
        next(method for method in self.methods if method.name == name).inject(self.backbone)

    @property
    def backbone(self) -> nn.Module:
        """The encoder that methods act on and that is exported."""
        return self.base_model

    def export(self) -> PreTrainedModel:
        """A stock model with the same function in evaluation mode, at the present depth, every method taken out."""
        plain = copy.deepcopy(self)
        for method in plain.methods:
            method.eject(plain.backbone)
        flatten(plain.backbone)
        with torch.device("meta"):
            stock = self.stock_class(plain.config.stock())
        stock.load_state_dict(plain.state_dict(), strict=True, assign=True)
        stock.tie_weights()
        restore_buffers(stock, plain)
        stock.generation_config = None
        return stock.eval()


def restore_buffers(model: nn.Module, source: nn.Module) -> None:
    """Gives `model` the non-persistent buffers of `source`, which no state dict holds."""
    for name, buffer in source.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer)


def isolate_documents(document_ids_BL: Tensor, attention: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mask and positions that keep the documents packed in a row apart, as if each stood in a row of its own.

    B batch, L row length.

    Args:
        document_ids_BL (`Tensor` of shape `(batch_size, sequence_length)`): number of the document within the row,
            rising from 1; 0 for padding, which attends to padding only.
        attention (`str`): the attention implementation; `eager` adds its mask to the scores, the others take booleans.
        dtype (`torch.dtype`): of an additive mask.

    Returns:
        The mask of shape `(batch_size, 1, sequence_length, sequence_length)` and position ids from 0 in each document.
    """
    mask_B1LL = document_ids_BL[:, None, :, None] == document_ids_BL[:, None, None, :]
    if attention == "eager":
        mask_B1LL = torch.zeros_like(mask_B1LL, dtype=dtype).masked_fill_(~mask_B1LL, torch.finfo(dtype).min)
    index_L = torch.arange(document_ids_BL.shape[1], device=document_ids_BL.device)
    starts_BL = torch.ones_like(document_ids_BL, dtype=torch.bool)
    starts_BL[:, 1:] = document_ids_BL[:, 1:] != document_ids_BL[:, :-1]
    first_BL = torch.where(starts_BL, index_L, 0).cummax(dim=1).values
    return mask_B1LL, index_L - first_BL
