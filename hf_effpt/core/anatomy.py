"""Where things are in a BERT- or ELECTRA-shaped encoder; the one place that knows the module names."""

from typing import Any

from torch import nn

from .errors import EffptError


def layers_of(backbone: nn.Module) -> nn.ModuleList:
    """The list of transformer layers of `backbone`."""
    encoder = getattr(backbone, "encoder", None)
    layers = getattr(encoder, "layer", None)
    if not isinstance(layers, nn.ModuleList):
        raise EffptError(
            f"`{type(backbone).__name__}` has no `encoder.layer` list; methods act on BERT- or ELECTRA-shaped "
            "encoders. Pass such a backbone (for example `EffptBertModel`)."
        )
    return layers


def replace_layers(backbone: Any, layers: nn.ModuleList) -> None:
    """Puts `layers` in the place of the transformer layers of `backbone`."""
    layers_of(backbone)
    backbone.encoder.layer = layers


def auxiliary_of(backbone: nn.Module) -> Any:
    """The encoder that only helps to train `backbone` (ELECTRA's generator, MC-BERT's controller), or `None`."""
    return backbone.__dict__.get("auxiliary")


def set_auxiliary(backbone: nn.Module, auxiliary: nn.Module) -> None:
    """Lets methods find the auxiliary encoder; as no submodule, since it is no part of `backbone`."""
    backbone.__dict__["auxiliary"] = auxiliary
