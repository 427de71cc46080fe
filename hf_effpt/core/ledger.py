"""The ledger: what a run did to its model, kept in the model's configuration so that every checkpoint carries it."""

from collections.abc import Mapping
from typing import Any


def record(
    config: Any,
    step: int,
    method: str,
    what: str,
    rewarmup: int = 0,
    span: tuple[float, float] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Notes in `config.events` that `method` changed the model after `step` optimizer steps.

    Args:
        rewarmup (`int`, *optional*, defaults to 0): steps in which the learning rate is to rise again to what the
            schedule says.
        span (`tuple[float, float]`, *optional*): the fractions of the clock between which the schedule of the learning
            rate is to run anew, from its warm-up to its end.
        facts (`Mapping[str, Any]`, *optional*): what else the method has to know to build the model again; JSON can
            write it.
    """
    event: dict[str, Any] = {"step": step, "method": method, "what": what}
    event |= {"rewarmup": rewarmup} if rewarmup else {}
    event |= {"span": list(span)} if span else {}
    config.events = [*(getattr(config, "events", None) or []), event | dict(facts or {})]


def rewarmed(config: Any, step: int) -> float:
    """The share of the scheduled learning rate in optimizer step `step` (from 0), after what events ask for."""
    share = 1.0
    for event in config.events or []:
        since, steps = step - event["step"], event.get("rewarmup", 0)
        if 0 <= since < steps:
            share = min(share, (since + 1) / (steps + 1))
    return share


def span_of(config: Any) -> tuple[float, float]:
    """The fractions of the clock between which the schedule of the learning rate runs at present."""
    spans = [event["span"] for event in config.events or [] if "span" in event]
    return tuple(spans[-1]) if spans else (0.0, 1.0)


def archive_events(config: Any, asked: tuple[str, ...] = ("rewarmup", "span")) -> None:
    """Leaves of events what they say, marked as `past`: what they ask of the learning rate, and the steps that they
    count, were meant for the run they were in."""
    if config.events:
        kept = [{key: event[key] for key in event if key not in asked} for event in config.events]
        config.events = [event | {"past": True} for event in kept]


def ledger_of(config: Any) -> dict[str, Any]:
    """The ledger of a training model: its methods with their settings, its present shape, and past events."""
    ledger = {"methods": config.methods or {}, "layer_order": config.layer_order, "events": config.events or []}
    return ledger | ({"layer_widths": config.layer_widths} if config.layer_widths else {})
