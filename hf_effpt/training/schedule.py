"""The learning rate as a function of the share of the budget that is spent."""

from collections.abc import Callable
from typing import Any, cast

from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import get_scheduler

from .arguments import EffptTrainingArguments


def clock_schedule(
    args: EffptTrainingArguments,
    optimizer: Any,
    fraction: Callable[[], float],
    length: int,
    share: Callable[[], float] = lambda: 1.0,
) -> LambdaLR:
    """The stock schedule of that name, read at the clock and not at the number of calls.

    Args:
        args ([`EffptTrainingArguments`]): with the schedule, its warm-up, and whether that multiplies the decay
            (Clark et al., 2020, `optimization.py`) or precedes it.
        optimizer (`torch.optim.Optimizer`): whose learning rate it sets.
        fraction (`Callable`): the share of the budget that is spent.
        length (`int`): the steps that the whole budget stands for.
        share (`Callable`, *optional*): what it is multiplied by besides, such as a second warm-up.
    """
    warmup = args.get_warmup_steps(length)
    stock: Any = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=0 if args.multiply_warmup else warmup,
        num_training_steps=length,
        scheduler_specific_kwargs=cast("dict | None", args.lr_scheduler_kwargs),  # no string once parsed
    )
    shape = stock.lr_lambdas[0]  # the same in every group

    def share_of_peak(_: int) -> float:
        step = fraction() * length
        rise = min(1.0, step / warmup) if args.multiply_warmup and warmup else 1.0
        return shape(step) * rise * share()

    return LambdaLR(optimizer, share_of_peak)  # made anew, so that the very first rate is its own and not the stock's


def renew(scheduler: LambdaLR) -> None:
    """Sets the rate that the schedule has now, where what it is a function of has changed since it was read."""
    rates = [base * shape(0) for base, shape in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    scheduler._last_lr = rates
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def set_paces(optimizer: Any, model: Any) -> None:
    """Gives the parameters of each module with a `learning_rate`, such as gates, a group with that peak, undecayed.

    A module without parameters keeps its group, so that groups are as many before and after they have gone.
    """
    for module in model.modules():
        rate = getattr(module, "learning_rate", None)
        if isinstance(rate, (int, float)):
            own = list(module.parameters())
            ids = {id(parameter) for parameter in own}
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]
            optimizer.add_param_group({"params": own, "lr": float(rate), "weight_decay": 0.0})
