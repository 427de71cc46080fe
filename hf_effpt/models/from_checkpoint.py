"""Training models that go on from a published checkpoint: continued pre-training."""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, ElectraForMaskedLM, ElectraForPreTraining

from hf_effpt.core.anatomy import dropouts_of, first_position, layer_types_of, longest_row_of, position_table_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import build_methods

from . import kin
from .build import MASKED_LMS, word_predictors
from .checkpoint_weights import check_complete, check_head, reading
from .configuration_effpt import settings_of
from .electra import ElectraForJointPreTraining
from .kin import NAMES
from .resizing import refuse_snapshot, resize_parts

# Training class of each architecture with a head over the vocabulary, by the `model_type` of its checkpoints.
TRAINABLE: dict[str, Any] = {
    **{cls.config_class.stock_type(): cls for cls in MASKED_LMS.values()},
    "pruned_bert": MASKED_LMS["bert"],
    "pruned_modernbert": MASKED_LMS["modernbert"],
    **{getattr(kin, f"Effpt{name}Config").stock_type(): getattr(kin, f"Effpt{name}ForMaskedLM") for name in NAMES},
}


@lru_cache  # a recipe is checked several times, and a Hub may be slow
def _on_hub(name: str) -> Any:
    return AutoConfig.from_pretrained(name)


def published_config(source: str) -> Any:
    """The configuration of a checkpoint, a folder or an id on the Hub.

    Raises an `EffptError` if there is none, it cannot be reached, or it is no architecture that can be trained here.
    """
    if (os.sep in source.rstrip(os.sep) and source.startswith((os.sep, ".", "~"))) and not Path(source).is_dir():
        raise EffptError(f"`model.from` is {source!r}, and there is no such folder; name one, or an id on the Hub.")
    try:
        config = AutoConfig.from_pretrained(source) if Path(source).is_dir() else _on_hub(source)
    except (OSError, ValueError, KeyError) as error:
        raise EffptError(
            f"`model.from` {source!r} cannot be read ({str(error).strip().splitlines()[0]}); give the folder of a "
            "stock checkpoint, or an id on the Hub that can be reached from here."
        ) from error
    kind = config.model_type
    if kind.startswith("effpt_") or hasattr(config, "layer_order"):
        raise EffptError(
            f"`model.from` {source!r} is a training checkpoint; go on with its run (`--resume`), or export it first "
            f"(`effpt export {source} --out folder/`) and name that."
        )
    if kind not in (*TRAINABLE, "electra"):
        raise EffptError(
            f"`model.from` {source!r} is of the architecture `{kind}`; those that can be trained further are "
            f"{', '.join([*TRAINABLE, 'electra'])}."
        )
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise EffptError(
            f"`model.from` {source!r} has `position_embedding_type` `{positions}`, which `transformers` computes no "
            "longer: its weights would be read as those of absolute positions; take a checkpoint with those."
        )
    return copy.deepcopy(config)


def continue_from(
    source: str,
    objective: str = "mlm",
    *,
    methods: dict[str, dict] | None = None,
    dropout: float = 0.0,
    layers: int | None = None,
    positions: int | None = None,
    **settings: Any,
) -> Any:
    """A training model with the weights of a published checkpoint.

    Its pooler and heads that pre-training does not use are kept, unchanged, for the export.

    Args:
        source (`str`): folder or Hub id of a stock checkpoint with its pre-training head; for ELECTRA that of the
            discriminator, whose generator is in its subfolder `generator`, or has the same id with `generator`.
        objective (`str`, *optional*, defaults to `"mlm"`): `mlm`, or `electra` for a pair.
        methods (`dict[str, dict]`, *optional*): settings of the methods by name.
        dropout (`float`, *optional*, defaults to 0.0): of hidden states and attention.
        layers (`int`, *optional*): number of layers, if `stacking` grows the model from the checkpoint's number.
        positions (`int`, *optional*): longest row, if the table of positions is to be extended.
        **settings: further settings of the configuration, such as `attn_implementation`.

    Raises:
        EffptError: for an architecture or head that cannot be trained with the objective, weights that the
            checkpoint lacks, or settings that do not suit it.
    """
    source = _expanded(source)
    config = _checked(source, objective, layers)
    own = dict.fromkeys(dropouts_of(config), dropout)
    if config.model_type == "electra":
        model = _pair(source, methods=methods, **own, **settings)
    else:
        model = _masked_lm(source, config, methods or {}, layers, own | settings)
    if positions is not None:
        extend_positions(model, positions)
    return model


def config_from(
    source: str,
    objective: str = "mlm",
    *,
    dropout: float = 0.0,
    layers: int | None = None,
    positions: int | None = None,
    **settings: Any,
) -> Any:
    """The configuration of what [`continue_from`] loads, whose arguments these are, before any weights are loaded."""
    source = _expanded(source)
    stock = _checked(source, objective, layers)
    is_pair = stock.model_type == "electra"
    check_head(source, ElectraForPreTraining if is_pair else _stock_class_of(stock), stock)
    own = settings_of(stock) | dict.fromkeys(dropouts_of(stock), dropout)
    if positions is not None:
        check_positions(stock, positions)
        own["max_position_embeddings"] = positions + first_position(stock)
    if layers is not None and layers != stock.num_hidden_layers:
        own |= _grown(stock, settings.get("methods") or {}, layers)
        own["layer_order"] = None
    kind = ElectraForJointPreTraining if is_pair else TRAINABLE[stock.model_type]
    return kind.config_class(**{**own, **settings})


def _stock_class_of(config: Any) -> Any:
    """The class of a checkpoint with a head over the vocabulary."""
    kind = TRAINABLE[config.model_type]
    return kind.narrow_class if getattr(config, "layer_widths", None) is not None else kind.stock_class


def _expanded(source: str) -> str:
    """The name of a checkpoint with `~` as the user's folder."""
    return str(Path(source).expanduser()) if source.startswith("~") else source


def _checked(source: str, objective: str, layers: int | None) -> Any:
    """The configuration of a checkpoint that can go on with this objective."""
    config = published_config(source)
    if (config.model_type == "electra") != (objective == "electra"):
        raise EffptError(
            f"`model.from` {source!r} is a `{config.model_type}`, which cannot go on with the objective "
            f"`{objective}`; use {'electra' if config.model_type == 'electra' else 'mlm'}."
        )
    if config.model_type == "electra" and layers not in (None, config.num_hidden_layers):
        raise EffptError(
            f"`model.num_hidden_layers` is {layers}, and the pair {source!r} has {config.num_hidden_layers}: an "
            "ELECTRA goes on at its depth; leave it out."
        )
    return config


def check_positions(config: Any, positions: int) -> int:
    """The number of positions of a configuration; raises an `EffptError` if `positions` are fewer."""
    now = longest_row_of(config)
    if positions < now:
        raise EffptError(
            f"`model.max_position_embeddings` is {positions}, fewer than the {now} of the checkpoint; leave it out, "
            "and set `data.sequence_length` to train on shorter rows."
        )
    return now


def _pair(source: str, attn_implementation: str = "sdpa", **settings: Any) -> Any:
    beside = Path(source) / "generator"
    other = str(beside) if Path(source).is_dir() else re.sub("discriminator", "generator", source)
    if other == source or (Path(source).is_dir() and not beside.is_dir()):
        raise EffptError(
            f"`model.from` {source!r} has no generator; ELECTRA goes on from a pair: a folder with the discriminator "
            "and a subfolder `generator`, or a Hub id with `discriminator` in its name."
        )
    parts = []
    for name, kind in ((source, ElectraForPreTraining), (other, ElectraForMaskedLM)):
        with reading(name):
            part, report = kind.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
        check_complete(name, report["missing_keys"])
        parts.append(part)
    model = ElectraForJointPreTraining.from_parts(*parts, **settings)
    model.set_attn_implementation(attn_implementation)
    return model


def _masked_lm(source: str, config: Any, methods: dict, layers: int | None, settings: dict[str, Any]) -> Any:
    training_class, own = TRAINABLE[config.model_type], config.num_hidden_layers
    if layers is not None and layers != own:
        settings = settings | _grown(config, methods, layers)
    with reading(source):
        model, report = training_class.from_pretrained(
            source, methods=methods, output_loading_info=True, dtype=torch.float32, **settings
        )
    allocated = layers or own
    grown = tuple(f".{index}." for index in range(own, allocated))
    with torch.device("meta"):
        known = training_class.stock_class(model.config.stock()).state_dict().keys()
    missing = [name for name in report["missing_keys"] if name in known and not any(each in name for each in grown)]
    check_complete(source, missing)
    return model


def _grown(config: Any, methods: dict, layers: int) -> dict[str, Any]:
    """Settings of a model that begins with the layers of a shallower checkpoint and grows."""
    own = config.num_hidden_layers
    if getattr(config, "layer_widths", None) is not None:
        raise EffptError(
            f"`model.num_hidden_layers` is {layers}, and the {own} layers of the checkpoint are cut to widths of "
            "their own (`layer_widths`), of which a growth would make copies in other places; leave it out, or grow "
            "the stock model of the full width (`effpt export RUN --dense`)."
        )
    types = layer_types_of(config)
    more = {"layer_types": [types[index % own] for index in range(layers)]} if types else {}
    found = {method.name: method for method in build_methods(methods)}
    begins = found["stacking"].depths(layers)[0] if "stacking" in found and layers > own else None
    if begins != own:
        raise EffptError(
            f"`model.num_hidden_layers` is {layers}, and the checkpoint has {own}; leave it out, or grow the model "
            f"from it with `stacking: {{depth: {own}}}`"
            + (f", not {begins}." if begins and layers > own else "; fewer layers are had by `compress`.")
        )
    return {"num_hidden_layers": layers, "layer_order": list(range(own)), **more}


@torch.no_grad()
def extend_positions(model: Any, positions: int) -> None:
    """Lengthens the table of positions to `positions`, in place, by repeating it (Beltagy et al., 2020, Longformer).

    Rotary positions need no table, so that only the configuration changes. Raises an `EffptError` for fewer positions
    than there are.
    """
    config, encoder = model.config, model.backbone
    first = first_position(config)
    now = check_positions(config, positions)
    if positions == now:
        return
    table = position_table_of(encoder)
    if table is not None:
        refuse_snapshot(model, "the number of positions")
    config.max_position_embeddings = positions + first
    if table is None:
        return
    old = table.weight
    repeats = -(-positions // now)
    grown = torch.cat([old[:first], old[first:].repeat(repeats, 1)[:positions]])
    table.weight, table.num_embeddings = nn.Parameter(grown, old.requires_grad), len(grown)
    embeddings = encoder.embeddings
    for name, fill in (
        ("position_ids", torch.arange(len(grown))[None]),
        ("token_type_ids", torch.zeros(1, len(grown))),
    ):
        if (buffer := embeddings._buffers.get(name)) is not None:
            embeddings.register_buffer(name, fill.to(buffer), persistent=False)
    generator = getattr(model, "generator", None)
    if generator is not None:
        generator.config.max_position_embeddings = positions + first
        for name in ("position_ids", "token_type_ids"):
            if name in embeddings._buffers:
                generator.base_model.embeddings.register_buffer(name, embeddings._buffers[name], persistent=False)
        model.tie_weights()
    resize_parts(model)


@torch.no_grad()
def add_rows(model: Any, pieces: Mapping[int, Sequence[int]], size: int) -> None:
    """Enlarges the vocabulary of a training model to `size`; new tokens begin as the mean of their pieces.

    Their biases are the least of those of the pieces. `pieces` are the ids, in the old vocabulary, that the text of
    each new token was cut into.
    """
    known = model.config.vocab_size
    model.resize_token_embeddings(size, mean_resizing=False)
    parts = word_predictors(model)
    heads = [head for part in parts if (head := part.get_output_embeddings()) is not None]
    tables = [part.get_input_embeddings().weight for part in parts] + [head.weight for head in heads]
    for table in {id(table): table for table in tables}.values():
        table[known:] = 0.0  # rows that no token has
        for index, old in pieces.items():
            table[index] = table[list(old)].mean(dim=0)
    for bias in [head.bias for head in heads if head.bias is not None]:
        bias[known:] = bias[:known].min()
        for index, old in pieces.items():
            bias[index] = bias[list(old)].min()  # a word is rarer than each of its pieces


def check_fits(tokenizer: Any, name: str, config: Any, source: str) -> None:
    """Raises an `EffptError` if the vocabulary of a tokenizer cannot be that of the checkpoint `source`."""
    most, pad = config.vocab_size, getattr(config, "pad_token_id", None)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise EffptError(
            f"{name!r} has no tokenizer files: what is loaded has {len(tokenizer)} tokens, all special; put the "
            "checkpoint's tokenizer beside it, or name its folder in `data.tokenizer`."
        )
    own = AutoTokenizer.from_pretrained(source).get_vocab() if name != source else None
    if len(tokenizer) > most or (pad is not None and tokenizer.pad_token_id != pad):
        raise EffptError(
            f"The tokenizer of {name!r} has {len(tokenizer):,} tokens and pads with {tokenizer.pad_token_id}, but the "
            f"checkpoint {source!r} has {most:,} rows and pads with {pad}; use the tokenizer that it was trained with."
        )
    if own is not None and own != tokenizer.get_vocab():
        raise EffptError(
            f"`data.tokenizer` {name!r} has other tokens than that of the checkpoint {source!r}, whose embeddings "
            "would be of other words; leave it out, or add words with `data.add_tokens`."
        )
