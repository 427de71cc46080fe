"""A ticket: the attention heads and feed-forward neurons to keep in every layer."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import EffptError
from .files import finite, read_json, write_atomically

FILE = "ticket.json"  # in the folder of a run that drew a ticket
VERSION = 2  # of ticket files: before, layers were in the order in which they are stored, and not in running order
RUN = "run.json"  # record of a run, beside its ticket
ALIGNED = 64  # widths are rounded to multiples of it, so that a GPU multiplies whole tiles
LEAST = 8  # the same, for layers of fewer than `NARROW` neurons
NARROW = 512


@dataclass(frozen=True)
class Ticket:
    """A subnetwork of whole heads and neurons.

    Args:
        heads, neurons (`tuple[tuple[int, ...], ...]`): indices kept in each layer that runs, in rising order; layers
            are in running order, as in the exported model.
        shape (`tuple[tuple[int, int], ...]`): heads and neurons of each of these layers it was drawn from.
        drawn_by (`dict[str, Any]`, *optional*): a record of the draw.
    """

    heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]
    shape: tuple[tuple[int, int], ...]
    drawn_by: dict[str, Any] = field(default_factory=dict)

    @property
    def widths(self) -> list[list[int]]:
        """Number of heads and of neurons that each layer keeps."""
        return [[len(heads), len(neurons)] for heads, neurons in zip(self.heads, self.neurons, strict=True)]

    def check(self, widths: Sequence[Sequence[int]]) -> None:
        """Raises an `EffptError` unless it fits layers of these widths, first to last, and keeps neurons in each."""
        for kind, kept in enumerate((self.heads, self.neurons)):
            what, least = (("heads", 0), ("neurons", 1))[kind]
            wrong = [
                layer
                for layer, (indices, whole) in enumerate(zip(kept, self.shape, strict=False))
                if list(indices) != sorted({*indices} & {*range(whole[kind])}) or len(indices) < least
            ]
            if wrong or len(kept) != len(self.shape):
                of = f"of layer {wrong[0]} are {list(kept[wrong[0]])[:8]}" if wrong else f"are of {len(kept)} layers"
                raise EffptError(
                    f"The ticket's {what} {of}, but for each of {len(self.shape)} layers it has to name different "
                    f"ones that are there, rising, and at least {least}; draw the ticket anew."
                )
        if [list(layer) for layer in self.shape] != [list(layer) for layer in widths]:
            raise EffptError(
                f"The ticket was drawn from layers of {_words(self.shape)}, and the model has {_words(widths)}; draw "
                "one with a model of this shape, or train the shape it was drawn from."
            )

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the ticket into a JSON file."""
        path = Path(path)
        content = {"version": VERSION, "heads": self.heads, "neurons": self.neurons, "shape": self.shape}
        write_atomically(path, json.dumps(finite(content | {"drawn_by": self.drawn_by}), indent=1, allow_nan=False))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Ticket":
        """Reads a ticket that `save` has written.

        Raises an `EffptError` if the file holds none, or if the order of its layers is unknown ([`order_beside`]).
        """
        try:
            read = read_json(Path(path))
            kinds = ("heads", "neurons")
            parts: dict[str, Any] = {kind: [tuple(map(int, layer)) for layer in read[kind]] for kind in kinds}
            parts["shape"] = [(int(heads), int(neurons)) for heads, neurons in read["shape"]]
            if read.get("version", 1) < VERSION and (order := order_beside(path)) is not None:
                parts = {name: [layers[index] for index in order] for name, layers in parts.items()}
        except EffptError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise EffptError(
                f"{path} holds no ticket ({error}); name a file that `Ticket.save` has written."
            ) from error
        return cls(**{name: tuple(layers) for name, layers in parts.items()}, drawn_by=read.get("drawn_by") or {})


def order_beside(path: str | os.PathLike) -> list[int] | None:
    """Order of the layers of the run whose `run.json` lies beside a ticket of the first version; `None` if as stored.

    Such a ticket has the layers in the order in which they are stored. Raises an `EffptError` without that record.
    """
    beside = Path(path).with_name(RUN)
    try:
        return read_json(beside)["ledger"].get("layer_order")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise EffptError(
            f"{path} was written by an older version, which numbered layers as they are stored and not as they run: "
            f"how they run is in the {RUN} of its run, and there is none beside it. Put it there, or save the ticket "
            "again from a checkpoint of its run."
        ) from error


def _words(widths: Sequence[Sequence[int]]) -> str:
    """Heads and neurons of layers, for messages."""
    kinds = sorted({tuple(layer) for layer in widths})
    return f"{len(widths)} times " + " or ".join(f"{heads} heads and {neurons} neurons" for heads, neurons in kinds)


def draw(head_scores: Sequence[Tensor], neuron_scores: Sequence[Tensor], heads: int, neurons: int) -> Ticket:
    """Ticket of the heads and neurons with the highest scores; among equals, the first.

    Scores of each layer are of shape `(heads,)` and `(neurons,)`. `heads` are kept in each layer, and `neurons` in all
    layers together: these are ranked over all layers, and each layer's number is then rounded to a multiple of 64 (8
    in narrow layers, 1 if the layer's width is no multiple), with the total kept.
    """
    sizes = [len(scores) for scores in neuron_scores]
    ranked = _first(torch.cat([scores.flatten() for scores in neuron_scores]), neurons)
    layer_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    wanted = torch.bincount(layer_of[ranked], minlength=len(sizes)).tolist()
    return draw_widths(head_scores, neuron_scores, [(heads, kept) for kept in round_widths(wanted, sizes)])


def draw_widths(
    head_scores: Sequence[Tensor], neuron_scores: Sequence[Tensor], widths: Sequence[Sequence[int]]
) -> Ticket:
    """Ticket of the heads and neurons with the highest scores in their layer, as many as `widths` gives each layer.

    Scores of each layer are of shape `(heads,)` and `(neurons,)`.
    """
    kept = [
        (_first(of_heads, heads), _first(of_neurons, neurons))
        for of_heads, of_neurons, (heads, neurons) in zip(head_scores, neuron_scores, widths, strict=True)
    ]
    return Ticket(
        heads=tuple(tuple(sorted(heads.tolist())) for heads, _ in kept),
        neurons=tuple(tuple(sorted(neurons.tolist())) for _, neurons in kept),
        shape=tuple((len(of_heads), len(of)) for of_heads, of in zip(head_scores, neuron_scores, strict=True)),
    )


def _first(scores: Tensor, number: int) -> Tensor:
    """Indices of the `number` highest scores; among equals, the first."""
    return scores.detach().float().cpu().argsort(descending=True, stable=True)[:number]


def unit_of(neurons: int) -> int:
    """Multiple to which the kept neurons of a layer with `neurons` neurons are rounded."""
    unit = ALIGNED if neurons >= NARROW else LEAST
    return unit if neurons % unit == 0 else 1


def round_widths(wanted: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Rounds `wanted` neurons of layers of `sizes` neurons to multiples of a unit, at least one each.

    The largest remainder decides; the total is the wanted one, rounded.
    """
    unit = max(1, min(unit_of(size) for size in sizes))
    most = [size // unit for size in sizes]
    exact = [number / unit for number in wanted]
    total = max(len(sizes), min(sum(most), round(sum(wanted) / unit)))
    units = [min(limit, max(1, int(number))) for number, limit in zip(exact, most, strict=True)]
    while sum(units) != total:
        step = 1 if sum(units) < total else -1
        # The layer with the largest error in the other direction that can still change.
        movable = [i for i, count in enumerate(units) if (count < most[i] if step > 0 else count > 1)]
        units[max(movable, key=lambda i: (step * (exact[i] - units[i]), -i))] += step
    return [count * unit for count in units]
