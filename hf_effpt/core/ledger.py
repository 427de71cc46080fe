"""The ledger: changes of a model by methods, kept in its configuration and so in every checkpoint."""

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
    """Adds to `config.events` that `method` changed the model after `step` optimizer steps; `what` says how.

    In the next `rewarmup` steps the learning rate rises again to its schedule, which starts again and ends at the
    fractions `span` of the clock, if given. `facts` are JSON values that the method needs to build the model again.
    """
    event: dict[str, Any] = {"step": step, "method": method, "what": what}
    event |= {"rewarmup": rewarmup} if rewarmup else {}
    event |= {"span": list(span)} if span else {}
    config.events = [*(getattr(config, "events", None) or []), event | dict(facts or {})]


def events_of(config: Any, method: str) -> list[dict[str, Any]]:
    """Events of one method, oldest first; none if there is no configuration yet."""
    return [event for event in getattr(config, "events", None) or [] if event["method"] == method]


def rewarmed(config: Any, step: int) -> float:
    """Factor of the learning rate in optimizer step `step` (from 0) that the re-warm-ups of events give."""
    share = 1.0
    for event in config.events or []:
        since, steps = step - event["step"], event.get("rewarmup", 0)
        if 0 <= since < steps:
            share = min(share, (since + 1) / (steps + 1))
    return share


def span_of(config: Any) -> tuple[float, float]:
    """Fractions of the clock between which the present learning-rate schedule runs."""
    spans = [event["span"] for event in config.events or [] if "span" in event]
    return tuple(spans[-1]) if spans else (0.0, 1.0)


def archive_events(config: Any, asked: tuple[str, ...] = ("rewarmup", "span")) -> None:
    """Marks events as `past` and removes the keys `asked` from them, which concern the run they were in only."""
    if config.events:
        kept = [{key: event[key] for key in event if key not in asked} for event in config.events]
        config.events = [event | {"past": True} for event in kept]


def ledger_of(config: Any) -> dict[str, Any]:
    """Ledger of a training model: methods with settings, present shape, and events.

    `layer_order` has the indices of the layers that run; `layer_widths` are those of these layers, first to last.
    """
    ledger = {"methods": config.methods or {}, "layer_order": config.layer_order, "events": config.events or []}
    if not (widths := config.layer_widths):
        return ledger
    order = range(len(widths)) if config.layer_order is None else config.layer_order
    return ledger | {"layer_widths": [widths[index] for index in order]}
