"""No warm step reads a value from the device, for which the host would have to wait; counted on a CPU.

On a GPU each such read lets the device run dry: `.item()`, `bool(tensor)`, `nonzero`, and boolean masks as an index.
"""

from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_effpt.core.objectives import OBJECTIVES
from hf_effpt.core.registry import METHODS
from hf_effpt.training.phases import Phase
from tests import tiny

from .settings import SETTINGS

aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
STEPS, WARM = 6, 3  # of a run, and before what is counted


class Reads(TorchDispatchMode):
    """Counts operations whose result, or its shape, the host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READS or (func in INDEXING and any(_is_mask(index) for index in args[1])):
            self.found[func.name()] += 1
        return func(*args, **(kwargs or {}))


def _is_mask(index):
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def reads_of(tmp_path, ledger=None, objective="mlm", backbone="bert", phases=None):
    """Reads of the steps after the first ones, from the first forward to the methods' `advance`.

    Rows are selected before, by scores that the host needs.
    """
    trainer = tiny.trainer(
        tmp_path, ledger, objective=objective, backbone=backbone, gradient_accumulation_steps=2, logging_steps=100,
        dropout=0.1, budget=f"{STEPS}steps", train_dataset=phases,
    )  # fmt: skip
    reads, steps = Reads(), ExitStack()

    class Watch(tiny.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step >= WARM:
                steps.enter_context(reads)

        def on_step_end(self, args, state, control, **kwargs):
            steps.close()

    trainer.add_callback(Watch())
    trainer.train()
    assert trainer.state.global_step == STEPS
    return reads.found


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives(tmp_path, objective, backbone):
    assert not reads_of(tmp_path, objective=objective, backbone=backbone)


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_next_tokens(tmp_path, backbone):
    rows = tiny.rows()
    phases = [Phase(0.0, rows, objective="clm"), Phase((STEPS - 1) / STEPS, rows, objective="mlm")]
    assert not reads_of(tmp_path, backbone=backbone, phases=phases)


@pytest.mark.parametrize("name", METHODS)
def test_methods(tmp_path, name):
    found = reads_of(tmp_path, {name: SETTINGS[name]})
    # Which rows run is drawn in each gated layer, here two of four, and decides the shape of the next.
    assert found == ({"aten::nonzero": 2 * 2 * (STEPS - WARM)} if name == "layerskip" else {})
