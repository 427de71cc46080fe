"""Forecast of a run: its time, tokens, passes over the text, energy and loss, from a measurement and a budget."""

from dataclasses import dataclass

from hf_effpt.core.clock import JOULES_A_KWH, Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.settings import written
from hf_effpt.recipe.recipe import Recipe

from .law import LossForecast, Traits, loss_law
from .measurement import Measurement

# Methods whose effect on the loss is that of the tokens which they save; the law was fitted with them.
KNOWN_METHODS = frozenset(("stacking", "layerdrop", "layerskip", "earlybert"))
MASK_RATE = 0.15  # of all runs of the evidence
MANY_PASSES = 4  # up to which repeated text teaches about as much as new (Muennighoff et al., 2023, decoders)


@dataclass(frozen=True)
class Forecast:
    """Expected cost and result of a run; `None` for what is not known."""

    seconds: float
    steps: int
    tokens: float
    flops: float
    passes: float | None
    kwh: float | None
    loss: LossForecast | None


def forecast(measured: Measurement, clock: Clock, traits: Traits | None) -> Forecast:
    """Forecasts a run on the budget of `clock`; without `traits` of its recipe, all but its loss.

    Reference time counts as time on this machine. Raises an `EffptError` if the start takes the whole budget, or the
    budget is energy on a device that does not tell it.
    """
    tokens = _tokens(measured, clock)
    if tokens <= 0:
        raise EffptError(
            f"The start of this recipe takes {measured.start_seconds:.0f} s, all of the budget of {clock.budget:,g} "
            f"{clock.unit}; give a longer one, or leave `model.start.embeddings` out."
        )
    seconds = tokens / measured.tokens_per_second + measured.start_seconds
    passes = None if measured.text_tokens is None else tokens / measured.text_tokens
    loss = None
    if traits is not None and measured.loss is not None:
        also = (f"at most {MANY_PASSES} passes",) if passes is not None and passes > MANY_PASSES else ()
        loss = loss_law().forecast(traits, tokens, measured.tokens, measured.loss, also)
    return Forecast(
        seconds,
        max(1, round(tokens / measured.step_tokens)),
        tokens,
        tokens * measured.flops_per_token + measured.start_flops,
        passes,
        None if measured.watts is None else measured.watts * seconds / JOULES_A_KWH,
        loss,
    )


def _tokens(measured: Measurement, clock: Clock) -> float:
    if clock.unit == "tokens":
        return clock.budget
    if clock.unit == "steps":
        return clock.budget * measured.step_tokens
    if clock.unit == "flops":
        return (clock.budget - measured.start_flops) / measured.flops_per_token
    seconds = clock.budget
    if clock.unit == "joules":
        seconds /= watts_of(measured)
    return (seconds - measured.start_seconds) * measured.tokens_per_second


def watts_of(measured: Measurement) -> float:
    """Mean power; raises an `EffptError` if it is unknown."""
    if measured.watts is None:
        raise EffptError(f"The power of {measured.device} cannot be read, so that energy limits nothing; give time.")
    return measured.watts


def traits_of(recipe: Recipe, measured: Measurement) -> Traits | str:
    """Traits of a recipe that the law of the loss reads, or the reason why it says nothing about its loss."""
    model, start = recipe.model, recipe.model.start or {}
    if model.objective != "mlm":
        return f"losses of `{written(model.objective)}` are not forecast: all runs measured for it had `mlm`"
    if model.from_ is not None:
        return "the loss of a model that goes on from a checkpoint is not forecast: no such run was measured for it"
    if unknown := sorted({*recipe.methods} - KNOWN_METHODS):
        return f"the loss with `{unknown[0]}` is not forecast: it changes more than the cost of a step"
    if recipe.training.optim == "muon" or {*recipe.data.rates.values()} != {MASK_RATE}:
        return f"losses are forecast with AdamW and {MASK_RATE:.0%} of tokens masked only, as in all runs measured"
    if measured.loss is None:
        return "the loss is not forecast: no held-out text to measure it by, or a short run that diverged"
    return Traits(model.backbone, "embeddings" in start, measured.layers, measured.width)
