"""Range test of the learning rate: a short training whose rate grows exponentially (Smith, 2017, arXiv 1506.01186)."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from transformers import TrainerCallback

from hf_effpt.evaluation.masked_logits import evaluation_mode
from hf_effpt.planning.pilot import shortened
from hf_effpt.preparation import prepare_data
from hf_effpt.pretraining import build_trainer
from hf_effpt.recipe.recipe import Recipe

from .finding import Finding

LOWEST, HIGHEST, STEPS = 1e-5, 1.0, 100
ROWS = 32  # on which the loss is measured after each step
WINDOW = 5  # steps over which it is averaged
ENOUGH = 1.5  # times the first loss: the training has diverged, and ends
SAFE = 2  # times the rate from which on the loss rises: a run reaches its peak more slowly, and leaves it again
RISE = 0.25  # of what the loss had fallen by: from there on the training diverges


@dataclass(frozen=True)
class RateRange:
    """Result of a range test.

    Args:
        name (`str`): name or file of the recipe, with the flags that change it, as a shell takes them.
        rate (`float`): peak learning rate of the recipe.
        quickest (`float`): rate at which the loss falls quickest.
        diverges (`float`, *optional*): rate from which on the loss rises; `None` if it does not.
    """

    name: str
    rate: float
    quickest: float
    diverges: float | None

    def figures(self) -> dict[str, str]:
        """Measured rates, as text by name."""
        end = f"rises from {self.diverges:.1g} on" if self.diverges is not None else "does not diverge"
        return {"range test": f"the loss falls quickest at a rate of {self.quickest:.1g}, and {end}"}


def rate_in_range(found: RateRange) -> Finding | None:
    """A learning rate at which the loss rises, or far below that at which it falls."""
    high = found.diverges is not None and found.rate >= SAFE * found.diverges
    if not high and found.rate >= found.quickest / 30:
        return None
    return Finding(
        "range test",
        "error" if high else "warning",
        f"The recipe's rate is {found.rate:g}; the loss "
        + (f"rises from {found.diverges:.1g} on." if high else f"falls quickest at {found.quickest:.1g}."),
        "At so high a rate the run diverges." if high else "So low a rate leaves most of the budget unused.",
        f"effpt pretrain {found.name} --training.learning_rate {found.quickest:.1g}",
    )


def measure_range(source: str, overrides: Sequence[str] = ()) -> RateRange:
    """Trains the model of a recipe, without its methods, for `STEPS` steps; prepares its data first.

    Raises the `EffptError` of a recipe or text that cannot be used.
    """
    recipe = Recipe.load(source, overrides)
    with TemporaryDirectory() as folder:
        sections = shortened(recipe.resolved(), folder)
        own = {"budget": f"{STEPS}steps", "warmup_steps": 0.06, "average": None}
        short = Recipe.load({**sections, "methods": {}, "training": {**sections["training"], **own}})
        _, tokenizer, rows = prepare_data(short)
        quickest, diverges = read_range(*train_range(build_trainer(short, tokenizer, rows)))
    return RateRange(shlex.join([source, *overrides]), recipe.training.learning_rate, quickest, diverges)


def train_range(trainer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Trains for the trainer's budget of steps, each at a higher rate, until the loss is far above that at the start.

    The loss is that of the same masked rows after every step: from batch to batch it differs by more than a step
    changes it.

    Returns:
        The rates and the losses in nats, both of shape `(steps,)`.
    """
    growth = _Growth(trainer)
    trainer.add_callback(growth)
    trainer.train()
    return growth.rates_N[: len(growth.losses)], np.array(growth.losses)


def read_range(rates_N: np.ndarray, losses_N: np.ndarray) -> tuple[float, float | None]:
    """The rate at which the loss falls quickest, against the logarithm of the rate, and that at which it rises.

    Args:
        rates_N (`np.ndarray`): rates in rising order, of shape `(steps,)`.
        losses_N (`np.ndarray`): loss at each, in nats; from the first one that is no number on they do not count.
    """
    finite = np.isfinite(losses_N)
    end = len(losses_N) if finite.all() else int(np.argmin(finite))
    half = WINDOW // 2
    smooth = np.array([losses_N[max(0, place - half) : min(end, place + half + 1)].mean() for place in range(end)])
    lowest = int(np.argmin(smooth))
    quickest = int(np.argmin(np.gradient(smooth, np.log(rates_N[:end]))[: lowest + 1]))
    risen = np.flatnonzero(smooth[lowest:] > smooth[lowest] + RISE * (smooth[0] - smooth[lowest]))
    if len(risen):
        return float(rates_N[quickest]), float(rates_N[lowest + risen[0]])
    return float(rates_N[quickest]), None if end == len(losses_N) else float(rates_N[end])


class _Growth(TrainerCallback):
    """Sets the rate of each step in place of the schedule, and measures the loss after it.

    Groups of parameters keep their rates relative to that of the run.
    """

    def __init__(self, trainer: Any) -> None:
        rows = trainer.train_dataset if trainer.eval_dataset is None else trainer.eval_dataset
        self.batch = next(iter(trainer.get_eval_dataloader(rows.select(range(min(ROWS, len(rows)))))))
        self.trainer, self.losses = trainer, []
        self.rates_N = np.geomspace(LOWEST, HIGHEST, int(trainer.args.clock.budget))

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rates_N[state.global_step] * group["initial_lr"] / args.learning_rate

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = self.trainer.model
        with evaluation_mode(model), self.trainer.cost.autocast():
            self.losses.append(float(model(**self.trainer._prepare_inputs(self.batch)).loss))
        if not self.losses[-1] < ENOUGH * self.losses[0]:  # or no number
            control.should_training_stop = True
