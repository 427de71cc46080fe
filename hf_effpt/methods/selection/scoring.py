"""Inputs of strategies, computed by charged forward passes.

B rows of a batch, M positions per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_effpt.core.context import Batch
from hf_effpt.core.head_inputs import HeadInputs
from hf_effpt.core.padding import real_tokens
from hf_effpt.core.random import row_keys
from hf_effpt.core.row_method import SelectionContext
from hf_effpt.core.token_losses import recording_losses, row_losses

from .strategy import Scorer, Strategy

LAYERS: dict[Scorer, int | None] = {"embedding": 0, "first_layer": 1, "full": None}  # layers run per scorer


def scores(strategy: Strategy, model: Any, rows: Batch, context: SelectionContext) -> Tensor:
    """Scores of rows, `(rows,)`, for strategies that see logits or losses; vectors, `(rows, size)`, for others."""
    scorer, input_kind = strategy.resolved.scorer, strategy.input_kind
    assert scorer is not None
    if input_kind == "logits":
        strategy.salts = (context.run.seed, context.run.step)
        thorough = strategy.resolved.level == "full" and hasattr(strategy, "rate_draws")
        work = partial(_rated_by_draws if thorough else _rated, strategy, scorer)
    elif input_kind == "losses":
        work = partial(_losses, scorer)
    else:
        work = partial(_vectors, LAYERS[scorer])
    return context.score_rows(cost_key(strategy), work, rows)


def cost_key(strategy: Strategy) -> str:
    """Name of the scoring work, a key of stored times: equal names mean equal work on equal shapes."""
    resolved = strategy.resolved
    if strategy.input_kind != "logits":
        return f"{strategy.input_kind} {resolved.scorer}"
    return (
        f"{type(strategy).__name__} {resolved.rule} {resolved.scorer} passes {resolved.passes} {resolved.level} "
        f"positions {resolved.num_score_positions or 'all'}"
    )


def _read(scorer: Scorer, model: Any, batch: Batch) -> HeadInputs:
    return model.head_inputs(batch, layers=LAYERS.get(scorer), of_generator=scorer == "generator")


def _rated(strategy: Any, scorer: Scorer, model: Any, batch: Batch) -> Tensor:
    ids_BL = batch["input_ids"]
    real_BL = real_tokens(ids_BL, batch.get("attention_mask"), batch.get("document_ids"))
    strategy.keys_B = row_keys(ids_BL, real_BL)
    return strategy.rate(_read(scorer, model, batch).subsample(strategy.resolved.num_score_positions))


def _rated_by_draws(strategy: Any, scorer: Scorer, model: Any, batch: Batch) -> Tensor:
    def draws() -> Iterator[HeadInputs]:
        for number in range(strategy.resolved.passes):
            with dropping(model, strategy.resolved.dropout, hash((*strategy.salts, number)) & 0x7FFFFFFF):
                yield _read(scorer, model, batch).subsample(strategy.resolved.num_score_positions)

    return strategy.rate_draws(draws())


@contextmanager
def dropping(model: nn.Module, rate: float, seed: int) -> Iterator[None]:
    """Dropout at this rate, in a model in evaluation mode; global random state is restored."""
    device = next(model.parameters()).device
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    # Attention applies dropout itself, at the rate of its module.
    holders = [module for module in model.modules() if isinstance(getattr(module, "dropout", None), nn.Dropout)]
    before = [module.p for module in layers]
    try:
        for module in layers:
            module.p = rate
        for module in (*layers, *holders):
            module.training = True
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if device.type != "meta":
                torch.manual_seed(seed)
            yield
    finally:
        for module, p in zip(layers, before, strict=True):
            module.p = p
        for module in (*layers, *holders):
            module.training = False


def _losses(scorer: Scorer, model: Any, batch: Batch) -> Tensor:
    return row_losses(model, dict(batch)) if scorer == "full" else losses_of(_read(scorer, model, batch))


def losses_of(reading: HeadInputs) -> Tensor:
    """Mean loss of each row over its labels, fp32 of shape `(batch_size,)`."""
    _, logits_BMV = reading.head(reading.hidden_BMD)
    logits_BMV, labelled_BM = logits_BMV.float(), reading.labelled_BM
    answers_BM = reading.labels_BM.clamp(min=0)
    if logits_BMV.shape[-1] == 1:
        losses_BM = nn.functional.binary_cross_entropy_with_logits(
            logits_BMV[..., 0], answers_BM.float(), reduction="none"
        )
    else:
        losses_BM = nn.functional.cross_entropy(logits_BMV.flatten(0, 1), answers_BM.flatten(), reduction="none")
    losses_BM = losses_BM.view_as(labelled_BM) * labelled_BM
    return losses_BM.sum(dim=1) / labelled_BM.sum(dim=1).clamp(min=1)


def _vectors(layers: int | None, model: Any, batch: Batch) -> Tensor:
    return model.mean_pool(batch, layers).float()


def reference_losses(
    model: nn.Module, rows: Batch, context: SelectionContext, tokens: bool, known: Tensor | None = None
) -> Tensor:
    """Losses of a reference model: `(rows,)`, or with `tokens` `(rows, positions)`; `known` ones are only charged."""
    if tokens:
        return context.score_rows("losses of tokens", _token_losses, rows, model)
    return context.score_rows("losses of rows", partial(_losses, "full"), rows, model, known)


def _token_losses(model: Any, batch: Batch) -> Tensor:
    with recording_losses(model.backbone) as heard:
        model(**batch)
    return heard[-1].losses_N.view(heard[-1].rows, -1)
