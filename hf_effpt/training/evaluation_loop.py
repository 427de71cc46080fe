"""Metrics of a log entry, and the loss on held-out rows with its floor."""

import time
from typing import Any

import numpy as np
import torch

from hf_effpt.core.metrics import accumulator_of
from hf_effpt.core.objectives import objective_of
from hf_effpt.data.packing import PackedRows
from hf_effpt.evaluation.held_out_loss import held_out_loss, held_out_sums, unigram_floor

from .predictions import metrics_of

CLOCK = ("clock", "tokens", "flops", "seconds", "reference_seconds", "joules")


def logged_metrics(model: Any, accelerator: Any) -> dict[str, float]:
    """Metrics of a log entry besides the loss, over all processes: parts of the loss and metrics of methods."""
    sums = accumulator_of(model.backbone).take()
    if not sums:
        return {}
    names = sorted(sums)
    together = accelerator.reduce(torch.stack([sums[name].to(model.device) for name in names]))
    values = dict(zip(names, together.tolist(), strict=True))
    metrics = model.metrics(values)
    for method in model.methods:
        metrics |= method.metrics(model.backbone, values)
    return metrics


def clock_entries(trainer: Any, logs: dict[str, float]) -> dict[str, float]:
    """Further entries of `logs`: beside a loss the clock, and beside that of training speed and parts of a step."""
    found: dict[str, float] = {}
    if "loss" in logs:
        cost = trainer.cost
        cost.meter.seconds += cost.timekeeper.settle()
        with cost.timekeeper.paused():
            found |= cost.meter.summary(cost.dtype, devices=trainer.args.world_size)
            found |= logged_metrics(trainer.model, trainer.accelerator)
            trainer.selection.note_device_time(trainer.row_methods)
        cost.meter.reset()
    if any(name.endswith("loss") for name in logs | found if name != "train_loss"):  # it has its own totals
        totals = trainer.clock.as_dict() | {"clock": trainer.clock.fraction}
        found |= {name: totals[name] for name in CLOCK if totals[name] is not None}
    return found


def held_out_metrics(trainer: Any, rows: Any, ignore_keys: Any, prefix: str) -> dict[str, float]:
    """Evaluates packed rows as [`evaluate_rows`] does and returns what `Trainer.evaluate` has to.

    That is the exact loss, the metrics of `compute_metrics` if there is one, and the seconds that it took.
    """
    began = time.perf_counter()
    trainer.evaluation = evaluate_rows(trainer, rows) | {"step": trainer.state.global_step}
    metrics = {f"{prefix}_loss": trainer.evaluation["held_out_loss"]}
    if trainer.compute_metrics is not None and not trainer.args.prediction_loss_only:
        metrics |= metrics_of(trainer, rows, ignore_keys, prefix)
    return metrics | {f"{prefix}_runtime": time.perf_counter() - began}


def evaluate_rows(trainer: Any, rows: Any) -> dict[str, Any]:
    """Computes the held-out loss of packed rows, exact over all processes, and its floor; of averaged weights if any.

    Returns:
        `objective`; `held_out_loss`, in nats per token or masked token, and the `floor` that it must be below;
            `masked_tokens`; `unigram_floor`, the loss of predicting masked tokens from token frequencies alone;
            metrics of a generator, such as `generator_loss`; `held_out_loss_{name}` for each other way that a method
            can run the model, and with an average for the `last_weights`.
    """
    with trainer.average.applied() as averaged:
        evaluation = _evaluate(trainer, rows)
    if averaged:
        model, masked = trainer.model, evaluation["masked_tokens"]
        evaluation["held_out_loss_last_weights"] = _loss_in(model, _held_out(trainer, rows)[0], masked)
    return evaluation


def _evaluate(trainer: Any, rows: Any) -> dict[str, Any]:
    """Evaluates the present weights."""
    model = trainer.model
    sums, counts = _held_out(trainer, rows)
    masked = int(counts.sum())
    evaluation: dict[str, Any] = {"objective": objective_of(model.config), "masked_tokens": masked}
    floor = None
    if trainer.train_dataset is not None and PackedRows.fits(trainer.train_dataset):
        specials = trainer.masking.tokenizer.all_special_ids
        floor = evaluation["unigram_floor"] = unigram_floor(PackedRows(trainer.train_dataset), counts, specials)
    metrics: dict[str, Any] = {"held_out_loss": _loss_in(model, sums, masked)}
    if model.main_loss_name is None:
        metrics["floor"] = floor
    else:
        found = model.metrics(sums)
        metrics |= {**found, "floor": model.floor(found, floor)}
    for module in model.backbone.children():
        policies = module.evaluation_policies(model.backbone) if hasattr(module, "evaluation_policies") else {}
        for name, policy in policies.items():
            with policy():
                metrics[f"held_out_loss_{name}"] = _loss_in(model, _held_out(trainer, rows)[0], masked)
    return evaluation | {name: value for name, value in metrics.items() if value is not None}


def _held_out(trainer: Any, rows: Any) -> tuple[dict[str, float], np.ndarray]:
    """Sums of loss and metrics, and masked count by token id, over all processes."""
    model, loader = trainer.model, trainer.get_eval_dataloader(rows)
    if model.main_loss_name is None:
        found = held_out_loss(model, loader)
        sums, counts = {"loss": found.total}, found.label_counts
    else:
        sums, counts = held_out_sums(model, loader)
    together = np.concatenate([list(sums.values()), counts])
    together = trainer.accelerator.reduce(torch.tensor(together, device=trainer.args.device)).cpu().numpy()
    return dict(zip(sums, together[: len(sums)].tolist(), strict=True)), together[len(sums) :]


def _loss_in(model: Any, sums: dict[str, float], masked: int) -> float:
    return sums["loss"] / masked if model.main_loss_name is None else model.metrics(sums)[model.main_loss_name]
