"""Optimizer of the published BERT and ELECTRA, and learning rate as a function of the fraction of the budget spent."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.optimization import get_scheduler

from .arguments import EffptTrainingArguments
from .branches import STABLE_DECAY, decay_share
from .muon import MUON, Muon, give_matrices, muon_arguments


class UncorrectedAdamW(torch.optim.AdamW):
    """AdamW without bias correction of its running averages (Clark et al., 2020, `optimization.py`).

    m ← β₁·m + (1 - β₁)·g, v ← β₂·v + (1 - β₂)·g², p ← p - lr·(m / (√v + ε) + decay·p). With betas 0.9 and 0.999,
    update 10 of a parameter is 6.5 times that of Adam, update 100 3.2 times, update 1000 1.26 times. A long warm-up
    hides this, except in layers added later. Takes the arguments of [`torch.optim.AdamW`] but `amsgrad`.
    """

    def _init_group(self, group: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        # An infinite step makes the corrections 1 - β^step equal to 1 in all stock kernels, fused or not.
        for parameter in group["params"]:
            if parameter.grad is not None and not (state := self.state[parameter]):
                on_device = group["fused"] or group["capturable"]
                device = parameter.device if on_device else torch.device("cpu")  # as in the stock class
                state["step"] = torch.tensor(math.inf, dtype=torch.float32, device=device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return super()._init_group(group, *args, **kwargs)


def optimizer_class(args: EffptTrainingArguments, model: Any = None) -> tuple[Any, dict[str, Any]]:
    """Returns the class and arguments of the stock optimizer, of Muon, or of AdamW without bias correction."""
    if args.optim == MUON:
        return Muon, muon_arguments(args)
    kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
    return (kind if args.bias_correction else UncorrectedAdamW), kwargs


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
    kwargs: Any = args.lr_scheduler_kwargs  # parsed, no longer a string
    if args.lr_scheduler_type == STABLE_DECAY:
        kwargs = (kwargs or {}) | {"num_decay_steps": round(decay_share(args) * length)}
    stock: Any = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=0 if args.multiply_warmup else warmup,
        num_training_steps=length,
        scheduler_specific_kwargs=kwargs,
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


def decaying(model: Any, names: Iterable[str] | None = None) -> list[str]:
    """Parameters that weight decay acts on: of `names`, or all; none of modules with a true `no_weight_decay`."""
    spared = {
        parameter
        for module in model.modules()
        if getattr(module, "no_weight_decay", False)
        for parameter in module.parameters()
    }
    names = (name for name, _ in model.named_parameters()) if names is None else names
    return [name for name in names if model.get_parameter(name) not in spared]


def point_at(optimizer: Any, fresh: Any) -> None:
    """Gives an optimizer the parameters of a `fresh` one with as many groups; those that stay keep their state."""
    for group, new in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        group["params"] = new["params"]
    present = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for gone in [parameter for parameter in optimizer.state if parameter not in present]:
        del optimizer.state[gone]


def make_groups(optimizer: Any, model: Any) -> None:
    """Moves parameters of `model` to groups of their own: matrices of Muon, and modules with a `learning_rate`.

    These, such as gates, have that rate and no decay. One without parameters still gets a group, so that the number
    of groups stays.
    """
    if isinstance(optimizer, Muon):
        give_matrices(optimizer, model)
    for module in model.modules():
        rate = getattr(module, "learning_rate", None)
        if isinstance(rate, (int, float)):
            own = list(module.parameters())
            ids = {id(parameter) for parameter in own}
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]
            optimizer.add_param_group({"params": own, "lr": float(rate), "weight_decay": 0.0})
