"""Checks of the course of a run: its losses and gradients from entry to entry, by [`RunFacts`]."""

import numpy as np

from .finding import Finding
from .run_facts import RunFacts

NOISES, LEAST_SPIKE = 8.0, 0.05  # height of a spike: in typical changes between entries, and as a share of the loss
SMOOTHED = 5  # entries of a mean
BEFORE = 5  # entries that an entry is compared with
ENTRIES = 12  # fewer log entries say little of a course
GRADIENT_GROWTH, GRADIENT_ZERO = 8.0, 1e-4


def diverged(run: RunFacts) -> Finding | None:
    """A loss that is no number, or has risen and stayed there."""
    losses, steps = run.losses_N, run.steps_N
    flags = [f"--training.learning_rate {run.rate / 3:.2g}", "--training.warmup_steps 0.1"]
    if (run.recipe.get("training") or {}).get("fp16"):
        flags.append("--training.fp16 false --training.bf16 true")
    why, fix = "The model has lost what it had learned; nothing made from this run is of use.", run.again(*flags)
    if bad := int((~np.isfinite(losses)).sum()):
        first = int(steps[np.argmin(np.isfinite(losses))])
        seen = f"{bad:,} of {len(losses):,} logged losses are no number, the first at step {first:,}."
        return Finding("divergence", "error", seen, why, fix)
    after = steps > max(run.events, default=0)  # a model that was cut may not reach its earlier loss again
    losses, steps = losses[after], steps[after]
    if len(losses) < ENTRIES or run.selects:
        return None
    smooth = _smoothed(losses)
    lowest, last = int(np.argmin(smooth)), smooth[-1]
    # A mean over entries changes by less than one of them.
    if last - smooth[lowest] < max(LEAST_SPIKE * smooth[lowest], NOISES * _noise(losses) / SMOOTHED**0.5):
        return None
    seen = f"The training loss was {smooth[lowest]:.2f} at step {steps[lowest]:,} and is {last:.2f} at the end."
    return Finding("divergence", "error", seen, why, fix)


def spikes(run: RunFacts) -> Finding | None:
    """Losses that jump up and come back."""
    losses = run.losses_N
    if len(losses) < ENTRIES or not np.isfinite(losses).all() or diverged(run):
        return None
    before = np.array([np.median(losses[max(0, place - BEFORE) : place]) for place in range(1, len(losses))])
    high = losses[1:] - before > np.maximum(NOISES * _noise(losses), LEAST_SPIKE * before)
    # An event makes entries high until the median of those before knows the new level.
    begins = run.steps_N[np.maximum(0, np.arange(1, len(losses)) - BEFORE)]
    bounds = zip(begins, run.steps_N[1:], strict=True)
    changed = np.array([any(start <= event < end for event in run.events) for start, end in bounds])
    places = np.flatnonzero(high & ~changed) + 1
    if not len(places):
        return None
    worst = places[np.argmax(losses[places])]
    return Finding(
        "spikes",
        "warning",
        f"The training loss jumps up {len(places)} times; at step {run.steps_N[worst]:,} from "
        f"{before[worst - 1]:.2f} to {losses[worst]:.2f}.",
        "Each spike costs the steps that bring the loss back, and a later one may not come back.",
        run.again(f"--training.learning_rate {run.rate / 2:.2g}", "--training.max_grad_norm 0.5"),
    )


def gradients(run: RunFacts) -> Finding | None:
    """Gradients that vanish, or grow throughout the run."""
    norms = run.gradients_N[np.isfinite(run.gradients_N)]
    if len(norms) < ENTRIES:
        return None
    quarter = len(norms) // 4
    early, late = float(np.median(norms[quarter : 2 * quarter])), float(np.median(norms[-quarter:]))
    if late < GRADIENT_ZERO:
        seen, why = f"The gradient norm is {late:.1g} at the end.", "Nothing is learned from so small gradients."
    elif late > GRADIENT_GROWTH * early:
        seen = f"The gradient norm has grown from {early:.2g} in the second quarter to {late:.2g} in the last."
        why = "Growing gradients come before a divergence; clipped to a bound, they are mostly noise."
    else:
        return None
    rate = run.rate / 2 if late >= GRADIENT_ZERO else 1e-3
    fix = run.again(f"--training.learning_rate {rate:.2g}")
    return Finding("gradient norm", "warning", seen, why, fix)


def _smoothed(losses: np.ndarray) -> np.ndarray:
    """Mean of each loss and those beside it, fewer at the ends."""
    beside = SMOOTHED // 2
    return np.array([losses[max(0, place - beside) : place + beside + 1].mean() for place in range(len(losses))])


def _noise(losses: np.ndarray) -> float:
    """Typical change of the loss between two log entries, in nats."""
    return float(np.median(np.abs(np.diff(losses))))
