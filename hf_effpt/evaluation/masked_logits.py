"""Logits of a masked language model at the positions that are read, and nowhere else.

B batch, L row length, M positions wanted in a row, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel, ElectraModel, ModernBertModel, PreTrainedModel, RobertaModel
from transformers.modeling_outputs import BaseModelOutput

from hf_effpt.core.anatomy import layers_of, replace_layers
from hf_effpt.core.depth import LayerStack
from hf_effpt.core.modes import evaluating
from hf_effpt.models.sparse_layer import gather_rows, layer_at


def masked_logits(model: PreTrainedModel, positions_BM: Tensor, **inputs: Any) -> Tensor:
    """Logits at some positions of every row, of shape `(batch_size, wanted, vocab_size)`.

    The head runs on the hidden states of those positions only; in evaluation mode so does the last layer of a
    BERT-shaped encoder. `model` is a masked language model of a stock class or of this package; inputs are without
    labels.
    """
    with _outputs_at(model.base_model, positions_BM):
        return model(**inputs, return_dict=True).logits


def predicts_masked_tokens(model: nn.Module) -> bool:
    """`True` if the class of `model`, or one of its bases, is a stock `…ForMaskedLM`."""
    return any(cls.__name__.endswith("ForMaskedLM") for cls in type(model).__mro__)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Disables dropout and gradients; restores the mode of every module at the end of the block."""
    with evaluating(model), torch.no_grad():
        yield


@contextmanager
def stacked(backbone: PreTrainedModel) -> Iterator[LayerStack]:
    """Makes the layers of a stock model a `LayerStack`, unless they are one, for as long as the block lasts."""
    layers = layers_of(backbone)
    stack = layers if isinstance(layers, LayerStack) else LayerStack(layers)
    replace_layers(backbone, stack)
    try:
        yield stack
    finally:
        replace_layers(backbone, layers)


@contextmanager
def _outputs_at(backbone: PreTrainedModel, positions_BM: Tensor) -> Iterator[None]:
    """Makes `backbone` return the hidden states of some positions only."""
    with stacked(backbone) if _may_skip(backbone) else nullcontext(LayerStack([])) as stack:

        def begin(*_: Any) -> None:
            # Here, since a training model clears `last` before it calls its encoder.
            stack.last = partial(layer_at, positions_BM=positions_BM)

        def end(module: nn.Module, args: Any, output: Any) -> BaseModelOutput:
            hidden = output[0] if stack.active else gather_rows(output[0], positions_BM)
            return BaseModelOutput(last_hidden_state=hidden)

        hooks = [backbone.register_forward_pre_hook(begin), backbone.register_forward_hook(end)]
        try:
            yield
        finally:
            stack.last = None
            for hook in hooks:
                hook.remove()


def _may_skip(backbone: PreTrainedModel) -> bool:
    """`True` if `layer_at` can compute the last layer: it draws no dropout, and nothing else reads its output."""
    if backbone.training or not isinstance(backbone, (BertModel, ElectraModel, RobertaModel, ModernBertModel)):
        return False
    config = backbone.config
    read = config.output_hidden_states or config.output_attentions or getattr(config, "is_decoder", False)
    return not read and config._attn_implementation in ("eager", "sdpa")
