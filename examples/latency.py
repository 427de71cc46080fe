"""Latency of encoders on one batch; models take turns, so that other work on the machine affects all alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hf_effpt.core.errors import EffptError
from hf_effpt.evaluation.masked_logits import evaluation_mode

WARM_UP = 2  # calls of each model that are not counted
CALLS = 5  # calls per round, of which the shortest counts, since other work on the machine only ever adds


@dataclass(frozen=True)
class Latency:
    """Milliseconds that a model takes for one batch: the median over `rounds`, and the quartiles `low` and `high`."""

    median: float
    low: float
    high: float
    rounds: int


def latency(
    models: Mapping[str, PreTrainedModel],
    length: int,
    batch_sizes: Sequence[int] = (1, 32),
    rounds: int = 21,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[int, Latency]]:
    """Measures encoders, without their heads, in evaluation mode on rows of random tokens.

    In every round each model has a turn with a batch of each size; each round begins with another model.

    Args:
        models (`Mapping[str, PreTrainedModel]`): by name, all on one device.
        length (`int`): tokens per row.
        batch_sizes (`Sequence[int]`, *optional*, defaults to (1, 32)): rows per batch.
        rounds (`int`, *optional*, defaults to 21): at least 2.
        now (`Callable`, *optional*): clock in seconds.

    Returns latencies by model and batch size; raises an `EffptError` if a model cannot read the rows, or for too few
    rounds.
    """
    if not models:
        raise EffptError("There is no model to measure; give at least one, by name.")
    for name, model in models.items():
        if length > (most := model.config.max_position_embeddings):
            raise EffptError(f"Rows of {length} tokens are longer than `{name}` can read, {most}; give shorter ones.")
    if rounds < 2:
        raise EffptError(f"rounds={rounds} has no median with quartiles; take at least 2, and better 20.")
    names = list(models)
    seconds: dict[tuple[str, int], list[float]] = {(name, size): [] for name in names for size in batch_sizes}
    generator = torch.Generator().manual_seed(0)
    words = min(model.config.vocab_size for model in models.values())
    device = next(iter(models.values())).device
    batches = {size: torch.randint(words, (size, length), generator=generator).to(device) for size in batch_sizes}

    def once(name: str, size: int) -> float:
        _wait(device)
        began = now()
        models[name].base_model(batches[size])
        _wait(device)
        return now() - began

    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluation_mode(model))
        for name, size in seconds:
            for _ in range(WARM_UP):
                once(name, size)
        for number in range(rounds):
            turn = number % len(names)
            for name in [*names[turn:], *names[:turn]]:
                for size in batch_sizes:
                    seconds[name, size].append(min(once(name, size) for _ in range(CALLS)))
    return {name: {size: _summary(seconds[name, size]) for size in batch_sizes} for name in names}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _summary(seconds: list[float]) -> Latency:
    low, median, high = (1000 * value for value in statistics.quantiles(seconds, n=4, method="inclusive"))
    return Latency(median, low, high, len(seconds))
