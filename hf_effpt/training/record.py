"""What a run says of itself: the content of `run.json`, from which the model card is written."""

import platform
import shlex
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

import hf_effpt
from hf_effpt.core.context import CostReport
from hf_effpt.core.ledger import ledger_of
from hf_effpt.core.objectives import objective_of
from hf_effpt.models.base import facts_of, pruning_of

from .energy import energy_entry
from .meters import PARTS

if TYPE_CHECKING:
    from .saving import ExportingTrainer


def run_record(trainer: "ExportingTrainer", exported: Any) -> dict[str, Any]:
    """Ledger, clock totals, losses, speed and environment of a run that leaves the stock model `exported`."""
    tool = Path(sys.argv[0]).name
    model, history = trainer.model, trainer.state.log_history
    record = {
        "ledger": ledger_of(model.config),
        "clock": trainer.timekeeper.clock.as_dict(),
        "model": {
            "objective": objective_of(model.config),
            "training_class": type(model).__name__,
            **facts_of(exported),
        },
        "throughput": throughput(history),
        "costs": trainer.costs,
        "method_flops": trainer.method_flops,
        "accounts": accounts(trainer),
        "environment": environment(trainer.args.device),
        "history": history,
        "command": shlex.join([*([] if tool == "effpt" else ["python"]), tool, *sys.argv[1:]]),
    }
    keeper = trainer.timekeeper
    if energy := energy_entry(keeper.clock, keeper.energy, trainer.args.carbon_intensity, keeper.emissions):
        record["energy"] = energy
    if trainer.reference is not None:
        record["reference"] = trainer.reference.record()
    if trainer.lr_scheduler is not None:
        record["learning_rate"] = {
            "peak": trainer.args.learning_rate,
            "final": trainer.lr_scheduler.get_last_lr()[0],
            "clock": trainer.clock.fraction,
        }
    if trainer.evaluation is not None:
        record["evaluation"] = trainer.evaluation
    return record | pruning_of(exported) | trainer.facts


def accounts(trainer: Any) -> dict[str, dict[str, Any]]:
    """What the methods say of what they have cost; those that say something."""
    clock, charged = trainer.clock, trainer.args.charge_methods
    told = {}
    for method in trainer.methods:
        name = method.name
        own = trainer.costs.get(name, 0.0), trainer.method_flops.get(name, 0.0)
        before = trainer.seconds_before(name), trainer.prior.get(name, {}).get("flops", 0.0)
        spent = CostReport(clock.seconds, clock.flops, *own, *before, charged)
        told[method.name] = method.cost_report(trainer.model.backbone, spent)
    return {name: said for name, said in told.items() if said}


def throughput(history: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the log entries of speed, utilisation, and the share of each part of a step."""
    names = {"tokens_per_second": "tokens_per_second", "mfu": "mfu"} | {f"time_{part}": part for part in PARTS}
    found = {short: [entry[name] for entry in history if name in entry] for name, short in names.items()}
    return {name: statistics.median(values) for name, values in found.items() if values}


def environment(device: torch.device) -> dict[str, str]:
    """The versions and the device that a figure depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_effpt": hf_effpt.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})",
    }
