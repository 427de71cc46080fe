"""The ledger: what a run did to its model, kept in the model's configuration so that every checkpoint carries it."""

from typing import Any

PRUNING = "pruning"  # where a method leaves word, on the backbone, of layers that it takes out of an export


def record(config: Any, step: int, method: str, what: str, rewarmup: int = 0) -> None:
    """Notes in `config.events` that `method` changed the model after `step` optimizer steps.

    Args:
        rewarmup (`int`, *optional*, defaults to 0): steps in which the learning rate is to rise again to what the
            schedule says.
    """
    event: dict[str, Any] = {"step": step, "method": method, "what": what}
    config.events = [*(getattr(config, "events", None) or []), event | ({"rewarmup": rewarmup} if rewarmup else {})]


def rewarmed(config: Any, step: int) -> float:
    """The share of the scheduled learning rate in optimizer step `step` (from 0), after what events ask for."""
    share = 1.0
    for event in config.events or []:
        since, steps = step - event["step"], event.get("rewarmup", 0)
        if 0 <= since < steps:
            share = min(share, (since + 1) / (steps + 1))
    return share


def ledger_of(config: Any) -> dict[str, Any]:
    """The ledger of a training model: its methods with their settings, the present layer order, and past events."""
    return {"methods": config.methods or {}, "layer_order": config.layer_order, "events": config.events or []}
