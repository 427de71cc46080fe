"""Settings of a resumed run: those that changed take effect, or are refused, and each part of the run is recorded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from hf_effpt.core.errors import EffptError
from hf_effpt.core.settings import plain

from .arguments import OPTIMIZER_SETTINGS, EffptTrainingArguments
from .muon import MUON
from .optimization import renew

# Settings that may change when a run is resumed and that its result depends on.
RECORDED = (
    "budget max_steps num_train_epochs learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay "
    "adam_beta1 adam_beta2 adam_epsilon optim_args max_grad_norm label_smoothing_factor per_device_train_batch_size "
    "gradient_accumulation_steps bf16 fp16 charge_methods"
).split()
ADAMW = ("adamw_torch", "adamw_torch_fused")  # which have the same state


def check_same(found: Mapping[str, Any], args: EffptTrainingArguments, checkpoint: Path) -> None:
    """Raises `EffptError` if a run with `args` cannot go on from what `checkpoint` tells of its run in `found`.

    That is another order of the rows, another optimizer, or another of `OPTIMIZER_SETTINGS`.
    """
    now = identity_of(args)
    # Older checkpoints tell less.
    before = OPTIMIZER_SETTINGS | {name: found[name] for name in now if name in found}
    for name, saved in before.items():
        if saved != now[name] and not (name == "optim" and {saved, now[name]} <= {*ADAMW}):
            written = str(saved).lower() if isinstance(saved, bool) else saved
            raise EffptError(
                f"{checkpoint} was saved with `{name}: {written}`, which its state is made for, and it is now "
                f"{now[name]}; resume with that setting."
            )
    if "optim" not in before and (saved := found.get(MUON, False)) != (args.optim == MUON):
        was = "with `optim: muon`" if saved else "with another optimizer than `muon`"
        raise EffptError(f"{checkpoint} was saved {was}, and Muon has a state of its own; resume with that optimizer.")


def identity_of(args: EffptTrainingArguments) -> dict[str, Any]:
    """Settings that have to stay the same, as checkpoints hold them."""
    order = args.seed if args.data_seed is None else args.data_seed
    return {name: getattr(args, name) for name in OPTIMIZER_SETTINGS} | {
        "optim": plain(args.optim),
        "data_seed": order,
    }


def parts_of(args: EffptTrainingArguments, totals: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Parts of a run, each with the `step` that it begins at and its `settings`; `totals` are a checkpoint's."""
    parts = list((totals or {}).get("parts") or [])
    now = {name: plain(getattr(args, name)) for name in RECORDED}
    if not parts or parts[-1]["settings"] != now:
        parts.append({"step": (totals or {}).get("steps", 0), "settings": now})
    return parts


def changes_in(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each part after the first the `step` that it begins at, and the settings that it changed, old and new."""
    return [
        {"step": part["step"]}
        | {name: [before["settings"].get(name), value] for name, value in part["settings"].items()
           if before["settings"].get(name) != value}
        for before, part in pairwise(parts)
    ]  # fmt: skip


@contextmanager
def settings_taking_effect(optimizer: Any, scheduler: LambdaLR, changed: bool) -> Iterator[None]:
    """Context in which the states of both are loaded; if settings `changed`, those of now replace those loaded."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
    asked = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    rates = list(scheduler.base_lrs)
    yield
    if changed:
        for group, settings in zip(optimizer.param_groups, asked, strict=True):
            group |= settings
        scheduler.base_lrs = rates
        renew(scheduler)
