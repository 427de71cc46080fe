"""Runs with selection in the small world, and what they did."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_effpt.methods.selection.pool import Pool
from hf_effpt.methods.selection.strategies import STRATEGIES
from hf_effpt.training.trainer import EffptTrainer
from tests import tiny

ALWAYS = {"start": 0.0, "end": 1.0, "interrupt": 0, "warmup": 0}
SEED = 3


def selection(strategy: str = "random", **settings: Any) -> dict[str, Any]:
    """A ledger with selection in every step."""
    return {"selection": {"strategy": strategy, **ALWAYS, **settings}}


def compared(strategy: str, holdout: Path | str) -> dict[str, str]:
    """The settings that a strategy cannot do without."""
    return {} if STRATEGIES[strategy].compares is None else {"holdout": str(holdout)}


def trained(out: Path, rows: Any = None, **settings: Any) -> Path:
    """The folder of a small masked language model, with its `run.json`."""
    trainer = tiny.trainer(out, layers=2, **settings)
    if rows is not None:
        trainer.train_dataset = rows
    trainer.train()
    trainer.save_model()
    return out


def pool(seen: Any = None, ids: Any = None, step: int = 0, fraction: float = 0.5, number: int = 0) -> Pool:
    """Rows with these scores, losses or vectors."""
    seen = None if seen is None else torch.as_tensor(seen)
    count = number if seen is None else len(seen)
    ids_N = torch.arange(count) if ids is None else torch.as_tensor(ids)
    return Pool(ids_N * 1_000_003 + 17, ids_N, seen, step, fraction, SEED)


class Watched(EffptTrainer):
    """Notes which rows each step has looked at and kept, and that no global generator has moved meanwhile."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.looked: list[list[tuple[int, int]]] = []
        self.kept: list[list[int]] = []
        self.kept_in: list[list[int]] = []
        super().__init__(*args, **kwargs)
        pull, self._select = self.stream.pull, self.selection.select
        self.stream.pull = lambda batches, number: self.seen(pull(batches, number))
        self.selection.select = self.watched

    def seen(self, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.looked.append(list(zip(rows["epoch"].tolist(), rows["example_id"].tolist(), strict=True)))
        return rows

    def watched(self, model: Any, methods: Any, *args: Any) -> list[dict]:
        (method,) = methods
        select = type(method).select

        def noting(model: Any, rows: Any, context: Any) -> Any:
            before = generators()
            found = select(method, model, rows, context)
            assert all(np.array_equal(a, b) for a, b in zip(before, generators(), strict=True))
            self.kept.append(found["example_id"].tolist())
            self.kept_in.append(found["epoch"].tolist())
            return found

        method.select = noting
        try:
            return self._select(model, methods, *args)
        finally:
            del method.select


def generators() -> list[Any]:
    """The states of the global generators."""
    return [torch.get_rng_state().numpy(), np.random.get_state()[1], np.array(random.getstate()[1])]


def run(out: Path, ledger: Any, cls: type[EffptTrainer] = Watched, train: bool = True, **settings: Any) -> Any:
    """The trainer of a small model, with its run unless it is not to be trained yet."""
    trainer = tiny.trainer(out, ledger, cls=cls, **{"layers": 2, **settings})
    if train:
        trainer.train()
    return trainer


def assert_same_run(straight: EffptTrainer, again: EffptTrainer) -> None:
    """Weights, what methods remember, and what was charged, bit for bit."""
    ours, theirs = straight.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert straight.clock.tokens == again.clock.tokens
    assert straight.clock.flops == again.clock.flops
    assert straight.cost.method_flops == again.cost.method_flops


def never(*args: Any, **kwargs: Any) -> None:
    """In the place of what is not to happen."""
    raise AssertionError("it has happened")
