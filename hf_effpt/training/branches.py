"""Decay branches: models whose learning rate has decayed, at parts of the budget of one run that goes on."""

import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import Trainer

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json
from hf_effpt.core.ledger import span_of
from hf_effpt.hub.folders import checkpoints_in

logger = logging.getLogger(__name__)
STABLE_DECAY = "warmup_stable_decay"
DECAY = 0.2  # share of training in which the rate decays, if `lr_scheduler_kwargs` names none


def decay_share(args: Any) -> float:
    """Share of training, in (0, 1), in which the learning rate of a `warmup_stable_decay` schedule decays.

    Raises:
        EffptError: if it is no such share, or warm-up and decay together are longer than the training.
    """
    given = args.lr_scheduler_kwargs or {}
    asked, clock = given.get("num_decay_steps", DECAY), args.clock
    if isinstance(asked, bool) or not isinstance(asked, (int, float)) or not 0 < asked < math.inf:
        raise EffptError(f"`num_decay_steps` must be a share of the training below 1, or steps, not {asked!r}.")
    if asked >= 1 and (clock is None or clock.unit != "steps"):
        raise EffptError(
            f"`num_decay_steps` is {asked}, but the budget is not in steps; give a share of it, such as {DECAY}."
        )
    if "num_stable_steps" in given:
        raise EffptError("`num_stable_steps` is what warm-up and decay leave of the budget; leave it out.")
    share = asked if asked < 1 or clock is None else asked / clock.budget
    if share + warmup_share(args) > 1:
        raise EffptError(
            f"A warm-up of {warmup_share(args):.4g} and a decay of {share:.4g} of the training are more than all of "
            "it; shorten one (`training.warmup_steps`, `num_decay_steps` in `training.lr_scheduler_kwargs`)."
        )
    return share


def warmup_share(args: Any) -> float:
    """Share of training in which the learning rate rises."""
    if args.warmup_steps < 1:
        return args.warmup_steps
    return 0.0 if args.clock is None else args.warmup_steps / args.clock.budget  # steps of epochs are not known yet


def check_branches(args: Any, upfront: float = 0.0) -> None:
    """Checks `args.branches` ([`EffptTrainingArguments`]); `upfront` is the share of the budget spent before step 1.

    Raises:
        EffptError: unless they are rising shares of the budget, each of which decays from a rate that no longer rises.
    """
    shares = args.branches
    if shares is None:
        return
    in_order = isinstance(shares, (list, tuple)) and all(isinstance(share, float) for share in shares)
    if not (in_order and shares and all(a < b for a, b in pairwise([0.0, *shares, 1.0]))):
        raise EffptError(
            f"`training.branches` is {shares!r}, but needs rising shares of the budget between 0 and 1, such as "
            "[0.1, 0.25, 0.5]; the end of the run is no branch."
        )
    if args.clock is not None and args.clock.unit == "steps" and shares[0] * args.clock.budget < 2:
        raise EffptError(
            f"A branch at {shares[0]:g} of {args.clock.budget:g} steps has no step to decay in; train longer."
        )
    leaves = (1 - decay_share(args)) * (shares[0] - upfront)
    if leaves < warmup_share(args) * (1 - upfront) or leaves <= 0:
        spent = f" and {upfront:.3g} of the budget are spent before the first step" if upfront else ""
        raise EffptError(
            f"The branch at {shares[0]:g} of the budget would decay from {leaves + upfront:.4g} on, before the warm-up"
            f" of {warmup_share(args):.4g} is over{spent}; leave it out, or shorten the warm-up "
            "(`training.warmup_steps`)."
        )


class Branches:
    """Branches of the run of `trainer` ([`EffptTrainer`]), by the share of the budget at which each ends.

    While the run goes on, it saves where each branch leaves it. [`Branches.train`] then takes a branch to its end:
    learning rate and end are the branch's, all else follows the clock of the whole run.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.current: float | None = None  # the branch that is being trained
        self._passed: set[float] = set()
        self._decay = 0.0  # share of training in which the rate decays
        self._began: dict[str, Any] = {}  # the clock where the present training began

    @property
    def shares(self) -> list[float]:
        return list(self.trainer.args.branches or [])

    def folder(self, share: float) -> Path:
        """Folder of a branch, in that of the run: its starting point, then its exported model."""
        return Path(self.trainer.args.output_dir, f"branch-{share:g}")

    def is_done(self, share: float) -> bool:
        return (self.folder(share) / "run.json").is_file()

    def begin(self) -> None:
        """Notes where a run, new or resumed, begins, and which branches it has passed already."""
        clock = self.trainer.clock
        self._began = {"steps": clock.steps, "tokens": clock.tokens, "seconds": clock.seconds}
        if self.shares:
            self._decay = decay_share(self.trainer.args)
        self._passed = {share for share in self.shares if self._has_left(share)}

    def _has_left(self, share: float) -> bool:
        """Returns `True` from where the learning rate of the branch decays; a method may have started it anew."""
        trainer = self.trainer
        since = max(span_of(trainer.model.config)[0], trainer.cost.upfront_fraction)
        return trainer.clock.fraction >= since + (1 - self._decay) * max(0.0, share - since)

    def save_due(self) -> None:
        """Saves, after an optimizer step, the starting points of the branches that leave the run here."""
        if self.current is not None or not self.trainer.args.branches:
            return
        trainer = self.trainer
        for share in self.shares:
            if share in self._passed or not self._has_left(share):
                continue
            self._passed.add(share)
            if trainer.clock.fraction >= share:
                logger.warning("No model of the branch at %g: the learning rate started anew after it.", share)
                continue
            with trainer.saver.checkpoint(trainer.state.global_step, self.folder(share)):
                Trainer._save_checkpoint(trainer, trainer.model, None)

    def train(self, share: float) -> dict[str, Any] | None:
        """Trains the branch that ends at `share` and exports it; returns facts of it, or `None` if the run left none.

        The trainer then holds the model and the clock of the branch. Facts: `held_out_loss`, `tokens` and `seconds`
        since the start of the run, and `own_tokens`, `own_seconds` of the branch alone.
        """
        trainer, folder = self.trainer, self.folder(share)
        if not self.is_done(share):
            points = checkpoints_in(folder)
            if not points:
                return None
            with self._alone(share):
                trainer.train(resume_from_checkpoint=str(points[-1]))
                if trainer.eval_dataset is not None:
                    trainer.evaluate()
                trainer.facts["branch"] = {"ends_at": share, **self._began}
                trainer.save_model(str(folder))
                trainer.accelerator.wait_for_everyone()
            if trainer.args.should_save:
                for point in points:
                    shutil.rmtree(point)
        record = read_json(folder / "run.json")
        clock, branch = record["clock"], record["branch"]
        return {
            "held_out_loss": (record.get("evaluation") or {}).get("held_out_loss"),
            "tokens": clock["tokens"], "seconds": clock["seconds"],
            "own_tokens": clock["tokens"] - branch["tokens"], "own_seconds": clock["seconds"] - branch["seconds"],
        }  # fmt: skip

    @contextmanager
    def _alone(self, share: float) -> Iterator[None]:
        """Has the trainer train a branch, without a word to trackers, whose steps are those of the run."""
        trainer, handler = self.trainer, self.trainer.callback_handler
        everyone, self.current = handler.callbacks, share
        handler.callbacks = [one for one in everyone if "integrations" not in type(one).__module__]
        trainer.lr_scheduler = None
        try:
            yield
        finally:
            self.current, handler.callbacks = None, everyone
            trainer.facts.pop("branch", None)
