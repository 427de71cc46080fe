"""Next tokens before masked ones (Gisserot-Boukhlef et al., 2025): what of a run goes with them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method
from hf_effpt.models.encoder_inputs import check_causal

CLM, MLM = "clm", "mlm"  # objectives that a part of the clock may have


def learned_until(objectives: Mapping[float, str | None]) -> float:
    """Fraction of the clock up to which a schedule of objectives has next tokens; 0 if it has none, 1 at its end."""
    ends = [after for (_, objective), (after, _) in pairwise([*objectives.items(), (1.0, None)]) if objective == CLM]
    return max(ends, default=0.0)


def check_next_tokens(until: float, config: Any, methods: Iterable[Method], branches: Sequence[float] | None) -> None:
    """Raises `EffptError` if something does not go with next tokens, which are learned up to `until` of the clock.

    `config` is that of the model, `branches` are shares of the budget at which decay branches end.
    """
    if until == 1.0:
        raise EffptError(
            f"The objective is `{CLM}` to the end, but what is exported is a masked language model; end with `{MLM}`, "
            f"as in {{0: {CLM}, 0.5: {MLM}}}."
        )
    check_causal(config)
    for method in methods:
        if reason := method.against_next_tokens(until):
            raise EffptError(
                f"`{method.name}` {reason}; leave it out, or the objective `{CLM}`, which the run has up to {until:g} "
                "of the clock."
            )
    if early := [share for share in branches or () if share <= until]:
        raise EffptError(
            f"The branch at {early[0]:g} of the budget would end as a model of next tokens, which are learned up to "
            f"{until:g}, and is exported as one of masked tokens; let it end later."
        )
