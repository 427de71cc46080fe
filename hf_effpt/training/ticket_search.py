"""`EarlyBertTrainer`, whose ticket search can run alone."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import TrainOutput

from hf_effpt.core.errors import EffptError
from hf_effpt.core.ticket import Ticket

from .trainer import EffptTrainer


class EarlyBertTrainer(EffptTrainer):
    """Searches for a ticket and trains it (Chen et al., 2021, EarlyBERT).

    `train()` does both. After `search()`, which stops at the ticket's checkpoint, `train()` resumes from there within
    the same budget and replaces `trainer.model`.
    """

    method = "earlybert"
    _searched: str | None = None  # checkpoint of the ticket found by `search`

    @property
    def ticket(self) -> Ticket | None:
        """The ticket; `None` until it is drawn."""
        earlybert: Any = next(method for method in self.methods if method.name == self.method)
        return earlybert.ticket_of(self.model.backbone)

    def search(self, resume_from_checkpoint: str | bool | None = None) -> Ticket:
        """Trains until the ticket is drawn, and saves a checkpoint there.

        Raises `EffptError` if the run ends before.
        """
        if self.ticket is None or resume_from_checkpoint:
            stop = _StopAtTicket(self)
            self.add_callback(stop)
            try:
                super().train(resume_from_checkpoint)
            finally:
                self.remove_callback(stop)
            if self.ticket is None:
                raise EffptError(
                    f"The run ended after {self.state.global_step} steps, before a ticket was drawn; where that is "
                    f"all of its {self.clock.budget:g} {self.clock.unit}, lower `earlybert.max_search_steps`, or give "
                    "it more."
                )
            self._searched = str(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")
        return self.ticket

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Trains like [`EffptTrainer`]; after `search()` it continues from the ticket."""
        start, self._searched = resume_from_checkpoint or self._searched, None
        return super().train(start, **kwargs)


class _StopAtTicket(TrainerCallback):
    """Pauses a run when its ticket is drawn."""

    def __init__(self, trainer: EarlyBertTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.ticket is not None:
            self.trainer.stopper.pause(control)
