"""Content of `run.json`, from which the model card is written."""

import platform
import shlex
import statistics
import sys
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_effpt.core.errors import EffptError
from hf_effpt.core.ledger import ledger_of
from hf_effpt.core.objectives import objective_of
from hf_effpt.data.packed_rows import PackedRows
from hf_effpt.hub.private import words_without_secrets
from hf_effpt.models.base import facts_of, pruning_of
from hf_effpt.models.encoder_inputs import way_apart

from .energy import energy_entry
from .meters import PARTS
from .phases import facts_of_phases
from .resuming import changes_in


def run_record(trainer: Any, exported: Any) -> dict[str, Any]:
    """Ledger, clock totals, losses, speed and environment of a run that leaves the stock model `exported`."""
    tool = Path(sys.argv[0]).name
    model, history = trainer.model, trainer.state.log_history
    own = {"objective": objective_of(model.config), "training_class": type(model).__name__}
    record = {
        "name": Path(trainer.args.output_dir).absolute().name,
        "ledger": ledger_of(model.config),
        "clock": trainer.clock.as_dict(),
        "attention": attention_record(trainer),
        "model": own | facts_of(exported),
        "throughput": throughput(history),
        "costs": trainer.cost.method_seconds,
        "method_flops": trainer.cost.method_flops,
        "accounts": cost_reports(trainer),
        "data": data_record(trainer),
        "environment": environment(trainer.args.device),
        "history": history,
        "command": shlex.join([*([] if tool == "effpt" else ["python"]), tool, *words_without_secrets(sys.argv[1:])]),
    }
    keeper = trainer.cost.timekeeper
    if energy := energy_entry(keeper.clock, keeper.energy, trainer.args.carbon_intensity, keeper.emissions):
        record["energy"] = energy
    if trainer.cost.start is not None:
        record["start"] = trainer.cost.start
    if trainer.cost.reference_time is not None:
        record["reference"] = trainer.cost.reference_time.record()
    if trainer.lr_scheduler is not None:
        record["learning_rate"] = {
            "peak": trainer.args.learning_rate,
            "final": trainer.lr_scheduler.get_last_lr()[0],
            "clock": trainer.clock.fraction,
        }
    if len(trainer.saver.parts) > 1:
        record["parts"] = changes_in(trainer.saver.parts)
    if trainer.guard.steps:
        record["skipped"] = trainer.guard.record()
    if trainer.average.settings is not None:
        record["average"] = asdict(trainer.average.settings) | {"weights": len(trainer.average.held)}
    if trainer.evaluation is not None:
        record["evaluation"] = trainer.evaluation
    return record | pruning_of(exported) | trainer.facts


def data_record(trainer: Any) -> dict[str, Any]:
    """Facts of the training rows; only their number for rows that were not made by `pack`, or are a part of those."""
    phases = trainer.stream.phases
    found = {} if phases[0].rows is None else {"rows": len(phases[0].rows)}
    with suppress(EffptError, AttributeError):
        packed = facts_of_phases(phases)
        found = packed if packed["rows"] == found["rows"] else found
    return found


def attention_record(trainer: Any) -> dict[str, str]:
    """The attention `implementation`, and with isolated rows how they keep their `documents` apart."""
    found, rows = {"implementation": trainer.model.config._attn_implementation}, trainer.stream.phases[-1].rows
    if PackedRows.fits(rows) and "document_ids" in rows.column_names:
        with trainer.cost.autocast():
            found["documents"] = way_apart(trainer.model, PackedRows(rows).sequence_length)
    return found


def cost_reports(trainer: Any) -> dict[str, dict[str, Any]]:
    """Cost reports of the row-selection methods by name, without empty ones."""
    backbone, cost = trainer.model.backbone, trainer.cost
    found = {method.name: method.cost_report(backbone, cost.report(method.name)) for method in trainer.row_methods}
    return {name: report for name, report in found.items() if report}


def throughput(history: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the log entries of speed, utilisation, and the share of each part of a step."""
    names = {"tokens_per_second": "tokens_per_second", "mfu": "mfu"} | {f"time_{part}": part for part in PARTS}
    found = {short: [entry[name] for entry in history if name in entry] for name, short in names.items()}
    return {name: statistics.median(values) for name, values in found.items() if values}


def environment(device: torch.device) -> dict[str, str]:
    """Software versions and the device."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_effpt": version("hf_effpt"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})",
    }
