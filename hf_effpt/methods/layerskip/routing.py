"""One forward pass through gated layers: rows that each layer runs on, their outputs, and the gates' gradients.

B batch, K rows that run, L row length, D hidden size, P gated positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_effpt.core.errors import EffptError
from hf_effpt.core.random import salted, uniform
from hf_effpt.core.shares import part_of

Layer = Callable[..., Tensor]

FLOOR = 0.1  # least probability that a gradient is divided by


class Pass:
    """Decisions of [`Gates`] in one forward pass, and their recurrent state from layer to layer."""

    def __init__(self, gates: Any, positions: int) -> None:
        self.gates, self.positions = gates, positions  # number of gated layers
        self.state: tuple[Tensor, Tensor] | None = None
        self.logits: list[Tensor] = []  # of each gated layer, of shape `(batch_size,)`
        self.open: list[Tensor] = []  # 1.0 where its gate is open
        self.ran = self.rows = 0  # rows that ran, summed over gated layers, and rows of the batch

    def run(self, layer: Layer, position: int, hidden_BLD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Output at `position` of the layer order; `layer` runs on the rows whose gate is open."""
        logits_B, self.state = self.gates.decide(hidden_BLD, self.state)
        open_B, index_K = self._choose(position, logits_B)
        self.logits.append(logits_B)
        self.open.append(open_B)
        self.rows = len(hidden_BLD)
        multiplies = self.gates.estimator == "ste_full" and self.gates.training
        self.ran += self.rows if multiplies else len(index_K)
        if multiplies or len(index_K) == self.rows:
            out_BLD = layer(hidden_BLD, *args, **kwargs)
            kept_BLD = torch.where(open_B.bool()[:, None, None], out_BLD, hidden_BLD) if multiplies else out_BLD
            after_BLD = self._teaching(kept_BLD, out_BLD - hidden_BLD, logits_B)
        elif len(index_K):
            rows_KLD = hidden_BLD.index_select(0, index_K)
            args, kwargs = gathered(index_K, self.rows, args, kwargs)
            out_KLD = layer(rows_KLD, *args, **kwargs)
            out_KLD = self._teaching(out_KLD, out_KLD - rows_KLD, logits_B.index_select(0, index_K))
            after_BLD = hidden_BLD.index_copy(0, index_K, out_KLD)
        else:
            after_BLD = hidden_BLD
        return self.gates.finish(self, after_BLD) if len(self.open) == self.positions else after_BLD

    def _choose(self, position: int, logits_B: Tensor) -> tuple[Tensor, Tensor]:
        """Open gates as 1.0, of shape `(batch_size,)`, and the indices of their rows."""
        gates, rows = self.gates, len(logits_B)
        if gates.forced is not None:
            index_K = torch.arange(part_of(gates.forced, rows), device=logits_B.device)
        elif not gates.training:
            index_K = (logits_B > 0).nonzero()[:, 0]
        elif gates.routing == "topk":
            index_K = logits_B.topk(part_of(gates.target, rows, least=1)).indices.sort().values
        else:
            keys_B = salted(gates.reading.keys_B, gates.seed, gates.step, position)
            open_B = logits_B.detach().sigmoid() > uniform(keys_B)
            # `ste_full` needs no index, and does not wait for the device.
            return open_B.float(), _NONE if gates.estimator == "ste_full" else open_B.nonzero()[:, 0]
        return torch.zeros_like(logits_B).detach().index_fill(0, index_K, 1.0), index_K

    def _teaching(self, out: Tensor, change: Tensor, logits: Tensor) -> Tensor:
        """Returns `out` unchanged in value, with a gradient for the gates' probabilities.

        It is that of a factor on `change`: the gate, 1 where the row runs, with a derivative by the probability of 1
        (straight-through). Reweighted it is 1 / p, so that rows that run stand for those that do not.
        """
        if not self.gates.training or self.gates.estimator == "reinforce":
            return out
        factor = logits.sigmoid()
        if self.gates.estimator == "ste_reweighted":
            factor = factor / factor.detach().clamp(min=FLOOR)
        nothing = (factor - factor.detach()).to(out.dtype)
        return out + nothing[:, None, None] * change.detach()


_NONE = torch.empty(0, dtype=torch.long)


def gathered(index_K: Tensor, rows: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Further arguments of a layer for some rows of a batch: tensors with a value for each row are gathered."""

    def some(value: Any) -> Any:
        if isinstance(value, tuple):  # sine and cosine of the positions
            return tuple(map(some, value))
        has_rows = torch.is_tensor(value) and value.ndim and len(value) == rows
        return value.index_select(0, index_K) if has_rows else value

    return tuple(map(some, args)), {name: some(value) for name, value in kwargs.items()}


def check_inputs(config: Any, kwargs: dict[str, Any]) -> None:
    """Refuses packed sequences, attention masks that are no tensors, and outputs that need all rows."""
    if any(name.startswith("cu_seq") and value is not None for name, value in kwargs.items()):
        raise EffptError(
            "`layerskip` runs layers on some rows of a batch, and `cu_seq_lens…` says that the batch is one long row; "
            "pass rows with `attention_mask`, or with `document_ids` to a model whose `attn_implementation` is `sdpa` "
            "or `eager`."
        )
    if "flex" in config._attn_implementation:
        raise EffptError(
            f"`layerskip` gathers the attention mask row by row, which that of `{config._attn_implementation}` does "
            "not allow; load the model with `attn_implementation` `sdpa`, `eager` or `flash_attention_2`."
        )
    for name in ("output_hidden_states", "output_attentions"):
        if kwargs.get(name, getattr(config, name)):
            raise EffptError(
                f"`{name}` is set, but `layerskip` runs layers on some rows only; leave it out, or call the model in "
                "evaluation mode with `evaluation` `all`."
            )
