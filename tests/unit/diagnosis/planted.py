"""Records of runs, as `run.json` holds them, with curves like those of real runs, and faults planted in them."""

from typing import Any

import numpy as np

from hf_effpt.recipe.recipe import Recipe

FLOOR, ENTRIES, EVERY = 6.97, 64, 50
# Training losses in the eighths of runs of two layers.
LEARNED = (6.70, 6.48, 6.40, 6.25, 5.85, 5.57, 5.38, 5.28)
QUICK = (6.66, 6.14, 5.63, 5.34, 5.09, 4.92, 4.76, 4.65)
SHORT = (6.88, 6.75, 6.60, 6.47, 6.36, 6.24, 6.20, 6.15)
FLAT = (6.80, 6.51, 6.43, 6.42, 6.38, 6.36, 6.34, 6.33)
RISING = (6.66, 6.14, 5.63, 5.34, 5.90, 6.40, 6.60, 6.80)
NOISY_RISE = (6.20, 5.90, 5.75, 5.60, 6.30, 6.25, 6.30, 6.20)


def curve(eighths: tuple[float, ...], noise: float = 0.04) -> np.ndarray:
    """A loss for each log entry of a run; of shape `(ENTRIES,)`."""
    places = (np.arange(8) + 0.5) * ENTRIES / 8
    return np.interp(np.arange(ENTRIES), places, eighths) + np.random.default_rng(0).normal(0, noise, ENTRIES)


def record(losses: Any = LEARNED, held_out: float | None = None, passes: float = 0.14, **changes: Any) -> dict:
    """The record of a masked language model's run; `changes` are of whole sections."""
    losses = curve(losses) if isinstance(losses, tuple) else losses
    norms = changes.pop("norms", np.full(len(losses), 1.5))
    history = [
        {"loss": float(loss), "grad_norm": float(norm), "epoch": passes * (place + 1) / len(losses)}
        | dict.fromkeys(("tokens", "flops", "seconds"), (place + 1) * 1000.0)
        | {"step": EVERY * (place + 1)}
        for place, (loss, norm) in enumerate(zip(losses, norms, strict=True))
    ]
    loss = float(np.nanmean(losses[-4:])) if held_out is None else held_out
    steps = EVERY * len(losses)
    return {
        "ledger": {"methods": {}, "events": []},
        "clock": {"unit": "steps", "budget": steps, "steps": steps},
        "model": {"objective": "mlm"},
        "throughput": {"tokens_per_second": 6e3, "mfu": 0.3, "data": 0.02, "forward": 0.35, "backward": 0.55},
        "environment": {"device": "cpu (x86_64)"},
        "history": history,
        "learning_rate": {"peak": 3e-3, "final": 0.0, "clock": 1.0},
        "evaluation": {"objective": "mlm", "held_out_loss": loss, "unigram_floor": FLOOR, "floor": FLOOR},
        "recipe": Recipe.load("tiny").resolved(),
        "data": {"doubles": 0, "documents": 20_000, "held_out": {"documents": 80}},
        "tokenizer": {
            "vocab_size": 8192, "kind": "wordpiece", "words": 170_000, "tokens": 260_000, "unknown_rate": 3e-4,
            "fertility": 1.55, "bytes_per_token": 3.9, "strip_accents": True,
        },
        **changes,
    }  # fmt: skip


def with_jump(height: float, place: int = 40) -> np.ndarray:
    """A curve with a jump of two log entries."""
    losses = curve(LEARNED)
    losses[place : place + 2] += height
    return losses
