"""Access to the parts of a BERT- or ELECTRA-shaped encoder; the one place that knows the module names."""

from types import MethodType
from typing import Any, NamedTuple

from torch import Tensor, nn

from .errors import EffptError

PRE_NORM = ("roberta-prelayernorm",)  # pre-LN architectures with an `encoder.layer` list


def layers_of(backbone: nn.Module) -> nn.ModuleList:
    """Transformer layers of `backbone`."""
    encoder = getattr(backbone, "encoder", None)
    layers = getattr(encoder, "layer", None)
    if not isinstance(layers, nn.ModuleList):
        raise EffptError(
            f"`{type(backbone).__name__}` has no `encoder.layer` list; methods act on BERT- or ELECTRA-shaped "
            "encoders. Pass such a backbone (for example `EffptBertModel`)."
        )
    return layers


def replace_layers(backbone: Any, layers: nn.ModuleList) -> None:
    """Replaces the transformer layers of `backbone` by `layers`."""
    layers_of(backbone)
    backbone.encoder.layer = layers


def generator_of(backbone: nn.Module) -> Any:
    """Encoder of ELECTRA's generator or MC-BERT's controller beside `backbone`, or `None`."""
    return backbone.__dict__.get("generator_encoder")


def set_generator(backbone: nn.Module, generator: nn.Module) -> None:
    """Stores the generator's encoder for [`generator_of`]; not as a submodule, since `backbone` does not own it."""
    backbone.__dict__["generator_encoder"] = generator


def embeddings_of(backbone: Any) -> list[nn.Module]:
    """Modules below the first layer of `backbone`: the embeddings and, if there is one, their projection."""
    names = ("embeddings", "embeddings_project")
    return [getattr(backbone, name) for name in names if hasattr(backbone, name)]


def is_pre_norm(config: Any) -> bool:
    """`True` if layers of this architecture normalize their inputs (pre-LN); BERT and ELECTRA do not."""
    return getattr(config, "model_type", None) in PRE_NORM


class Attention(NamedTuple):
    """Projections of a layer's attention. Heads own rows of the first three and columns of `output`."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    head_size: int


class FeedForward(NamedTuple):
    """Feed-forward block of a layer. Neurons own rows of `up` and columns of `down`."""

    up: nn.Linear
    down: nn.Linear


def attention_of(layer: Any) -> Attention:
    """Projections of a layer's attention."""
    own = layer.attention.self
    return Attention(own.query, own.key, own.value, layer.attention.output.dense, own.attention_head_size)


def feed_forward_of(layer: Any) -> FeedForward:
    """Projections of a layer's feed-forward block."""
    return FeedForward(layer.intermediate.dense, layer.output.dense)


def pooler_of(backbone: Any) -> nn.Linear | None:
    """Projection of the pooler of `backbone`, or `None`."""
    return getattr(getattr(backbone, "pooler", None), "dense", None)


def tell_heads(layer: Any, heads: int) -> None:
    """Sets the number of heads of a layer's attention, after its projections were resized."""
    own = layer.attention.self
    own.num_attention_heads, own.all_head_size = heads, heads * own.attention_head_size
    own.__dict__.pop("forward", None)
    if not heads:
        own.forward = MethodType(_attend_to_nothing, own)


def _attend_to_nothing(self: Any, hidden_BLD: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Outputs of attention without heads, of shape (B, L, 0), and weights of shape (B, 0, L, L) if eager."""
    batch, length = hidden_BLD.shape[:2]
    eager = self.config._attn_implementation == "eager"
    return hidden_BLD.new_zeros(batch, length, 0), hidden_BLD.new_zeros(batch, 0, length, length) if eager else None
