"""How many graphs compiled layers cost while depth varies: in the real Trainer, with a backend that only counts.

The first step compiles one graph, which serves all layers of one shape.
"""

import pytest
from transformers import TrainerCallback

from hf_effpt.core.depth import stack_of
from hf_effpt.methods.stacking.ligo import learn_growth
from tests import tiny
from tests.unit.methods.skipping import HALF, decisions, gated, ragged, started

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks at it while it traces


class Watch(TrainerCallback):
    """After each step: how many layers the model has, which of them ran, and how many graphs there are."""

    def __init__(self, trainer, counter):
        self.trainer, self.counter = trainer, counter
        self.depths, self.ran, self.graphs = [], [], []

    def on_optimizer_step(self, args, state, control, **kwargs):
        stack = stack_of(self.trainer.model.backbone)
        self.depths.append(len(stack.order))
        self.ran.append(stack.active)
        self.graphs.append(self.counter.frame_count)


def watched(tmp_path, counter, ledger, budget="16steps", **changes):
    trainer = tiny.trainer(tmp_path, ledger, compile_layers=True, budget=budget, **changes)
    watch = Watch(trainer, counter)
    trainer.add_callback(watch)
    trainer.train()
    return watch


def added(watch):
    """How many graphs came with each growth."""
    starts = [step for step in range(1, len(watch.depths)) if watch.depths[step] > watch.depths[step - 1]]
    ends = [*starts[1:], len(watch.depths)]
    return [watch.graphs[end - 1] - watch.graphs[start - 1] for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize(
    ("operator", "at", "objective"),
    [
        ("stack", [0.3, 0.6], "mlm"),
        ("stack", [0.3, 0.6], "electra"),
        ("interpolate", [0.3, 0.6], "mlm"),
        ("midas", [0.2, 0.5, 0.7], "mlm"),
        ("ligo_depth", [0.3, 0.6], "mlm"),
    ],
)
def test_a_growth_adds_at_most_one_graph(tmp_path, counter, operator, at, objective, monkeypatch):
    monkeypatch.setitem(learn_growth.__kwdefaults__, "steps", 2)
    ledger = {"stacking": {"depth": 2, "at": at, "operator": operator}}
    watch = watched(tmp_path, counter, ledger, layers=8, objective=objective)
    assert watch.graphs[0] == 1
    assert len(added(watch)) == len(at)
    assert max(added(watch)) <= 1


def test_even_a_single_layer_at_the_start(tmp_path, counter):
    """In a masked-language model it computes masked positions only, which is not compiled; the graph comes later."""
    watch = watched(tmp_path, counter, {"stacking": {"depth": 1, "at": [0.3, 0.6]}})
    assert watch.graphs[0] == 0
    assert added(watch) == [1, 0]


@pytest.mark.parametrize(
    "layerdrop",
    [
        {"p": 0.5},
        {"p": 0.5, "group": 2},
        {"rate": "pld", "p": 0.7},
        {"rate": "progressive", "p": 0.5},
        {"p": 0.4, "heads": 0.3},
    ],
    ids=["constant", "groups", "pld", "progressive", "heads"],
)
def test_draws_of_layerdrop_share_one_graph(tmp_path, counter, layerdrop):
    watch = watched(tmp_path, counter, {"layerdrop": layerdrop}, "40steps", layers=6)
    assert len(set(watch.ran)) > 5
    assert max(watch.graphs) == watch.graphs[-1] == 1


def test_append_top_adds_two_graphs_once(tmp_path, counter):
    """Of layers that do not learn, and of the first one that does, whose input has no gradient."""
    stacking = {"operator": "append_top", "depth": 3, "at": [0.25, 0.5, 0.7], "joint_at": 0.85}
    watch = watched(tmp_path, counter, {"stacking": stacking}, layers=12)
    assert watch.depths[-1] == 12
    assert added(watch) == [2, 0, 0]  # the last of them includes the stage in which all learn


def test_numbers_of_skipping_rows_share_graphs(counter):
    """There is one graph for one row, one for all, and one for any other number of rows."""
    model = gated(HALF)
    for layer in stack_of(model.bert).children():
        layer.compile()
    inputs, seen = ragged(), set()
    inputs.pop("labels")
    for step in range(60):
        started(model, step)
        model(**inputs).logits.sum().backward()
        seen |= set(decisions(model).sum(dim=1).int().tolist())
        if step == 29:
            early = counter.frame_count
    assert len(seen) > 4
    assert 0 < counter.frame_count == early <= 12
