"""BERT's kin: RoBERTa, XLM-RoBERTa, CamemBERT and DistilBERT as training models, to go on from their checkpoints.

Each has the classes `Effpt…Config`, `Effpt…Model`, `Effpt…ForMaskedLM` and `Effpt…ForSequenceClassification`;
`kin.pyi` has their types.
"""

from collections.abc import Callable
from typing import Any

import transformers
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .base import EffptMixin
from .configuration_effpt import WithLedger
from .masked_lm import MaskedLMMixin

NAMES = ("Roberta", "XLMRoberta", "Camembert", "DistilBert")
LEDGER = {"methods": dict, "layer_order": list, "events": list, "layer_widths": list, "kept_heads": dict}


def _roberta_head(self: Any) -> tuple[Callable[[Tensor], Tensor], nn.Linear]:
    head = self.lm_head
    return lambda hidden: head.layer_norm(nn.functional.gelu(head.dense(hidden))), head.decoder


def _distilbert_head(self: Any) -> tuple[Callable[[Tensor], Tensor], nn.Linear]:
    return lambda hidden: self.vocab_layer_norm(self.activation(self.vocab_transform(hidden))), self.vocab_projector


def _stock(self: Any) -> Any:
    """Configuration of the export, at the present depth and full width."""
    settings = self.at_present_depth()
    settings.pop("layer_widths", None)
    return type(self).stock_config(**settings)


def _set_width(self: Any, value: int) -> None:
    self.hidden_dim = value


def _add(name: str, bases: tuple[type, ...], doc: str, **attributes: Any) -> Any:
    """A class, added to this module, where pickle and Auto classes find it."""
    globals()[name] = type(name, bases, {"__module__": __name__, "__doc__": doc, **attributes})
    return globals()[name]


def _add_family(name: str) -> None:
    stock = {part: getattr(transformers, name + part) for part in ("Config", *PARTS)}
    fields = {"__annotations__": {key: kind | None for key, kind in LEDGER.items()}, **dict.fromkeys(LEDGER)}
    own = {"intermediate_size": property(lambda self: self.hidden_dim, _set_width)} if name == "DistilBert" else {}
    config = strict(
        _add(
            f"Effpt{name}Config",
            (WithLedger, stock["Config"]),
            f"Configuration of a {name} that trains with methods, as [`EffptBertConfig`].",
            model_type=f"effpt_{stock['Config'].model_type}",
            stock_config=stock["Config"],
            stock=_stock,
            **fields,
            **own,
        )
    )
    head = _distilbert_head if name == "DistilBert" else _roberta_head
    for part, (mixin, what) in PARTS.items():
        masked = {"_head": head} if part == "ForMaskedLM" else {}
        doc = f"{name} {what}, which trains with methods."
        _add(f"Effpt{name}{part}", (mixin, stock[part]), doc, config_class=config, stock_class=stock[part], **masked)


PARTS: dict[str, tuple[type, str]] = {
    "Model": (EffptMixin, "encoder"),
    "ForMaskedLM": (MaskedLMMixin, "with a masked-language-modelling head"),
    "ForSequenceClassification": (EffptMixin, "with a sequence classification head"),
}
for _name in NAMES:
    _add_family(_name)

__all__ = [f"Effpt{name}{part}" for name in NAMES for part in ("Config", *PARTS)]
