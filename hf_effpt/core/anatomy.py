"""Access to the parts of an encoder shaped like BERT, DistilBERT or ModernBERT; only here are modules named."""

from collections.abc import Sequence
from types import MethodType
from typing import Any, NamedTuple

from torch import Tensor, nn

from .errors import EffptError

# Architectures whose layers normalize their inputs (pre-LN).
PRE_NORM = ("roberta-prelayernorm", "modernbert", "effpt_modernbert", "modern_electra", "modern_mcbert")
ROBERTAS = ("roberta", "xlm-roberta", "camembert")
# Setting of a configuration that names the activation function of the feed-forward layers.
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation")
# Settings of a configuration that are probabilities of dropout in the encoder.
DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "embedding_dropout", "attention_dropout", "mlp_dropout",
    "dropout",
)  # fmt: skip


def layers_of(backbone: nn.Module) -> nn.ModuleList:
    """Transformer layers of `backbone`."""
    modules = backbone._modules  # reading an attribute of a module is a call of Python's
    holder = modules.get("encoder") or modules.get("transformer")
    layers = modules.get("layers") if holder is None else holder._modules.get("layer")
    if not isinstance(layers, nn.ModuleList):
        raise EffptError(
            f"`{type(backbone).__name__}` has no `encoder.layer` or `layers` list; methods act on encoders shaped "
            "like BERT, ELECTRA or ModernBERT. Pass such a backbone (for example `EffptBertModel`)."
        )
    return layers


def replace_layers(backbone: Any, layers: nn.ModuleList) -> None:
    """Replaces the transformer layers of `backbone` by `layers`."""
    layers_of(backbone)
    holder = backbone._modules.get("encoder") or backbone._modules.get("transformer")
    setattr(holder or backbone, "layers" if holder is None else "layer", layers)


def generator_of(backbone: nn.Module) -> Any:
    """Encoder of ELECTRA's generator or MC-BERT's controller beside `backbone`, or `None`."""
    return backbone.__dict__.get("generator_encoder")


def set_generator(backbone: nn.Module, generator: nn.Module) -> None:
    """Stores the generator's encoder for [`generator_of`]; not as a submodule, since `backbone` does not own it."""
    backbone.__dict__["generator_encoder"] = generator


def encoders_of(backbone: nn.Module) -> list[Any]:
    """`backbone` and, if there is one, the generator's encoder beside it."""
    generator = backbone.__dict__.get("generator_encoder")  # written out, since every micro-batch asks
    return [backbone] if generator is None else [backbone, generator]


def embeddings_of(backbone: Any) -> list[nn.Module]:
    """Modules below the first layer of `backbone`: the embeddings and, if there is one, their projection."""
    names = ("embeddings", "embeddings_project")
    return [getattr(backbone, name) for name in names if hasattr(backbone, name)]


def outside_layers(backbone: Any) -> list[nn.Module]:
    """Modules of an encoder besides its layers and pooler: embeddings, and the norm and rotations of ModernBERT."""
    names = ("final_norm", "rotary_emb")
    return [*embeddings_of(backbone), *[getattr(backbone, name) for name in names if hasattr(backbone, name)]]


def position_table_of(backbone: Any) -> nn.Embedding | None:
    """Table of learned positions; `None` for an encoder with rotary ones."""
    return getattr(backbone.embeddings, "position_embeddings", None)


def rotary_base_of(config: Any) -> float | None:
    """Base of the rotary positions of full attention; `None` without such layers or positions."""
    own = (getattr(config, "rope_parameters", None) or {}).get("full_attention")
    return own["rope_theta"] if own and "full_attention" in (layer_types_of(config) or ()) else None


def set_rotary_base(backbone: Any, base: float) -> None:
    """Sets the base of the rotary positions of full attention in the configuration, and in layers that have it."""
    config, rotary, kind = backbone.config, backbone.rotary_emb, "full_attention"
    config.rope_parameters = {**config.rope_parameters, kind: {**config.rope_parameters[kind], "rope_theta": base}}
    if kind not in (layer_types_of(config) or ()):  # as in a generator of one layer, whose window is narrow
        return
    frequencies, _ = rotary.compute_default_rope_parameters(config, layer_type=kind)
    for name in ("inv_freq", "original_inv_freq"):
        getattr(rotary, f"{kind}_{name}").copy_(frequencies)


def embedding_norm_of(backbone: Any) -> nn.Module:
    """LayerNorm that reads the sum of the embeddings of a token."""
    embeddings = backbone.embeddings
    return embeddings.norm if hasattr(embeddings, "norm") else embeddings.LayerNorm


def word_table_of(backbone: Any) -> nn.Embedding:
    """Table of word embeddings."""
    embeddings = backbone.embeddings
    return embeddings.tok_embeddings if hasattr(embeddings, "tok_embeddings") else embeddings.word_embeddings


def word_head_of(model: nn.Module) -> tuple[Any, Any]:
    """Head over the vocabulary of an ELECTRA or ModernBERT: the map to the decoder's inputs, and the decoder."""
    parts = model._modules
    if "generator_lm_head" in parts:
        return parts["generator_predictions"], parts["generator_lm_head"]
    return parts["head"], parts["decoder"]


def activation_of(config: Any) -> str:
    """Name of the activation function of the feed-forward layers."""
    return next(getattr(config, name) for name in ACTIVATIONS if hasattr(config, name))


def is_pre_norm(config: Any) -> bool:
    """`True` if layers of this architecture normalize their inputs (pre-LN); BERT and ELECTRA do not."""
    return getattr(config, "model_type", None) in PRE_NORM


def dropouts_of(config: Any) -> dict[str, float]:
    """Probabilities of dropout in an encoder of this configuration, by the names of their settings."""
    return {name: getattr(config, name) for name in DROPOUTS if hasattr(config, name)}


def first_position(config: Any) -> int:
    """Position of the first token of a row; in RoBERTa and its kin the table begins with rows for padding."""
    return config.pad_token_id + 1 if getattr(config, "model_type", "").removeprefix("effpt_") in ROBERTAS else 0


def longest_row_of(config: Any) -> int:
    """Tokens of the longest row that a model of this configuration has positions for."""
    return config.max_position_embeddings - first_position(config)


def layer_types_of(config: Any) -> list[str] | None:
    """Kind of attention of every allocated layer, `full_attention` or `sliding_attention`; `None` if all are alike."""
    return getattr(config, "layer_types", None)


class Attention(NamedTuple):
    """Projections of a layer's attention. Heads own rows of the inner ones and columns of `output`.

    `inner` are query, key and value: three modules, or one with the rows of all three, one after the other.
    """

    inner: tuple[nn.Linear, ...]
    output: nn.Linear
    head_size: int

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.output.in_features // self.head_size

    @property
    def blocks(self) -> int:
        """Number of projections in each of the inner modules."""
        return 3 // len(self.inner)


class FeedForward(NamedTuple):
    """Feed-forward block of a layer. Neurons own rows of `up` and columns of `down`.

    In a gated one (GeGLU) `up` has the rows of the neurons' inputs, then those of their gates.
    """

    up: nn.Linear
    down: nn.Linear

    @property
    def neurons(self) -> int:
        """Number of neurons."""
        return self.down.in_features

    @property
    def blocks(self) -> int:
        """Number of rows of `up` that a neuron owns."""
        return self.up.out_features // self.down.in_features


def attention_of(layer: Any) -> Attention:
    """Projections of a layer's attention."""
    if hasattr(layer, "attn"):
        return Attention((layer.attn.Wqkv,), layer.attn.Wo, layer.attn.head_dim)
    if hasattr(layer, "ffn"):
        own = layer.attention
        return Attention((own.q_lin, own.k_lin, own.v_lin), own.out_lin, own.attention_head_size)
    own = layer.attention.self
    return Attention((own.query, own.key, own.value), layer.attention.output.dense, own.attention_head_size)


def feed_forward_of(layer: Any) -> FeedForward:
    """Projections of a layer's feed-forward block."""
    if hasattr(layer, "mlp"):
        return FeedForward(layer.mlp.Wi, layer.mlp.Wo)
    if hasattr(layer, "ffn"):
        return FeedForward(layer.ffn.lin1, layer.ffn.lin2)
    return FeedForward(layer.intermediate.dense, layer.output.dense)


def pooler_of(backbone: Any) -> nn.Linear | None:
    """Projection of the pooler of `backbone`, or `None`."""
    return getattr(getattr(backbone, "pooler", None), "dense", None)


def tell_heads(layer: Any, heads: int) -> None:
    """Sets the number of heads of a layer's attention, after its projections were resized."""
    if hasattr(layer, "attn"):  # it derives the number from the shape of its projection
        own, without = layer.attn, _project_nothing
    elif hasattr(layer, "ffn"):  # so does DistilBERT's
        own, without = layer.attention, _project_nothing
    else:
        own, without = layer.attention.self, _attend_to_nothing
        own.num_attention_heads, own.all_head_size = heads, heads * own.attention_head_size
    own.__dict__.pop("forward", None)
    if not heads:
        own.forward = MethodType(without, own)


def _attend_to_nothing(self: Any, hidden_BLD: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Outputs of attention without heads, of shape (B, L, 0), and weights of shape (B, 0, L, L) if eager."""
    batch, length = hidden_BLD.shape[:2]
    eager = self.config._attn_implementation == "eager"
    return hidden_BLD.new_zeros(batch, length, 0), hidden_BLD.new_zeros(batch, 0, length, length) if eager else None


def _project_nothing(self: Any, hidden_BLD: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Outputs of attention without heads that has the output projection inside it, of shape (B, L, D), and weights."""
    mixed, weights = _attend_to_nothing(self, hidden_BLD)
    return self.out_drop(self.Wo(mixed)) if hasattr(self, "Wo") else self.out_lin(mixed), weights


def first_stays(layers: nn.ModuleList) -> bool:
    """`True` if only the first of these layers, as they are stored, can be the first that runs."""
    return _lacks_norm(layers._modules["0"])


def check_first(layers: nn.ModuleList, order: Sequence[int]) -> None:
    """Raises an `EffptError` if layers in this order make no stock model.

    The first layer of a ModernBERT reads the embeddings, which are normalized, and has no norm of its own; every
    other has one. So it stays the first.
    """
    bare = [index for index, layer in enumerate(layers._modules.values()) if _lacks_norm(layer)]
    if bare and order and order[0] not in bare:
        raise EffptError(
            f"Layer {order[0]} cannot be the first of a ModernBERT: it normalizes its input, and the stock model's "
            f"first layer does not. Keep layer {bare[0]} before it."
        )


def _lacks_norm(layer: Any) -> bool:
    return isinstance(getattr(layer, "attn_norm", None), nn.Identity)
