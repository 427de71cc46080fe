from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from hf_effpt.core.method import Paper
from hf_effpt.core.registry import METHODS, register
from hf_effpt.core.row_method import RowMethod


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are made, but not drawn into their files, which takes most of the time."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda self, path, **kwargs: path.touch())


@pytest.fixture
def picking():
    """A method that picks rows and has to be compared with rows at random, registered while a test runs."""

    @dataclass
    class Picking(RowMethod):
        name = "picking"
        summary = "Picks rows."
        paper = Paper("P", "A", 2026, "@misc{p}")

        strategy: str = "best"
        keep: float | None = None
        start: float | None = None
        end: float | None = None
        interrupt: int | None = None
        warmup: int | None = None

        def __post_init__(self):
            early = self.strategy == "early"
            usual = {"keep": 0.75 if early else 0.5, "start": 0.0 if early else 0.5, "end": 0.9, "interrupt": 2}
            given = {name: getattr(self, name) for name in usual if getattr(self, name) is not None}
            self.resolved = SimpleNamespace(**usual | given)

        @property
        def control(self):
            keep = self.resolved.keep
            same = {key: getattr(self.resolved, key) for key in ("start", "end", "interrupt")}
            return None if self.strategy == "random" or keep == 1 else {"strategy": "random", "keep": keep, **same}

        def select(self, model, rows, context):
            return rows

    before = dict(METHODS)
    yield register(Picking)
    METHODS.pop("picking")
    assert before == dict(METHODS)
