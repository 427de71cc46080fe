"""The live run, as methods see it at the end of a step."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from hf_effpt.core.context import RunContext


def live_context(trainer: Any) -> RunContext:
    """Builds the context of `advance` from an [`EffptTrainer`], between two of its steps."""
    trainer.cost.forget_counts()

    def mean_loss() -> Tensor:
        loss = trainer.step_loss
        return loss if trainer.args.world_size == 1 else trainer.accelerator.reduce(loss, "mean")

    def draw_batches(number: int) -> Iterator[dict[str, Tensor]]:
        for batch in trainer.stream.draw(number, trainer.state.global_step):
            if trainer.args.charge_methods:
                trainer.cost.step_tokens += batch["input_ids"].numel() * trainer.args.world_size
            yield batch

    return RunContext(
        trainer.state.global_step,
        trainer.clock.fraction,
        trainer.args.seed,
        model=trainer.model,
        optimizer=getattr(trainer.optimizer, "optimizer", trainer.optimizer),  # Accelerate wraps it
        loss=mean_loss,
        flops=trainer.clock.flops,
        draw_batches=draw_batches,
        charged=trainer.cost.charged,
        warming_up=trainer.is_warming_up,
    )
