"""Guard of a run against numbers that are not finite: skips such steps, counts them, and stops a run that diverges."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_effpt.core.errors import RunDiverged
from hf_effpt.core.files import finite
from hf_effpt.hub.folders import checkpoints_in, step_of

from .checkpoints import fault
from .muon import Muon

logger = logging.getLogger(__name__)
EVERY = 100  # steps after which the host asks the device at the latest
NOTED = 16  # skipped steps whose rows are kept
FIX = "Lower `training.learning_rate`, or use bf16 rather than fp16"


class FiniteGuard:
    """Keeps the weights of the run of `trainer` ([`EffptTrainer`]) finite.

    A step whose gradients are not finite (NaN or infinite) changes neither the weights nor the optimizer's state; the
    clock pays for it. All processes skip the same steps, since they have the same gradients. Fused optimizers and
    Muon skip on the device, so that the host does not wait for it; before a step of another optimizer it waits. What
    was skipped is told when the run logs, saves or evaluates.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def begin(self, totals: Mapping[str, Any] | None) -> None:
        """Starts with nothing skipped, or with what the totals of a checkpoint say."""
        found = (totals or {}).get("skipped") or {}
        self.steps: int = found.get("steps", 0)  # skipped in all
        self.in_a_row: int = found.get("in_a_row", 0)  # up to now
        self.batches: list[dict[str, Any]] = list(found.get("batches", ()))  # of the first of them
        self._unread: list[tuple[int, int, int, int, Tensor]] = []  # step, phase, place, rows, 1.0 if skipped

    def record(self) -> dict[str, Any]:
        """Number of skipped `steps`, of those `in_a_row` up to now, and the `batches` of the first.

        A batch is its `step`, the `phase` of the run, and the `rows` of all processes by their index in the phase's
        dataset. With row selection they are the candidates, in several processes up to a micro-batch.
        """
        return {"steps": self.steps, "in_a_row": self.in_a_row, "batches": self.batches}

    def watch(self, norm: Any) -> Any:
        """Has the coming optimizer step do nothing if the norm of the gradients is not finite; returns the norm."""
        trainer, stream = self.trainer, self.trainer.stream
        skips = torch.as_tensor(norm).isfinite().logical_not().float()
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # Accelerate wraps it
        if isinstance(optimizer, Muon) or getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = skips
        elif skips:
            trainer.model.zero_grad()  # parameters without a gradient are left alone
        self._unread.append((trainer.state.global_step + 1, stream.phase, stream.rows_seen, stream.step_rows, skips))
        if len(self._unread) == EVERY:
            self.settle()
        return norm

    def settle(self) -> dict[str, int]:
        """Counts the skipped steps up to now, for which it waits for the device; returns what a log entry says.

        Raises `RunDiverged` after `args.max_skipped_steps` of them in a row.
        """
        unread, self._unread, before = self._unread, [], self.steps
        found = torch.stack([one[-1] for one in unread]).tolist() if unread else []
        for (step, phase, first, number, _), skips in zip(unread, found, strict=True):
            if not skips:
                self.in_a_row = 0
                continue
            self.steps, self.in_a_row = self.steps + 1, self.in_a_row + 1
            if len(self.batches) < NOTED:
                rows = self.trainer.stream.rows_at(phase, first, number * self.trainer.args.world_size)
                self.batches.append({"step": step, "phase": phase, "rows": rows})
            if self.in_a_row >= self.trainer.args.max_skipped_steps:
                self._stop(step)
        if self.steps > before:
            logger.warning("skipped steps so far, whose gradients were not finite: %d", self.steps)
        return {"skipped_steps": self.steps} if self.steps else {}

    def check_weights(self) -> None:
        """Raises `RunDiverged` if some weights are not finite, or as [`settle`] does; in all processes alike."""
        self.settle()
        for name, weight in self.trainer.model.named_parameters():
            if not weight.isfinite().all():
                step = self.trainer.state.global_step
                raise self._diverged(
                    f"`{name}` is not finite after step {step}, so it is not saved.", step - 1, "weights"
                )

    def check_exportable(self) -> None:
        """Raises `RunDiverged` if the run has diverged, so that it leaves no model that looks like a good one."""
        self.check_weights()
        loss = (self.trainer.evaluation or {}).get("held_out_loss")
        if loss is not None and not math.isfinite(loss):
            raise self._diverged(
                f"its held-out loss is {loss}, so no model is exported.",
                self.trainer.state.global_step - 1, "held-out loss",
            )  # fmt: skip

    def _stop(self, step: int) -> None:
        last = step - self.in_a_row
        raise self._diverged(
            f"the gradients of {self.in_a_row} steps in a row, up to step {step}, were not finite "
            f"(`training.max_skipped_steps`). The weights are those of step {last}.", last, "gradients",
        )  # fmt: skip

    def _diverged(self, seen: str, last: int, what: str) -> RunDiverged:
        """The error of a run whose last sound step was `last`, with its record; `what` is not finite."""
        history = self.trainer.state.log_history
        losses = [one for one in history if "loss" in one and one["step"] <= last and math.isfinite(one["loss"])]
        record = {
            "step": last + 1,
            "what": what,
            "last_loss": losses[-1]["loss"] if losses else None,
            "last_loss_step": losses[-1]["step"] if losses else None,
            "clock": self.trainer.clock.as_dict(),
            "history": history,
        }
        return RunDiverged(f"The run has diverged: {seen} {self._way_out(last)}", finite(record))

    def _way_out(self, last: int) -> str:
        """Says how to go on from the last checkpoint up to a step."""
        run = Path(self.trainer.args.output_dir)
        there = [one for one in checkpoints_in(run) if step_of(one) <= last and not fault(one, hashes=False)]
        if not there:
            return f"{FIX}, and start anew, since there is no checkpoint from before."
        return f"{FIX}, and go on from the last checkpoint before: `--resume {there[-1]}`."
