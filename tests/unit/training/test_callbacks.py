"""The progress bar of a run."""

from hf_effpt.training.callbacks import ClockProgress
from tests import tiny


def test_the_bar_of_a_notebook_is_replaced_too(tmp_path, monkeypatch):
    class OfNotebooks(tiny.TrainerCallback):
        """Stands in for the stock callback, which needs IPython."""

    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", OfNotebooks)
    kinds = [type(callback) for callback in tiny.trainer(tmp_path, disable_tqdm=False).callback_handler.callbacks]
    assert ClockProgress in kinds
    assert OfNotebooks not in kinds
