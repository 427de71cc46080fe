"""Where things are in a BERT- or ELECTRA-shaped encoder; the one place that knows the module names."""

from types import MethodType
from typing import Any, NamedTuple

from torch import Tensor, nn

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


def generator_of(backbone: nn.Module) -> Any:
    """The encoder that only helps to train `backbone` (ELECTRA's generator, MC-BERT's controller), or `None`."""
    return backbone.__dict__.get("generator_encoder")


def set_generator(backbone: nn.Module, auxiliary: nn.Module) -> None:
    """Lets methods find the auxiliary encoder; as no submodule, since it is no part of `backbone`."""
    backbone.__dict__["generator_encoder"] = auxiliary


def embeddings_of(backbone: Any) -> list[nn.Module]:
    """What is below the first layer of `backbone`: its tables, and where it has one the projection to its width."""
    names = ("embeddings", "embeddings_project")
    return [getattr(backbone, name) for name in names if hasattr(backbone, name)]


def is_pre_norm(config: Any) -> bool:
    """Whether the layers of such a model normalise their inputs (pre-LN), so that they add to what they are given."""
    return getattr(config, "model_type", None) in PRE_NORM


class Attention(NamedTuple):
    """The projections of a layer's attention: rows of the first three and columns of the last belong to heads."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    head_size: int


class FeedForward(NamedTuple):
    """The feed-forward block of a layer: rows of `up`, and columns of `down`, belong to its neurons."""

    up: nn.Linear
    down: nn.Linear


def attention_of(layer: Any) -> Attention:
    """The projections of the attention of a layer."""
    own = layer.attention.self
    return Attention(own.query, own.key, own.value, layer.attention.output.dense, own.attention_head_size)


def feed_forward_of(layer: Any) -> FeedForward:
    """The two projections of the feed-forward block of a layer."""
    return FeedForward(layer.intermediate.dense, layer.output.dense)


def pooler_of(backbone: Any) -> nn.Linear | None:
    """The projection of the pooler of `backbone`, if it has one."""
    return getattr(getattr(backbone, "pooler", None), "dense", None)


def tell_heads(layer: Any, heads: int) -> None:
    """Tells the attention of a layer how many heads its projections now have."""
    own = layer.attention.self
    own.num_attention_heads, own.all_head_size = heads, heads * own.attention_head_size
    own.__dict__.pop("forward", None)
    if not heads:
        own.forward = MethodType(_attend_to_nothing, own)


def _attend_to_nothing(self: Any, hidden_BLD: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """The outputs of attention without heads, of shape (B, L, 0), and its weights if there are any, (B, 0, L, L)."""
    batch, length = hidden_BLD.shape[:2]
    eager = self.config._attn_implementation == "eager"
    return hidden_BLD.new_zeros(batch, length, 0), hidden_BLD.new_zeros(batch, 0, length, length) if eager else None
