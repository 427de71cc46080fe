"""Process of one measurement: trains a recipe for some seconds, `python -m hf_effpt.planning.pilot REQUEST.json`.

A process of its own, so that its memory is that of a run, and running out of it ends nothing else.
"""

import logging
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, write_json
from hf_effpt.preparation import prepare_data
from hf_effpt.pretraining import build_trainer
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.record import environment

from .measurement import Measurement

NO_MEMORY = 5  # exit code if the device has too little memory
WARM = 3  # first steps, which allocate memory and count FLOPs, and are not measured
TRIED_ROWS = 512  # of the held-out text: about 10,000 masked tokens
# Settings that depend on the unit of the budget and change neither rate nor memory, or that publish.
LEFT_OUT = frozenset(
    "max_steps num_train_epochs reference_times warmup_steps logging_steps save_steps eval_steps branches "
    "lr_scheduler_type lr_scheduler_kwargs multiply_warmup push_to_hub "
    "load_best_model_at_end metric_for_best_model greater_is_better".split()
)
SHORT = {"save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True, "report_to": "none", "budget": "1h"}


class Stopwatch(TrainerCallback):
    """Keeps what the clock of a trainer has spent after the first steps."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.spent = trainer, _spent(trainer.clock)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.clock.steps <= WARM:
            self.spent = _spent(self.trainer.clock)


def _spent(clock: Any) -> tuple[float, int, float, float]:
    return clock.seconds, clock.tokens, clock.flops, clock.joules or 0.0


def shortened(sections: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The sections of a recipe whose run saves nothing, for a budget in seconds."""
    kept = {key: value for key, value in sections["training"].items() if key not in LEFT_OUT}
    return {**sections, "training": {**kept, **SHORT, "output_dir": folder}}


def measure(sections: Mapping[str, Any], seconds: float) -> Measurement:
    """Trains the recipe with these sections for some seconds, not counting its start, and measures.

    Methods and learning rate follow the short budget, so that each part of a schedule has its share.
    """
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.load(shortened(sections, folder))
        _, tokenizer, rows = prepare_data(recipe)
        trainer = build_trainer(recipe, tokenizer, rows)
        charged = sum(trainer.cost.prepare_seconds.values()) if recipe.training.charge_methods else 0.0
        trainer.args.budget = f"{seconds + charged}s"
        watch = Stopwatch(trainer)
        trainer.add_callback(watch)
        trainer.train()
        steps, before = trainer.clock.steps, (charged, 0, 0.0, 0.0)
        if steps > WARM:
            steps, before = steps - WARM, watch.spent
        took, tokens, flops, joules = (now - then for now, then in zip(_spent(trainer.clock), before, strict=True))
        # First steps take longer, once.
        started = max(charged, before[0] - before[1] * took / tokens)
        held_out = rows.get("validation")
        if held_out is not None:  # which also shows the memory that evaluation needs
            trainer.evaluate(held_out.select(range(min(TRIED_ROWS, len(held_out)))))
        peak, config = peak_memory(trainer.args.device), trainer.model.config
        found = trainer.evaluation or {}
        energy, length = trainer.cost.timekeeper.energy, next(iter(recipe.data.lengths.values()))
        return Measurement(
            device=environment(trainer.args.device)["device"],
            steps=steps,
            tokens_per_second=tokens / took,
            flops_per_token=flops / tokens,
            start_seconds=started,
            start_flops=sum(trainer.cost.prepare_flops.values()) if charged else 0.0,
            step_tokens=round(tokens / steps),
            parameters=trainer.model.num_parameters(),
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            vocabulary=config.vocab_size,
            text_tokens=len(rows["train"]) * length,
            watts=None if energy is None else joules / took,
            energy=None if energy is None else energy.name,
            energy_is_measured=energy is not None and energy.measured,
            peak_bytes=peak,
            floor=found.get("unigram_floor"),
            tokens=trainer.clock.tokens,
            loss=found.get("held_out_loss"),
        )


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that the allocator of a GPU has held, or else that this process has had in memory.

    `None` on systems that do not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return None if found is None else int(found[1]) * 1024


def main() -> int:
    """Measures the `recipe` of the request in the file named on the command line, and writes the file `answer`."""
    logging.disable(logging.WARNING)
    request = read_json(Path(sys.argv[1]))
    try:
        write_json(Path(request["answer"]), asdict(measure(request["recipe"], request["seconds"])))
    except EffptError as error:
        print(error, file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return NO_MEMORY
    return 0


if __name__ == "__main__":
    sys.exit(main())
