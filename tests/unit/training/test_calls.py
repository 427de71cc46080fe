"""Python calls of an optimizer step, so that bookkeeping does not come to dominate it."""

import sys
from pathlib import Path

import pytest

import hf_effpt
from tests import tiny

PACKAGE = str(Path(hf_effpt.__file__).parent)
SELECTION = {"selection": {"strategy": "least_confidence", "start": 0.0, "end": 1.0, "interrupt": 0}}


def calls_by_step(trainer):
    """Calls of functions of the package in each step of a run, from one fetch of micro-batches to the next.

    As `sys.setprofile` reports them: a comprehension is a call, and so is each value that a generator yields.
    """
    steps, fetch = [], trainer.get_batch_samples

    def fetch_and_begin(*args, **kwargs):
        steps.append(0)
        return fetch(*args, **kwargs)

    def profile(frame, event, arg):
        if event == "call" and steps and frame.f_code.co_filename.startswith(PACKAGE):
            steps[-1] += 1

    trainer.get_batch_samples = fetch_and_begin
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        trainer.train()
    finally:
        sys.setprofile(before)
    return steps


@pytest.mark.parametrize(
    ("objective", "methods", "most"),
    [("mlm", None, 308), ("electra", None, 515), ("mlm", SELECTION, 869)],
    ids=["mlm", "electra", "selection"],
)
def test_a_warm_step_makes_few_python_calls(tmp_path, objective, methods, most):
    """Half of what it took while sizes of all parameters were added up anew for every micro-batch."""
    trainer = tiny.trainer(
        tmp_path, methods, objective=objective, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    steps = calls_by_step(trainer)
    assert len(steps) == 8
    assert steps[0] > max(steps[2:-1])  # in the first, shapes are counted
    assert max(steps[2:-1]) <= most  # in the last, the run ends
