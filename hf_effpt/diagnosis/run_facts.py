"""Facts of a run, from its record."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hf_effpt.core.clock import Clock
from hf_effpt.core.objectives import Objective, floor_in, measured_as, objective_in

from .advice import accepted
from .run_record import entries_of, main_loss

PASSES = 3.0  # over the text, of a run without a budget


@dataclass(frozen=True, eq=False)
class RunFacts:
    """Facts of a run, each `None` or empty where its record has none.

    Args:
        folder (`str`): the run folder.
        objective ([`Objective`]): what the held-out loss is of.
        losses_N (`np.ndarray`): training loss in nats, of shape `(log entries,)`; the main part of a composite one.
        gradients_N (`np.ndarray`): gradient norm before it is clipped, of the same shape; NaN where unknown.
        steps_N (`np.ndarray`): optimizer steps at the log entries, of the same shape.
        fraction (`float`): share of the budget that is spent.
        held_out, floor (`float`, *optional*): held-out loss and the loss that a model without context has, in nats.
        chance (`float`, *optional*): loss of guessing among all tokens alike, in nats.
        passes (`float`): passes over the text.
        decayed (`float`, *optional*): last learning rate, as a share of its peak.
        events (`tuple[int, ...]`): steps after which a method has changed the model, or another objective began.
        turned (`int`): the last of those after which another objective began, or 0.
        selects (`bool`): `True` if a method chose the rows, so that the training loss is not one of the text.
        speed (`dict[str, float]`): medians of `tokens_per_second`, `mfu` and the share of each part of a step.
        device (`str`): name of the device.
        doubles, held_out_documents (`int`, *optional*): training documents that equal held-out ones, and the number
            of those.
        recipe (`dict`): the recipe as resolved.
    """

    folder: str
    objective: Objective
    losses_N: np.ndarray
    gradients_N: np.ndarray
    steps_N: np.ndarray
    fraction: float = 1.0
    held_out: float | None = None
    floor: float | None = None
    chance: float | None = None
    passes: float = 0.0
    decayed: float | None = None
    events: tuple[int, ...] = ()
    turned: int = 0
    selects: bool = False
    speed: dict[str, float] = field(default_factory=dict)
    device: str = ""
    doubles: int | None = None
    held_out_documents: int | None = None
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """`True` if the budget is spent."""
        return self.fraction >= 1.0

    @property
    def last_losses_N(self) -> np.ndarray:
        """The training losses of the last objective, that of the held-out loss."""
        return self.losses_N[self.steps_N > self.turned]

    @property
    def gain(self) -> float | None:
        """Distance of the held-out loss below its floor, in nats."""
        return None if self.held_out is None or self.floor is None else self.floor - self.held_out

    @property
    def predicts_words(self) -> bool:
        """`True` if the losses are of words of the vocabulary, and comparable."""
        return self.objective.floor == "unigram floor" and not self.selects

    @property
    def rate(self) -> float:
        """Peak learning rate of the recipe."""
        return float((self.recipe.get("training") or {}).get("learning_rate") or 1e-3)

    def longer(self, times: int) -> str:
        """The flag of a budget, steps or passes over the text, that is so many times that of the run."""
        training = self.recipe.get("training") or {}
        if training.get("budget") is not None:
            return f"--training.budget {Clock.parse(training['budget']).share(times)}"
        if (steps := int(training.get("max_steps") or 0)) > 0:
            return f"--training.max_steps {steps * times}"
        return f"--training.num_train_epochs {float(training.get('num_train_epochs') or PASSES) * times:g}"

    def again(self, *flags: str) -> str:
        """The command that runs the recipe again with other settings, or the settings if the run had no recipe.

        Settings that the recipe does not take are left out; if it takes none, all are named.
        """
        kept = accepted(self.recipe, flags) if self.recipe else []
        if not kept:
            return f"train again with {', '.join(flag.removeprefix('--') for flag in flags)}"
        folder = shlex.quote(f"{self.folder}-2"), shlex.quote(f"{self.folder}/recipe.yaml")
        return " ".join(["effpt pretrain", folder[1], *kept, "--training.output_dir", folder[0]])

    def go_on(self) -> str:
        """The command that goes on with the run, or the call if the run had no recipe."""
        if not self.recipe:
            return "train(resume_from_checkpoint=True) in the script that began it"
        there = (
            Path(str((self.recipe.get("training") or {}).get("output_dir"))).absolute() == Path(self.folder).absolute()
        )
        flags = [] if there else [f"--training.output_dir {shlex.quote(self.folder)}"]  # it has moved
        return " ".join(["effpt pretrain", shlex.quote(f"{self.folder}/recipe.yaml"), *flags, "--resume"])

    def figures(self) -> dict[str, str]:
        """Figures that the checks look at, as text by name."""
        found = {}
        if self.held_out is not None:
            found["held-out loss"] = f"{self.held_out:.3f} nats a {self.objective.per}"
            if self.floor is not None:
                found["held-out loss"] += f"; {self.objective.floor} {self.floor:.3f}"
            if self.chance is not None:
                found["held-out loss"] += f", chance {self.chance:.2f}"
        if len(self.losses_N):
            last = self.losses_N[-max(1, len(self.losses_N) // 10) :].mean()
            found["training loss"] = f"{self.losses_N[0]:.3f} at the beginning, {last:.3f} at the end"
        if np.isfinite(self.gradients_N).any():
            found["gradient norm"] = (
                f"{np.nanmedian(self.gradients_N):.2g} as a rule, {np.nanmax(self.gradients_N):.2g} at most"
            )
        if self.speed:
            mfu = (
                f", {self.speed['mfu']:.0%} of what {self.device or 'the device'} can do"
                if "mfu" in self.speed
                else ""
            )
            parts = [
                f"{name} {self.speed[name]:.0%}"
                for name in ("data", "forward", "backward", "optimizer")
                if name in self.speed
            ]
            found["speed"] = f"{self.speed.get('tokens_per_second', math.nan):,.0f} tokens/s{mfu}; {', '.join(parts)}"
        spent = f"{self.steps_N[-1]:,} steps, " if len(self.steps_N) else ""
        found["spent"] = f"{spent}{self.fraction:.0%} of the budget, {self.passes:.2g} passes over the text"
        return found


def run_facts(record: Mapping[str, Any], folder: str) -> RunFacts:
    """Facts of a run by its record."""
    entries = entries_of(record)
    evaluation, data, ledger = (record.get(name) or {} for name in ("evaluation", "data", "ledger"))
    rate, clock, vocabulary = record.get("learning_rate"), record.get("clock"), record.get("tokenizer") or {}
    objective = measured_as(objective_in(record), evaluation)
    words, turns = objective.floor == "unigram floor", _turns(data, entries)
    return RunFacts(
        folder=folder,
        objective=objective,
        losses_N=np.array([main_loss(entry) for entry in entries]),
        gradients_N=np.array([entry.get("grad_norm", math.nan) for entry in entries], dtype=float),
        steps_N=np.array([entry["step"] for entry in entries], int),
        fraction=min(1.0, (clock.get(clock["unit"]) or 0.0) / clock["budget"]) if clock else 1.0,
        held_out=evaluation.get("held_out_loss"),
        floor=floor_in(evaluation),
        chance=math.log(vocabulary["vocab_size"]) if words and vocabulary else None,
        passes=entries[-1].get("epoch", 0.0) if entries else 0.0,
        decayed=rate["final"] / rate["peak"] if rate else None,
        events=(*(event["step"] for event in ledger.get("events") or ()), *turns),
        turned=max(turns, default=0),
        selects="selection" in (ledger.get("methods") or {}),
        speed=dict(record.get("throughput") or {}),
        device=(record.get("environment") or {}).get("device", ""),
        doubles=data.get("doubles"),
        held_out_documents=(data.get("held_out") or {}).get("documents"),
        recipe=dict(record.get("recipe") or {}),
    )


def _turns(data: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """Last logged steps before phases with another objective than the one before."""
    phases = [{**data, "since": 0.0}, *data.get("phases", ())]
    since = [after["since"] for before, after in pairwise(phases) if before.get("objective") != after.get("objective")]
    steps = [[entry["step"] for entry in entries if entry.get("clock", 1.0) < one] for one in since]
    return [before[-1] for before in steps if before]
