"""The ledger: what a run did to its model, kept in the model's configuration so that every checkpoint carries it."""

from typing import Any


def record(config: Any, step: int, method: str, what: str) -> None:
    """Notes in `config.events` that `method` changed the model after `step` optimizer steps."""
    config.events = [*(config.events or []), {"step": step, "method": method, "what": what}]


def ledger_of(config: Any) -> dict[str, Any]:
    """The ledger of a training model: its methods with their settings, the present layer order, and past events."""
    return {"methods": config.methods or {}, "layer_order": config.layer_order, "events": config.events or []}
