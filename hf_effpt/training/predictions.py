"""Logits and labels where a pre-training model predicts, for `compute_metrics` and `predict`."""

from typing import Any

from torch import Tensor, nn
from torch.utils.data import BatchSampler

from hf_effpt.core.errors import EffptError
from hf_effpt.core.objectives import OBJECTIVES, objective_of
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.evaluation.masked_logits import evaluation_mode
from hf_effpt.models.masked_lm import label_count, token_loss


def check_predicts(model: Any, what: str) -> None:
    """Raises `EffptError` if the logits of `model`, which `what` reads, cannot be compared from token to token."""
    if objective_of(model.config) == "mcbert":
        raise EffptError(
            f"{what} reads logits, and a `{type(model).__name__}` chooses among a few candidates that differ from "
            "token to token; leave it out, and measure the exported model (`effpt evaluate`)."
        )


def held_out_collator(trainer: Any) -> DataCollatorForMaskedLM:
    """Masks held-out rows of a run with the masks of every evaluation, whatever the rate in training."""
    shares = OBJECTIVES[objective_of(trainer.model.config)].corruption
    return DataCollatorForMaskedLM(trainer.masking.tokenizer, shares=shares)


def prediction_loader(trainer: Any, rows: Any) -> Any:
    """Returns a loader of masked rows in order, which the stock loop can gather from all processes."""
    stream = trainer.stream
    size = stream.rows_like(trainer.args.per_device_eval_batch_size, rows)
    keys: Any = [(0, row) for row in range(len(rows))]
    batches = BatchSampler(keys, size, drop_last=False)
    return trainer.accelerator.prepare(stream.loader_of(rows, held_out_collator(trainer), batches))


def metrics_of(trainer: Any, rows: Any, ignore_keys: Any, prefix: str) -> dict[str, float]:
    """Computes the metrics of `compute_metrics` on masked rows, of averaged weights if any; without the loss."""
    with trainer.average.applied():
        found = trainer.evaluation_loop(
            prediction_loader(trainer, rows), "Evaluation", ignore_keys=ignore_keys, metric_key_prefix=prefix
        )
    own = (f"{prefix}_loss", f"{prefix}_model_preparation_time")
    return {name: value for name, value in found.metrics.items() if name not in own}


def predict_labels(trainer: Any, inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, logits and labels of a batch, as the stock `prediction_step` returns them.

    Logits have the shape `(batch_size, positions, vocab_size)` at the masked positions; those of a discriminator
    `(batch_size, positions)` at the positions that it judges. Labels, `(batch_size, positions)`, are -100 where
    nothing is predicted.
    """
    model = trainer.model
    check_predicts(model, "`predict`")
    inputs = trainer._prepare_inputs(inputs)
    with evaluation_mode(model), trainer.accelerator.autocast():
        found = model.head_inputs(inputs)
        logits, labels = found.head(found.hidden_BMD)[1].float(), found.labels_BM
        if logits.shape[-1] == 1:
            logits, wanted = logits[..., 0], labels != -100
            loss = nn.functional.binary_cross_entropy_with_logits(logits[wanted], labels[wanted].float())
        else:
            loss = token_loss(logits.flatten(0, 1), labels.flatten()) / label_count(labels)
    return loss, logits, labels
