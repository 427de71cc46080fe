"""Weights in the folder of a checkpoint, before and while they are loaded."""

import json
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hf_effpt.core.errors import EffptError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
AVERAGE = "average.safetensors"  # of a training checkpoint
DAMAGED = (SafetensorError, OSError, EOFError, pickle.UnpicklingError, RuntimeError)


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Context in which weights are read; raises an `EffptError` if a file of them is missing or damaged."""
    try:
        yield
    except DAMAGED as error:
        raise EffptError(
            f"The weights of `model.from` {source!r} cannot be read ({str(error).strip().splitlines()[0]}): a file is "
            "missing, damaged or not whole; download or save the checkpoint again."
        ) from error


def names_of_weights(folder: str | Path) -> set[str] | None:
    """Names of the tensors in a folder; `None` if they cannot be known without loading them."""
    single, index = Path(folder) / WEIGHTS, Path(folder) / INDEX
    with reading(str(folder)):
        if single.is_file():
            with safe_open(single, "pt") as file:
                return set(file.keys())
        return set(json.loads(index.read_text())["weight_map"]) if index.is_file() else None


def check_head(folder: str | Path, stock_class: Any, config: Any) -> None:
    """Raises an `EffptError` if a folder has no weights of the head of `stock_class`, which would be random."""
    if not Path(folder).is_dir() or (names := names_of_weights(folder)) is None:
        return
    with torch.device("meta"):
        model = stock_class(config)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    own = (name for name, _ in model.named_parameters() if name not in tied)
    head = {name for name in own if not name.startswith(f"{model.base_model_prefix}.")}
    if not head & names:
        check_complete(str(folder), head)


def check_complete(source: str, missing: Iterable[str]) -> None:
    """Raises an `EffptError` if weights of a checkpoint are missing."""
    if missing := sorted(missing):
        raise EffptError(
            f"`model.from` {source!r} lacks {len(missing)} weights ({', '.join(missing[:3])}), which would be random; "
            "take a checkpoint that was saved with its pre-training head."
        )


@torch.no_grad()
def take_average(model: Any, checkpoint: Path) -> dict[str, Any] | None:
    """Gives a training model the average of weights in its checkpoint, which its run would export, for the last ones.

    Returns the settings of the average and the number of its `weights`; `None` if the checkpoint has none.
    """
    if not (checkpoint / AVERAGE).is_file():
        return None
    with safe_open(checkpoint / AVERAGE, framework="pt") as saved:
        facts = json.loads(saved.metadata()["facts"])
        if not (number := facts["number"]):
            return None
        for name, parameter in model.named_parameters():
            mean = saved.get_tensor(f"0/{name}")
            for index in range(1, number):
                mean += saved.get_tensor(f"{index}/{name}")
            parameter.copy_(mean.div_(number))
    return {**facts["settings"], "weights": number}
