"""Scores by how unsure a model is of its answers, in one reading or in several under dropout.

B batch, M positions a row, D hidden size, V answers, P places in a row of hidden states, Q quarters of them. Of one
answer, the logit of yes, the other is no, whose logit is 0.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_effpt.core.head_inputs import HeadInputs
from hf_effpt.core.random import mix, salted
from hf_effpt.methods.selection.strategy import BY_SCORE, InputKind, ResolvedSettings, Scorer, Strategy

_DROPOUT = 0xD20B  # sets these draws apart from others of the same seed and step


def exact(values: Tensor) -> Tensor:
    """The values in fp32, or in fp64 if they are so already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def mean_asked(values_BM: Tensor, labelled_BM: Tensor) -> Tensor:
    """The mean of each row where an answer is asked for, of shape `(batch_size,)`; 0 for a row without any."""
    return values_BM.where(labelled_BM, 0.0).sum(dim=1) / labelled_BM.sum(dim=1).clamp(min=1)


def entropy(logits_BMV: Tensor) -> Tensor:
    """The entropy of the answers in nats, log(sum exp z) - sum p z, of shape `(batch_size, positions)`."""
    logits_BMV = _both(logits_BMV)
    products_BMV = logits_BMV.softmax(dim=-1).mul_(logits_BMV)
    # An excluded answer has the logit -inf and the probability 0, and the product of the two counts as nothing.
    return (logits_BMV.logsumexp(dim=-1) - products_BMV.nansum(dim=-1)).clamp(min=0.0)


def variation_ratio(logits_BMV: Tensor) -> Tensor:
    """One minus the greatest probability, of shape `(batch_size, positions)`."""
    logits_BMV = _both(logits_BMV)
    return 1.0 - (logits_BMV.amax(dim=-1) - logits_BMV.logsumexp(dim=-1)).exp()


def margin(logits_BMV: Tensor) -> Tensor:
    """The second greatest probability minus the greatest, of shape `(batch_size, positions)`."""
    logits_BMV = _both(logits_BMV)
    best_BM2 = (logits_BMV.topk(2, dim=-1).values - logits_BMV.logsumexp(dim=-1, keepdim=True)).exp()
    return best_BM2[..., 1] - best_BM2[..., 0]


def max_entropy(draws: Iterable[Tensor]) -> Tensor:
    """The entropy in nats of the mean of some probabilities, which come one after the other (Gal et al., 2017).

    Args:
        draws (`Iterable[Tensor]`, each of shape `(..., answers)`): the probabilities; one at least.
    """
    return _accumulated(draws, entropies=False)[0]


def bald(draws: Iterable[Tensor]) -> Tensor:
    """That entropy minus the mean of the draws' own: how much they disagree (Houlsby et al., 2011).

    Args:
        draws (`Iterable[Tensor]`, each of shape `(..., answers)`): the probabilities; one at least.
    """
    of_mean, mean = _accumulated(draws, entropies=True)
    return (of_mean - mean).clamp(min=0.0)


def _accumulated(draws: Iterable[Tensor], entropies: bool) -> tuple[Tensor, Tensor]:
    """The entropy of the mean, and if wanted the mean entropy, for which no more than sums are kept."""
    number, total, own = 0, torch.empty(0), torch.empty(0)
    for p in draws:
        total = total.add_(p) if number else p.clone()
        if entropies:
            own = own.add_(_entropy_of(p)) if number else _entropy_of(p)
        number += 1
        del p  # which would be there beside the next
    return _entropy_of(total.div_(number)), own.div_(number)


def _entropy_of(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(dim=-1)


def _both(logits_BMV: Tensor) -> Tensor:
    """The logits of two answers or more, in full precision."""
    logits_BMV = exact(logits_BMV)
    if logits_BMV.shape[-1] > 1:
        return logits_BMV
    return torch.cat([torch.zeros_like(logits_BMV), logits_BMV], dim=-1)


def _probabilities(reading: HeadInputs) -> Tensor:
    return _both(reading.head(reading.hidden_BMD)[1]).softmax(dim=-1)


_UNCERTAINTIES = {"entropy": entropy, "variation_ratio": variation_ratio, "margin": margin}
_COMMITTEES = {"max_entropy": max_entropy, "bald": bald}


class LeastConfidence(Strategy):
    """Prefers rows whose answers the model is least sure of, on the mean of those asked for (Braasch, section 4.2)."""

    input_kind: ClassVar[InputKind] = "logits"
    scorers: ClassVar[tuple[Scorer, ...]] = ("full", "first_layer", "generator")
    rules: ClassVar[tuple[str, ...]] = tuple(_UNCERTAINTIES)
    settings = (*BY_SCORE, "num_score_positions")
    defaults: ClassVar[Mapping[str, Any]] = {"outliers": 0.02}  # noise, rare names and numbers never become certain

    @torch.no_grad()
    def rate(self, reading: HeadInputs) -> Tensor:
        _, logits_BMV = reading.head(reading.hidden_BMD)
        return mean_asked(_UNCERTAINTIES[self.resolved.rule or self.rules[0]](logits_BMV), reading.labelled_BM)


class DeepBayesian(Strategy):
    """Prefers rows of which the model is unsure, or disagrees with itself, under draws of dropout (Gal et al., 2017).

    Each draw is a pure function of `salts` and of the row's key, wherever in a batch the row is.

    Args:
        resolved ([`ResolvedSettings`]): the settings, of which `passes` and `dropout` are those of the draws.
        config: of the model.

    Attributes:
        salts (`tuple[int, ...]`): what the draws of a step depend on for all rows; set before a pool is rated.
        keys_B (`Tensor` of shape `(batch_size,)`): int64, one for each row of a batch; set before it is rated.
    """

    input_kind: ClassVar[InputKind] = "logits"
    scorers: ClassVar[tuple[Scorer, ...]] = ("full", "first_layer", "generator")
    rules: ClassVar[tuple[str, ...]] = tuple(_COMMITTEES)
    settings = (*BY_SCORE, "num_score_positions", "passes", "dropout", "level")
    keys_B: Tensor

    def __init__(self, resolved: ResolvedSettings, config: Any) -> None:
        super().__init__(resolved, config)
        self.rule = resolved.rule or self.rules[0]
        self.salts: tuple[int, ...] = (0,)

    def rate(self, reading: HeadInputs) -> Tensor:
        return self.rate_draws(self.draws(reading))

    @torch.no_grad()
    def rate_draws(self, draws: Iterable[HeadInputs]) -> Tensor:
        """The scores of a batch, of shape `(batch_size,)`, by readings of it that each were drawn already.

        Args:
            draws (`Iterable[HeadInputs]`): of the same rows; one at least. They are taken one by one and not kept.
        """
        rest = iter(draws)
        first = next(rest)
        probabilities = (_probabilities(reading) for reading in chain([first], rest))
        return mean_asked(_COMMITTEES[self.rule](probabilities), first.labelled_BM)

    def draws(self, reading: HeadInputs) -> Iterator[HeadInputs]:
        """The reading under each draw of dropout on what the encoder puts out, for the head alone to run again."""
        hidden_BMD = reading.hidden_BMD
        size = hidden_BMD.shape[1] * hidden_BMD.shape[2]
        places_Q = torch.arange((size + 3) // 4, device=hidden_BMD.device)
        # Sixteen bits say whether one number is dropped, so that four share a hash.
        dropped = min(max(round(self.resolved.dropout * 2**16), 1), 2**16 - 1)
        for number in range(self.resolved.passes):
            keys_B = salted(self.keys_B, *self.salts, _DROPOUT, number)
            bits_BP = mix(keys_B[:, None] + places_Q).view(torch.int16)[:, :size]
            kept_BP = bits_BP >= dropped - 2**15
            kept_BMD = hidden_BMD.where(kept_BP.view_as(hidden_BMD), 0.0) / (1.0 - dropped / 2**16)
            yield replace(reading, hidden_BMD=kept_BMD)
