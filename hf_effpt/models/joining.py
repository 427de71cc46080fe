"""Joining of a stock discriminator and the stock generator that it was trained with, so that both stay as they are."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import ElectraForMaskedLM, ElectraForPreTraining

from hf_effpt.core.errors import EffptError

from .configuration_effpt import settings_of
from .configuration_electra import SHARED, EffptElectraConfig

# Settings of a generator that decide what it computes; those besides its size are kept where they differ.
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
)  # fmt: skip
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
OTHERS = (*DROPOUT, "chunk_size_feed_forward", "is_decoder")


def joint_config(
    discriminator: ElectraForPreTraining, generator: ElectraForMaskedLM, settings: Mapping[str, Any]
) -> EffptElectraConfig:
    """Configuration of the joint model of the two, with further `settings` of [`EffptElectraConfig`].

    Raises an `EffptError` for models of other classes, or if sizes of what they share differ.
    """
    for part, kind in ((discriminator, ElectraForPreTraining), (generator, ElectraForMaskedLM)):
        if not isinstance(part, kind):
            raise EffptError(
                f"`from_parts` takes an `ElectraForPreTraining` and an `ElectraForMaskedLM`, in this order, not a "
                f"`{type(part).__name__}`; load the checkpoint with `{kind.__name__}.from_pretrained(…)`."
            )
    if not generator.config.tie_word_embeddings:
        raise EffptError(
            "The generator's output matrix is not its table of word embeddings (`tie_word_embeddings` is False), as "
            "it would become in training; take a generator whose two are one."
        )
    main = settings_of(discriminator.config, "dtype", "tie_word_embeddings")
    own = {name: getattr(generator.config, name) for name in (*SHARED, *SIZES)}
    for name in OTHERS:
        asked = name in settings or (name in DROPOUT and settings.get("generator_dropout") is False)
        if not asked and (value := getattr(generator.config, name)) != getattr(discriminator.config, name):
            own[name] = value
    return EffptElectraConfig(**{**main, "generator": own, **settings})


def load_parts(joint: Any, discriminator: ElectraForPreTraining, generator: ElectraForMaskedLM) -> None:
    """Fills a joint model with the weights of its two parts, which its methods then adopt.

    Raises an `EffptError` that names a tensor if the two do not share it, or the joint model has no place for it.
    """
    main, own = discriminator.state_dict(), generator.state_dict()
    disentangled, words = joint.config.disentangled, joint.words
    shared = {name for name in joint.shared.values() if not (disentangled and name == words)}
    for name in sorted(shared):
        if not _equal(main[name], own[name]):
            raise EffptError(
                f"The generator's `{name}` is not the discriminator's, but they train as one, which would change what "
                "one of the two computes; take the pair that was trained together"
                + (', or keep two tables with `embedding_sharing="disentangled"`.' if name == words else ".")
            )
    if not _equal(own[words], own["generator_lm_head.weight"]):
        raise EffptError(
            "The generator's `generator_lm_head.weight` is not its table of word embeddings, as it would become in "
            "training; take a generator whose two are one."
        )
    _refuse_unknown("discriminator", joint.load_state_dict(main, strict=False).unexpected_keys)
    own = {name: value for name, value in own.items() if name not in shared}
    if not disentangled:
        del own["generator_lm_head.weight"]
    _refuse_unknown("generator", joint.generator.load_state_dict(own, strict=False).unexpected_keys)
    if disentangled:
        with torch.no_grad():
            joint.get_parameter(words).sub_(joint.generator.get_parameter(words))
    joint.after_loading()


def _equal(tensor: Tensor, other: Tensor) -> bool:
    """`True` if two tensors are the same numbers, in the narrower of their types."""
    dtype = min(tensor.dtype, other.dtype, key=lambda kind: kind.itemsize)
    return torch.equal(tensor.to(dtype), other.to(device=tensor.device, dtype=dtype))


def _refuse_unknown(part: str, names: Iterable[str]) -> None:
    for name in names:
        raise EffptError(
            f"The {part} has `{name}`, which an ELECTRA of its class has not, so it would be lost; merge or remove "
            "what was added to the model first."
        )
