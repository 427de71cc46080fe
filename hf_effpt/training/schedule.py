"""Learning rate as a function of the fraction of the budget spent."""

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
    """Builds the stock schedule of `args`, read at the clock instead of the number of calls.

    Args:
        args ([`EffptTrainingArguments`]): schedule, warm-up, and `multiply_warmup`.
        optimizer (`torch.optim.Optimizer`): optimizer whose learning rate it sets.
        fraction (`Callable`): returns the fraction of the budget spent.
        length (`int`): steps that the whole budget stands for.
        share (`Callable`, *optional*): returns a factor of the rate, such as a second warm-up.
    """
    warmup = args.get_warmup_steps(length)
    stock: Any = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=0 if args.multiply_warmup else warmup,
        num_training_steps=length,
        scheduler_specific_kwargs=cast("dict | None", args.lr_scheduler_kwargs),  # parsed, no longer a string
    )
    shape = stock.lr_lambdas[0]  # the same in every group

    def share_of_peak(_: int) -> float:
        step = fraction() * length
        rise = min(1.0, step / warmup) if args.multiply_warmup and warmup else 1.0
        return shape(step) * rise * share()

    return LambdaLR(optimizer, share_of_peak)  # a new object, so that the first rate is right too


def renew(scheduler: LambdaLR) -> None:
    """Updates the learning rate after the inputs of its schedule have changed."""
    rates = [base * shape(0) for base, shape in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    scheduler._last_lr = rates
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def set_paces(optimizer: Any, model: Any) -> None:
    """Moves the parameters of modules with a `learning_rate`, such as gates, to groups with that rate and no decay.

    A module without parameters still gets a group, so that the number of groups stays.
    """
    for module in model.modules():
        rate = getattr(module, "learning_rate", None)
        if isinstance(rate, (int, float)):
            own = list(module.parameters())
            ids = {id(parameter) for parameter in own}
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]
            optimizer.add_param_group({"params": own, "lr": float(rate), "weight_decay": 0.0})
