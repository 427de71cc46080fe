"""The progress bar of a run, and what trackers are told of its clock."""

from types import SimpleNamespace

from hf_effpt.training.callbacks import ClockProgress
from tests import tiny


def test_the_bar_of_a_notebook_is_replaced_too(tmp_path, monkeypatch):
    class OfNotebooks(tiny.TrainerCallback):
        """Stands in for the stock callback, which needs IPython."""

    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", OfNotebooks)
    kinds = [type(callback) for callback in tiny.trainer(tmp_path, disable_tqdm=False).callback_handler.callbacks]
    assert ClockProgress in kinds
    assert OfNotebooks not in kinds


def test_tensorboard_gets_losses_by_what_is_spent(tmp_path):
    written = []

    class OfTensorBoard(tiny.TrainerCallback):
        """Stands in for the stock callback, which needs TensorBoard."""

        tb_writer = SimpleNamespace(add_scalar=lambda tag, value, step: written.append((tag, value, step)))

    trainer = tiny.trainer(tmp_path, budget="2steps", logging_steps=1, save_strategy="no")
    trainer.add_callback(OfTensorBoard())
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    by_tokens = [(value, step) for tag, value, step in written if tag == "by_tokens/loss"]
    assert by_tokens == [(entry["loss"], entry["tokens"]) for entry in entries]
    assert {tag for tag, _, _ in written} >= {f"by_{unit}/loss" for unit in ("tokens", "flops", "seconds")}
