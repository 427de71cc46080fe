"""Scores by the uncertainty of a model's predictions, in one forward pass or in several under dropout.

B batch, M positions a row, D hidden size, V classes, P numbers in a row of hidden states, Q quarters of them. A single
logit is that of class yes beside a class no with the logit 0.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_effpt.core.head_inputs import HeadInputs
from hf_effpt.core.random import mix, salted
from hf_effpt.methods.selection.strategy import BY_SCORE, InputKind, Scorer, Strategy

_DROPOUT = 0xD20B  # salt of these draws


def exact(values: Tensor) -> Tensor:
    """Values in fp32, or in fp64 if they already are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def mean_asked(values_BM: Tensor, labelled_BM: Tensor) -> Tensor:
    """Mean of each row over its labelled positions, of shape `(batch_size,)`; 0 for a row without any."""
    return values_BM.where(labelled_BM, 0.0).sum(dim=1) / labelled_BM.sum(dim=1).clamp(min=1)


def entropy(logits_BMV: Tensor) -> Tensor:
    """Entropy of the classes in nats, log(sum exp z) - sum p z, of shape `(batch_size, positions)`."""
    logits_BMV = _both(logits_BMV)
    products_BMV = logits_BMV.softmax(dim=-1).mul_(logits_BMV)
    # The product of the logit -inf and the probability 0 of an excluded class counts as 0.
    return (logits_BMV.logsumexp(dim=-1) - products_BMV.nansum(dim=-1)).clamp(min=0.0)


def variation_ratio(logits_BMV: Tensor) -> Tensor:
    """One minus the highest probability, of shape `(batch_size, positions)`."""
    logits_BMV = _both(logits_BMV)
    return 1.0 - (logits_BMV.amax(dim=-1) - logits_BMV.logsumexp(dim=-1)).exp()


def margin(logits_BMV: Tensor) -> Tensor:
    """Second highest minus highest probability, of shape `(batch_size, positions)`."""
    logits_BMV = _both(logits_BMV)
    best_BM2 = (logits_BMV.topk(2, dim=-1).values - logits_BMV.logsumexp(dim=-1, keepdim=True)).exp()
    return best_BM2[..., 1] - best_BM2[..., 0]


def max_entropy(draws: Iterable[Tensor]) -> Tensor:
    """Entropy in nats of the mean of the draws, probabilities of shape `(..., classes)` (Gal et al., 2017)."""
    return _accumulated(draws, entropies=False)[0]


def bald(draws: Iterable[Tensor]) -> Tensor:
    """Entropy of the mean minus mean entropy of the draws, a measure of their disagreement (Houlsby et al., 2011)."""
    of_mean, mean = _accumulated(draws, entropies=True)
    return (of_mean - mean).clamp(min=0.0)


def _accumulated(draws: Iterable[Tensor], entropies: bool) -> tuple[Tensor, Tensor]:
    """Entropy of the mean and, if `entropies`, mean entropy; keeps sums only, not the draws."""
    number, total, own = 0, torch.empty(0), torch.empty(0)
    for p in draws:
        total = total.add_(p) if number else p.clone()
        if entropies:
            own = own.add_(_entropy_of(p)) if number else _entropy_of(p)
        number += 1
        del p  # else it would be in memory beside the next
    return _entropy_of(total.div_(number)), own.div_(number)


def _entropy_of(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(dim=-1)


def _both(logits_BMV: Tensor) -> Tensor:
    """Logits of at least two classes, in full precision."""
    logits_BMV = exact(logits_BMV)
    if logits_BMV.shape[-1] > 1:
        return logits_BMV
    return torch.cat([torch.zeros_like(logits_BMV), logits_BMV], dim=-1)


def _probabilities(reading: HeadInputs) -> Tensor:
    return _both(reading.head(reading.hidden_BMD)[1]).softmax(dim=-1)


class LogitStrategy(Strategy):
    """Strategy by the logits of a model at all labelled positions of a row, or at `num_score_positions` of them."""

    input_kind: ClassVar[InputKind] = "logits"
    scorers: ClassVar[tuple[Scorer, ...]] = ("full", "first_layer", "generator")
    settings = (*BY_SCORE, "num_score_positions")


_UNCERTAINTIES = {"entropy": entropy, "variation_ratio": variation_ratio, "margin": margin}
_COMMITTEES = {"max_entropy": max_entropy, "bald": bald}


class LeastConfidence(LogitStrategy):
    """Prefers rows of whose labelled positions the model is least sure on average (Braasch, section 4.2)."""

    rules: ClassVar[tuple[str, ...]] = tuple(_UNCERTAINTIES)
    defaults: ClassVar[Mapping[str, Any]] = {"outliers": 0.02}  # noise, rare names and numbers stay uncertain

    @torch.no_grad()
    def rate(self, reading: HeadInputs) -> Tensor:
        _, logits_BMV = reading.head(reading.hidden_BMD)
        return mean_asked(_UNCERTAINTIES[self.rule](logits_BMV), reading.labelled_BM)


class DeepBayesian(LogitStrategy):
    """Prefers rows of which the model is unsure, or disagrees with itself, under draws of dropout (Gal et al., 2017).

    Each draw is a pure function of `salts` and of the row's key, wherever in a batch the row is.
    """

    rules: ClassVar[tuple[str, ...]] = tuple(_COMMITTEES)
    settings = (*LogitStrategy.settings, "passes", "dropout", "level")
    keys_B: Tensor  # int64 keys of the rows of a batch; set before it is rated

    def rate(self, reading: HeadInputs) -> Tensor:
        return self.rate_draws(self.draws(reading))

    @torch.no_grad()
    def rate_draws(self, draws: Iterable[HeadInputs]) -> Tensor:
        """Scores of a batch from it under each draw of dropout, read one by one and not kept."""
        rest = iter(draws)
        first = next(rest)
        probabilities = (_probabilities(reading) for reading in chain([first], rest))
        return mean_asked(_COMMITTEES[self.rule](probabilities), first.labelled_BM)

    def draws(self, reading: HeadInputs) -> Iterator[HeadInputs]:
        """Yields the batch under each draw of dropout on the encoder's outputs, so that only the head runs again."""
        hidden_BMD = reading.hidden_BMD
        size = hidden_BMD.shape[1] * hidden_BMD.shape[2]
        places_Q = torch.arange((size + 3) // 4, device=hidden_BMD.device)
        # Sixteen bits decide if a number is dropped, so that four numbers share a hash.
        dropped = min(max(round(self.resolved.dropout * 2**16), 1), 2**16 - 1)
        for number in range(self.resolved.passes):
            keys_B = salted(self.keys_B, *self.salts, _DROPOUT, number)
            bits_BP = mix(keys_B[:, None] + places_Q).view(torch.int16)[:, :size]
            kept_BP = bits_BP >= dropped - 2**15
            kept_BMD = hidden_BMD.where(kept_BP.view_as(hidden_BMD), 0.0) / (1.0 - dropped / 2**16)
            yield replace(reading, hidden_BMD=kept_BMD)
