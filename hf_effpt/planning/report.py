"""Text of a plan: a table of half, all and twice the budget, and notes on its figures."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.hub.card import duration
from hf_effpt.recipe.recipe import Recipe

from .forecasting import Forecast, forecast, traits_of
from .law import Traits
from .measurement import Measurement

SHARES = {"half the budget": 0.5, "this budget": 1.0, "twice the budget": 2.0}
WIDTH = 18
FEW_STEPS = 20


def report(recipe: Recipe, measured: Measurement, clock: Clock) -> str:
    """Describes the run of a recipe on a budget in a few lines; raises the `EffptError` of [`forecast`]."""
    traits = traits_of(recipe, measured)
    known = traits if isinstance(traits, Traits) else None
    this = forecast(measured, clock, known)
    columns: list[Forecast | None] = [
        this if share == 1 else _or_none(measured, _scaled(clock, share), known) for share in SHARES.values()
    ]
    lines = [
        f"Measured on {measured.device}: {measured.tokens_per_second:,.0f} tokens a second, by a model of "
        f"{measured.parameters:,} parameters.",
        "",
        _line("", list(SHARES)),
        *(_line(name, ["-" if one is None else show(one) for one in columns]) for name, show in _ROWS.items()),
        "",
        f"Memory at its peak: {_memory(measured)}",
        *(f"- {note}" for note in _notes(measured, clock, this, traits)),
    ]
    return "\n".join(lines)


def _scaled(clock: Clock, share: float) -> Clock:
    return Clock.parse(clock.share(share))


def _or_none(measured: Measurement, clock: Clock, traits: Traits | None) -> Forecast | None:
    """A forecast, or `None` if the budget is too short for the start."""
    try:
        return forecast(measured, clock, traits)
    except EffptError:
        return None


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:18}" + "".join(f"{cell:>{WIDTH}}" for cell in cells)


def _loss(one: Forecast) -> str:
    return "unknown" if one.loss is None else f"{one.loss.value:.2f}"


def _interval(one: Forecast) -> str:
    return "" if one.loss is None else f"{one.loss.low:.2f} to {one.loss.high:.2f}"


_ROWS: dict[str, Callable[[Forecast], str]] = {
    "time": lambda one: duration(one.seconds),
    "steps": lambda one: f"{one.steps:,}",
    "tokens": lambda one: _number(one.tokens),
    "passes over text": lambda one: "unknown" if one.passes is None else f"{one.passes:.2f}",
    "operations": lambda one: f"{one.flops:.2g} FLOPs",
    "held-out loss": _loss,
    "  9 of 10 runs": _interval,
    "energy": lambda one: "unknown" if one.kwh is None else f"{one.kwh:.2g} kWh",
}


def _number(value: float) -> str:
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:,.0f}"


def _memory(measured: Measurement) -> str:
    if measured.peak_bytes is None:
        return "unknown on this system."
    of = "of the GPU" if "cpu" not in measured.device else "of the process, PyTorch included, once its text is packed"
    return f"{measured.peak_bytes / 1e6:,.0f} MB {of}."


def _notes(measured: Measurement, clock: Clock, this: Forecast, traits: Traits | str) -> list[str]:
    notes = []
    if measured.start_seconds >= 1:
        notes.append(f"Of the time {measured.start_seconds:.0f} s go into the start.")
    if isinstance(traits, str):
        notes.append(f"{traits[0].upper()}{traits[1:]}.")
    elif this.loss is not None:
        notes.append(
            f"The loss is in nats a masked token; token frequencies alone give {measured.floor:.2f}. It is that of "
            f"the measured seconds, {measured.loss:.2f}, and falls from there as in runs of minutes on a CPU."
        )
        if this.loss.outside:
            notes.append(f"Those runs had {'; '.join(this.loss.outside)}. Beyond that the interval is a wide guess.")
    if this.kwh is not None and not measured.energy_is_measured:
        notes.append(f"Energy is {measured.energy}, not measured.")
    if clock.unit == "reference_seconds":
        notes.append("Reference time is taken for time on this machine when it has nothing else to do.")
    if "cpu" not in measured.device:
        notes.append("No run of this package has been measured on a GPU: rate and memory are, learning is not.")
    few = f" Only {measured.steps} steps were measured, so that it is rough." if measured.steps < FEW_STEPS else ""
    notes.append(f"The rate is that of these seconds: other work on the machine changes it.{few}")
    return notes


def with_text(measured: Measurement, share: float | None) -> Measurement:
    """The measurement, which was of a share of the text, for all of it; `None` if the share is unknown."""
    tokens = measured.text_tokens
    return replace(measured, text_tokens=None if share is None or tokens is None else tokens / share)
