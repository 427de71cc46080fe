"""Counted FLOPs beside those of the real training step; run as a module, a table of them for every method.

    python -m tests.contract.flops

Tests call it as well.
"""

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_effpt.core.depth import router_of
from hf_effpt.training.flops import FlopCounter
from tests import tiny

from .settings import SETTINGS, VARIANTS, allowed

VARIED = ("plain", "checkpointing", "smoothing")  # smoothing with the masked-language objective only
# Methods that change what is computed anew without saved activations, or which rows a layer computes.
INTO_LAYERS = ("none", "earlybert", "layerskip", "compress, distilled", "append_top")
# Further settings that change which products a step has: what is frozen, who else runs, what a layer computes.
OTHERS = ("append_top", "compress, distilled", "supermask")


class Count(NamedTuple):
    """FLOPs of a micro-batch, as charged and as measured."""

    variant: str
    charged: float
    real: float


def ledgers(objective: str) -> dict[str, dict[str, dict]]:
    """Ledgers to count by name: none, each method, and with the masked-language objective further settings."""
    alone = {name: {name: settings} for name, settings in SETTINGS.items() if allowed({name: settings})}
    others = {name: VARIANTS[name] for name in OTHERS if objective in ("mlm", "modernbert")}
    return {"none": {}, **alone, "append_top": VARIANTS["append_top"], **others}


def variants_of(objective: str, name: str) -> tuple[str, ...]:
    """Variants that the ledger `name` is tested in: all, if it changes what a layer computes, else the plain one."""
    every = VARIED if objective in ("mlm", "modernbert") else VARIED[:2]
    return every if name in INTO_LAYERS else every[:1]


def count_run(
    folder: Path, objective: str, ledger: dict[str, dict], counter: FlopCounter, variants: tuple[str, ...]
) -> list[Count]:
    """Counts of a run of eight steps, each of a micro-batch of every variant; `modernbert` is `mlm` on that backbone.

    Micro-batches of a variant that are charged alike are measured once, since measuring takes longer than a step.
    """
    smoothing = {"label_smoothing_factor": 0.1} if "smoothing" in variants else {}
    backbone, objective = ("modernbert", "mlm") if objective == "modernbert" else ("bert", objective)
    trainer: Any = tiny.trainer(
        folder, ledger, objective=objective, backbone=backbone, per_device_train_batch_size=2,
        gradient_accumulation_steps=len(variants), counter=counter, **smoothing,
    )  # fmt: skip
    trainer.model.set_attn_implementation("eager")  # all of its products are counted
    measured: dict[tuple, int] = {}
    counts: list[Count] = []
    measuring = contextlib.ExitStack()
    train, charge = trainer.training_step, trainer.cost.charge_micro_batch

    def training_step(model, inputs, items=None):
        variant = variants[len(counts) % len(variants)]
        tiny.checkpointing(trainer.model, on=variant == "checkpointing")
        trainer.model.label_smoothing = 0.1 if variant == "smoothing" else 0.0
        # Rows are routed within the step, which is therefore measured.
        known = None if router_of(trainer.model.backbone) else (variant, counter.count(trainer.model.train(), inputs))
        if known in measured:
            loss = train(model, inputs, items)
        else:
            real = measuring.enter_context(FlopCounterMode(display=False))
            loss = train(model, inputs, items)
            measured[known or (variant, len(counts))] = real.get_total_flops()
        counts.append(Count(variant, trainer.cost.micro_flops, measured[known or (variant, len(counts))]))
        return loss

    def charge_micro_batch(model, inputs):
        measuring.close()  # the counter's own work is not the step's
        charge(model, inputs)

    trainer.training_step, trainer.cost.charge_micro_batch = training_step, charge_micro_batch
    trainer.train()
    return counts


def main() -> None:
    torch.set_num_threads(1)
    print("| objective | methods | variant | charged | measured | measured / charged |\n|---|---|---|---:|---:|---:|")
    for objective in ("mlm", "modernbert", "electra", "mcbert"):
        counter = FlopCounter()
        for name, ledger in ledgers(objective).items():
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                variants = VARIED if objective in ("mlm", "modernbert") else VARIED[:2]
                counts = count_run(Path(folder), objective, ledger, counter, variants)
            for variant in variants:
                charged = sum(count.charged for count in counts if count.variant == variant)
                real = sum(count.real for count in counts if count.variant == variant)
                row = (objective, name, variant, f"{charged:,.0f}", f"{real:,}", f"{real / charged:.6f}")
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
