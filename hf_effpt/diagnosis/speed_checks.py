"""Checks of the speed of a run, from [`RunFacts`]."""

from .finding import Finding
from .run_facts import RunFacts

WAITING = 0.2  # share of a step that waits for data
IDLE = 0.1  # utilisation below which the device waits for the host, on the average of a run


def data_bound(run: RunFacts) -> Finding | None:
    """Steps that wait for data."""
    if (share := run.speed.get("data", 0.0)) < WAITING:
        return None
    return Finding(
        "data-bound",
        "warning",
        f"{share:.0%} of the time goes into reading and masking rows.",
        "The device waits meanwhile, for the same money.",
        run.again("--training.dataloader_num_workers 2"),
    )


def launch_bound(run: RunFacts) -> Finding | None:
    """A device that does far less than it can."""
    mfu = run.speed.get("mfu")
    if mfu is None or mfu >= IDLE or data_bound(run):
        return None
    training = run.recipe.get("training") or {}
    rows = training.get("per_device_train_batch_size") or 8
    accumulated = training.get("gradient_accumulation_steps") or 1
    more = 2 * rows if accumulated == 1 else rows * accumulated
    flags = [f"--training.per_device_train_batch_size {more}", "--training.gradient_accumulation_steps 1"]
    if "cpu" not in run.device and not (training.get("bf16") or training.get("fp16")):
        flags.append("--training.bf16 true")
    if not training.get("compile_layers"):
        flags.append("--training.compile_layers true")
    return Finding(
        "launch-bound",
        "warning",
        f"The run does {mfu:.1%} of the matrix products that {run.device or 'its device'} can do in that time.",
        "Kernels are too small to fill the device, or other work shares it, so that the time goes into starting them.",
        run.again(*flags),
    )
