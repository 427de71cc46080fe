"""Entries of runs as a comparison collects them, for tests."""

from typing import Any

BUDGET = 100.0


def entry(seed: int, loss: float | None, fraction: float = 1.0, **changes: Any) -> dict[str, Any]:
    seconds = BUDGET * fraction
    return {
        "seed": seed,
        "fraction": fraction,
        "folder": f"runs/x/seed-{seed}",
        "note": None,
        "state": "finished",
        "held_out_loss": loss,
        "objective": "mlm",
        "evaluation": {"objective": "mlm", "floor": 7.0, "unigram_floor": 7.0},
        "clock": {
            "steps": 10,
            "tokens": 1000,
            "flops": 1e9,
            "seconds": seconds,
            "reference_seconds": None,
            "joules": 3.6e5,
        },
        "co2e": 47.5,
        "final_learning_rate": 0.0,
        "peak_learning_rate": 1e-3,
        "costs": {},
        "curve": [],
        "scores": {},
        "score_notes": {},
        "data": ["f00d", 128, 999],
        "energy": {"source": "NVML", "measured": True, "carbon_intensity": 475.0, "carbon_source": "world average"},
        "environment": {"device": "a GPU"},
        **changes,
    }


def runs(losses: list[float], **changes: Any) -> list[dict[str, Any]]:
    """Runs on the whole budget, of seeds from 0."""
    return [entry(seed, loss, **changes) for seed, loss in enumerate(losses)]


def at(losses: dict[float, list[float]], **changes: Any) -> list[dict[str, Any]]:
    """Runs by fraction."""
    return [
        entry(seed, loss, fraction, **changes) for fraction, each in losses.items() for seed, loss in enumerate(each)
    ]
