"""Invariant 1: the same global batch gives the same step, however it is cut into micro-batches."""

import pytest
import torch

from tests import tiny


# Plain SGD: Adam would blow up the rounding of gradients that are zero in exact arithmetic, such as those of key
# biases.
def run(folder, rows, accumulation, ledger, **settings):
    trainer = tiny.trainer(
        folder,
        ledger,
        budget="3steps",
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.05,
        optim="sgd",
        learning_rate=0.3,
        **settings,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("ledger", [None, {"layerdrop": {"p": 0.5}}], ids=["none", "layerdrop"])
@pytest.mark.parametrize(("rows", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_micro_batches_do_not_matter(tmp_path, rows, accumulation, ledger):
    whole = run(tmp_path / "whole", 8, 1, ledger)
    cut = run(tmp_path / "cut", rows, accumulation, ledger)
    for name, weight in tiny.weights(whole.model).items():
        assert torch.allclose(weight, dict(cut.model.named_parameters())[name], atol=2e-6), name
    for ours, theirs in zip(whole.state.log_history, cut.state.log_history, strict=True):
        if "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
            # the clipping acts on the norm, so a scaled gradient would train differently
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    assert whole.clock.tokens == cut.clock.tokens
    assert whole.clock.flops == cut.clock.flops


def test_mean_is_over_the_labels_of_the_whole_step(tmp_path):
    """Rows with few labels weigh as their labels do, not as their micro-batch does."""
    model = tiny.model().eval()
    rows = tiny.rows(4)
    ids = torch.tensor(rows["input_ids"])
    labels = torch.full_like(ids, -100)
    for row, masked in enumerate((1, 2, 6, 9)):
        labels[row, 1 : 1 + masked] = ids[row, 1 : 1 + masked]
    together = model(ids, labels=labels).loss
    parts = [model(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=18).loss for i in range(4)]
    assert torch.allclose(together, sum(parts), atol=1e-6)
