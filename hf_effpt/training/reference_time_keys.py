"""Description of a model by all that decides the time of its steps: the part of a key of the reference table."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_effpt.core.anatomy import activation_of, attention_of, dropouts_of, feed_forward_of, layers_of
from hf_effpt.core.depth import running
from hf_effpt.core.token_losses import observers_of
from hf_effpt.models.base import recomputes

SAID = {"hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention dropout"}  # in older tables


def described(model: Any, scores: bool = False) -> str:
    """Text that is equal for models whose steps take the same time.

    If `scores`, the step is a pass in evaluation mode without gradients, else one of training. The text names the
    layers that run, first to last, as `layers NUMBERxPARAMETERS+…|`, from which the table tells deeper models.
    """
    backbone, config = model.backbone, model.config
    layers = running(backbone, training=False if scores else None)
    sizes = [str(_numel(layer)) for layer in layers]
    shapes = _runs([_layer(layer, scores) for layer in layers], " with ", ", ")
    said = [
        type(model).__name__, f"hidden {config.hidden_size} vocabulary {config.vocab_size}",
        activation_of(config), config._attn_implementation, *_switches(model, scores), model.cost_signature(),
        *[method.cost_signature(backbone) for method in model.methods],
    ]  # fmt: skip
    return f"layers {_runs(sizes, 'x', '+', always=True)}|{shapes}|{' '.join(part for part in said if part)}"


def _numel(module: nn.Module, learning: bool = False) -> int:
    return sum([parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not learning])


def _runs(texts: Sequence[str], times: str, then: str, always: bool = False) -> str:
    """Texts in their order, equal neighbours counted together; without a count if all are equal, unless `always`."""
    runs = [(len(list(group)), text) for text, group in groupby(texts)]
    if len(runs) == 1 and not always:
        return runs[0][1]
    return then.join(f"{number}{times}{text}" for number, text in runs)


def _layer(layer: Any, scores: bool) -> str:
    """Shape of a layer, and how it runs."""
    attention = attention_of(layer)
    said = f"{attention.heads} heads {attention.head_size} wide and {feed_forward_of(layer).neurons} neurons"
    if getattr(layer, "attention_type", "full_attention") != "full_attention":
        said += f" within {layer.config.sliding_window}"
    if layer._compiled_call_impl is not None:
        said += " compiled"
    if scores:
        return said
    if (learning := _numel(layer, learning=True)) != _numel(layer):
        said += f" learning {learning}"
    if recomputes(layer):
        saving = layer._gradient_checkpointing_func
        settings = sorted(getattr(saving, "keywords", {}).items())
        said += " checkpointed" + "".join(f" {key} {value}" for key, value in settings)
        said += "" if getattr(saving, "func", None) is checkpoint else " on the host"
    return said


def _switches(model: Any, scores: bool) -> list[str]:
    """Further facts of a model, its run and the process."""
    config, layers = model.config, layers_of(model.backbone)
    inside = {id(parameter) for layer in layers.children() for parameter in layer.parameters()}
    outside = [p for p in model.parameters() if id(p) not in inside and (p.requires_grad or scores)]
    switches = {
        **{SAID.get(name, name): not scores and share for name, share in dropouts_of(config).items()},
        f"chunks of {config.chunk_size_feed_forward}": config.chunk_size_feed_forward,
        "hidden states": config.output_hidden_states,
        "attention weights": config.output_attentions,
        "all positions": not scores and getattr(layers, "read_whole", False),
        "scaled layers": getattr(layers, "scales", None),
        "losses by token": not scores and observers_of(model.backbone),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    return [
        f"with {sum([parameter.numel() for parameter in outside])} outside the layers",
        str(next(model.parameters()).dtype).removeprefix("torch."),
        f"{torch.get_float32_matmul_precision()} precision",
        *[name for name, on in switches.items() if on],
    ]
