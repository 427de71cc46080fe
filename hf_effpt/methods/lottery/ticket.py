"""Tickets of single weights: a mask for each matrix, in a file that other tasks and architectures can use."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import write_atomically
from hf_effpt.core.ledger import events_of
from hf_effpt.core.ticket import VERSION, order_beside


@dataclass(frozen=True)
class SparseTicket:
    """Masks of the single weights of an encoder that are kept.

    Args:
        masks (`dict[str, Tensor]`): for each matrix, such as `layer.0.query`, a boolean tensor of its shape, `True`
            where a weight is kept. Layers are numbered as they run, as in the exported model.
        drawn_by (`dict[str, Any]`, *optional*): settings and events of the run that drew it.
    """

    masks: dict[str, Tensor]
    drawn_by: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> "SparseTicket":
        """Returns the present ticket of a training model with the method `lottery`.

        Raises:
            EffptError: if the model has no such masks.
        """
        masks = getattr(model.backbone, "masks", None)
        if masks is None:
            raise EffptError(
                f"`{type(model).__name__}` has no masks of single weights; take a model with the method `lottery`, "
                "such as `LotteryBertForMaskedLM.from_pretrained(…)` of a training checkpoint."
            )
        settings = model.config.methods.get("lottery") or {}
        drawn_by = {"settings": settings, "events": events_of(model.config, "lottery")}
        kept = masks.exported(model.backbone)
        return cls({name: mask.detach().cpu().clone() for name, mask in kept.items()}, drawn_by)

    @property
    def sparsity(self) -> float:
        """Share of the weights that is not kept."""
        total = sum(mask.numel() for mask in self.masks.values())
        return 1.0 - sum(int(mask.sum()) for mask in self.masks.values()) / total

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the ticket into a safetensors file."""
        path = Path(path)
        metadata = {"format": "pt", "version": str(VERSION), "drawn_by": json.dumps(self.drawn_by)}
        write_atomically(path, lambda new: save_file(self.masks, new, metadata=metadata))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SparseTicket":
        """Reads a ticket that `save` has written.

        Raises:
            EffptError: if there is none, or if the order of its layers is unknown ([`order_beside`]).
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                drawn_by = json.loads(metadata["drawn_by"])
                masks = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise EffptError(
                f"{path} holds no ticket of single weights ({type(error).__name__}: {error}); name a file that "
                "`SparseTicket.save` has written."
            ) from error
        if not masks or any(mask.dtype != torch.bool for mask in masks.values()):
            raise EffptError(f"{path} holds no masks; name a file that `SparseTicket.save` has written.")
        if int(metadata.get("version", 1)) < VERSION and (order := order_beside(path)) is not None:
            masks = {new: masks[name] for name, new in renumbered(masks, order).items()}
        return cls(masks, drawn_by)

    def fitted(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Returns the masks for matrices of these names and shapes; refuses a ticket of an encoder of other layers.

        Either side may lack the pooler, as masked language models do: without a mask it stays whole.
        """
        ours, theirs = ({name for name in names if name != "pooler"} for names in (self.masks, shapes))
        differing = sorted(ours ^ theirs) or [
            f"{name} of {tuple(self.masks[name].shape)} and not {tuple(shapes[name])}"
            for name in shapes
            if name in self.masks and tuple(self.masks[name].shape) != tuple(shapes[name])
        ]
        if differing:
            raise EffptError(
                f"The ticket fits another model: it has {_depth(self.masks)} layers and the model {_depth(shapes)}, "
                f"and they differ in {differing[0]}. Load an encoder of the shape that the ticket was drawn from."
            )
        return {name: mask for name, mask in self.masks.items() if name in shapes}


def renumbered(names: Iterable[str], order: Sequence[int]) -> dict[str, str]:
    """Names of matrices such as `layer.2.query` and `pooler`, each with its name if layers are numbered as they run.

    `order` has the indices of the layers that run; matrices come in that order, without those of other layers.
    """
    place = {f"layer.{index}": place for place, index in enumerate(order)}
    parts = [(name, *name.rpartition(".")[::2]) for name in names]
    running = sorted((each for each in parts if each[1] in place), key=lambda each: place[each[1]])
    found = {name: f"layer.{place[layer]}.{part}" for name, layer, part in running}
    return found | {name: name for name, layer, _ in parts if not layer}


def _depth(names: Mapping[str, Any]) -> int:
    return len({name.split(".")[1] for name in names if name.startswith("layer.")})
