"""Strategies that learn from all rows, but weigh or mask their tokens unequally.

B rows of a micro-batch, N tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from hf_effpt.core.processes import add_up
from hf_effpt.core.token_losses import TokenLosses
from hf_effpt.methods.selection.pool import Pool
from hf_effpt.methods.selection.strategy import ResolvedSettings, Strategy

from .losses import EVERYWHERE

FADES = 0.9  # weight of the old value in the running loss of a token
RENEWED = 32  # steps from one update of the masking rates to the next, since reading them waits for the device


class TokenSelection(Strategy):
    """Learns only from the masked tokens whose loss is furthest above a reference model's (Lin et al., 2024, Rho-1).

    They are ranked within a micro-batch, so that results depend on its size. It saves no time: the encoder runs over
    all tokens as before.
    """

    input_kind = "nothing"
    defaults: ClassVar[Mapping[str, Any]] = {"keep": 0.6, **EVERYWHERE}
    modes, settings, picks_rows = ("topk",), ("holdout",), False
    compares, mlm_only = "tokens", True

    def loss_weights(self, losses: TokenLosses, pool: Pool) -> Tensor | None:
        if losses.weight_inputs is None:
            return None
        return highest(losses.losses_N - losses.weight_inputs.flatten(), losses.labelled_N, self.resolved.keep)


def highest(excess_N: Tensor, labelled_N: Tensor, keep: float) -> Tensor:
    """Weights with a mean of one over labelled tokens; zero except for the share `keep` of the highest excess."""
    order_N = torch.where(labelled_N, excess_N, -torch.inf).argsort(descending=True, stable=True)
    rank_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))
    asked = labelled_N.sum()
    kept = (keep * asked.double()).round(decimals=9).round().clamp(min=1)  # as `part_of`, on the device
    return torch.where(rank_N < kept, asked / kept, 0.0).float()


class Reweighting(Strategy):
    """Gives rows of a low loss less weight, within bounds (after LinUpper of Sow et al., 2025).

    The weight rises linearly from `keep`, for a loss one standard deviation below the micro-batch's mean, to 1 for one
    above, and stays there; then all are scaled to a mean of 1.
    """

    input_kind = "nothing"
    defaults: ClassVar[Mapping[str, Any]] = {"keep": 0.5, **EVERYWHERE}
    modes, settings, picks_rows = ("topk",), (), False

    def loss_weights(self, losses: TokenLosses, pool: Pool) -> Tensor | None:
        if not self.on:
            return None
        sums_B, counts_B = losses.by_row()
        return bounded(sums_B / counts_B.clamp(min=1), self.resolved.keep)[losses.row_N]


def bounded(losses_B: Tensor, least: float) -> Tensor:
    """Weights with a mean of 1 that rise with the loss; the lowest is at least `least` times the highest."""
    scaled_B = (losses_B - losses_B.mean()) / losses_B.std(correction=0).clamp(min=1e-6)
    weights_B = least + (1.0 - least) * (0.5 + 0.5 * scaled_B).clamp(0.0, 1.0)
    return weights_B / weights_B.mean()


class AdaptiveMasking(Strategy):
    """Masks tokens more often that the model predicts badly (after Edman and Fraser, 2025).

    The relative rate of a token is between `keep`, if it is always predicted, and 1, if it never is, by exp(-loss) of
    its running mean loss. The number of masked tokens of a row stays the same.
    """

    input_kind = "nothing"
    defaults: ClassVar[Mapping[str, Any]] = {"keep": 0.25, **EVERYWHERE}
    modes, settings, picks_rows = ("topk",), (), False
    mlm_only = True
    departures: ClassVar[str] = (
        "the rate of a token goes by exp(-loss), averaged over the steps in which it was masked, of which the newest "
        "weighs 0.1, and is renewed every 32 steps. Theirs is renewed every 200 steps, with a weight of 0.8 for the "
        "newest, by the share of tokens predicted right (hard), or by the loss between that of the easiest token and "
        "of the hardest (soft). The least rate is `keep` of the highest, theirs 0.005. A row has a fixed number of "
        "masked tokens, theirs are drawn one by one. Their best run masks 40 % at first and 15 % at the end, as "
        "`data.mlm_probability: [0.4, 0.15]` does. Their sub-token embeddings are left out."
    )
    losses: Tensor
    rates: Tensor

    def __init__(self, resolved: ResolvedSettings, config: Any) -> None:
        super().__init__(resolved, config)
        self.register_buffer("losses", torch.full((config.vocab_size,), float("inf"), dtype=torch.float32))
        self.register_buffer("rates", torch.ones(config.vocab_size, dtype=torch.float32))
        self._on_host: tuple[int, Any] | None = None

    def draw(self, seed: int) -> None:
        self.losses.fill_(torch.inf)
        self.rates.fill_(1.0)

    def resize_vocabulary(self, size: int) -> None:
        """Masks further tokens of a longer vocabulary as those that were never predicted."""
        more = (0, size - len(self.losses))
        self.losses, self.rates = pad(self.losses, more, value=torch.inf), pad(self.rates, more, value=1.0)
        self._on_host = None

    def rates_in(self, step: int) -> Any:
        """Masking rates of a step, an array of shape `(vocab_size,)`; updated every `RENEWED` steps."""
        window = step // RENEWED
        if self._on_host is None or self._on_host[0] != window:
            self._on_host = window, self.rates.cpu().numpy().astype("float64")
        return self._on_host[1]

    def on_token_losses(self, pool: Pool, told: Sequence[TokenLosses]) -> None:
        sums_V = torch.zeros(2, len(self.losses), dtype=torch.float64, device=self.losses.device)
        for of in told:
            if of.weight_inputs is None:
                continue
            token_N = of.weight_inputs.flatten().clamp(min=0)
            sums_V[0].index_add_(0, token_N, (of.losses_N * of.labelled_N).double())
            sums_V[1].index_add_(0, token_N, of.labelled_N.double())
        total_V, count_V = add_up(sums_V)
        mean_V = (total_V / count_V.clamp(min=1)).float()
        known_V = torch.where(torch.isinf(self.losses), mean_V, FADES * self.losses + (1.0 - FADES) * mean_V)
        self.losses.copy_(torch.where(count_V > 0, known_V, self.losses))
        if (pool.step + 1) % RENEWED == 0:
            self.rates.copy_(self.resolved.keep + (1.0 - self.resolved.keep) * (1.0 - torch.exp(-self.losses)))
