"""Pooler and heads of a published checkpoint that pre-training does not use: kept, unchanged, for the export."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from .quiet import without_bars

logger = logging.getLogger(__name__)

NAME = "kept_heads"  # submodule of the training model, and key of its configuration: shapes of the tensors by name
# Arguments of `from_pretrained` that say where a checkpoint lies.
FROM_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
EXTRA = "extra_tensors"  # attribute of an exported model


class KeptHeads(nn.Module):
    """Buffers of given shapes, by the names that they have in the checkpoint."""

    in_snapshot = False

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.names = [*shapes]
        for name, shape in shapes.items():
            self.register_buffer(_key(name), torch.zeros(tuple(shape)))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names."""
        return {name: self.get_buffer(_key(name)) for name in self.names}


def keep_heads(model: Any, source: str | Path, names: Sequence[str], **hub: Any) -> None:
    """Adds the tensors `names` of a stock checkpoint, which `model` has no parameters for, to it.

    Those of a training checkpoint are left out. `hub` are arguments of `from_pretrained` that say where it lies.
    """
    saved, _ = PreTrainedConfig.get_config_dict(source, **hub)
    if "methods" in saved:
        return
    found = read_tensors(source, names, **hub)
    if lost := sorted({*names} - {*found}):
        logger.warning("%s: %s are not kept for the export, since their file cannot be read apart", source, lost)
    setattr(model.config, NAME, {name: list(tensor.shape) for name, tensor in found.items()} or None)
    if not found:
        return
    kept = KeptHeads(getattr(model.config, NAME))
    for name, tensor in found.items():
        kept.get_buffer(_key(name)).copy_(tensor)
    setattr(model, NAME, kept.to(next(model.parameters()).device))


def save_stock(stock: PreTrainedModel, folder: Path) -> None:
    """Saves an exported model, with the heads that were kept for it."""
    extra = stock.__dict__.get(EXTRA)
    with without_bars():
        stock.save_pretrained(folder, **({"state_dict": stock.state_dict() | extra} if extra else {}))


def read_tensors(source: str | Path, names: Sequence[str], **hub: Any) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, as far as they are found."""
    find = partial(cached_file, source, _raise_exceptions_for_missing_entries=False, **hub)
    index = find("model.safetensors.index.json")
    if index is not None:
        places = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        files = {places[name] for name in names if name in places}
    else:
        files = {"model.safetensors"}
    found: dict[str, Tensor] = {}
    for file in sorted(files):
        path = find(file)
        if path is not None:
            with safe_open(path, framework="pt") as tensors:
                found |= {name: tensors.get_tensor(name) for name in names if name in tensors.keys()}
    old = None if found else find("pytorch_model.bin")
    if old is not None:
        tensors = torch.load(old, map_location="cpu", weights_only=True)
        found = {name: tensors[name] for name in names if name in tensors}
    return found


def _key(name: str) -> str:
    """Name of a buffer, which must not have dots."""
    return name.replace(".", "/")
