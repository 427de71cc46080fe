"""Where things are in a BERT- or ELECTRA-shaped encoder; the one place that knows the module names."""

from typing import Any

from torch import nn

from .errors import EffptError

PRE_NORM = ("roberta-prelayernorm",)  # architectures with `encoder.layer` lists; BERT and ELECTRA are post-LN


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


def embeddings_of(backbone: Any) -> list[nn.Module]:
    """What is below the first layer of `backbone`: its tables, and where it has one the projection to its width."""
    names = ("embeddings", "embeddings_project")
    return [getattr(backbone, name) for name in names if hasattr(backbone, name)]


def is_pre_norm(config: Any) -> bool:
    """Whether the layers of such a model normalise their inputs (pre-LN), so that they add to what they are given."""
    return getattr(config, "model_type", None) in PRE_NORM
