"""Atomic saving of checkpoints, and of the exported model in the root of the run folder."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import STAGING, is_disk_full, replacing_folder_contents, write_atomically
from hf_effpt.hub.card import model_card
from hf_effpt.models.base import exports_of

from .checkpoints import checkpoints_in, fault
from .record import run_record


class Saver:
    """Saves checkpoints atomically and exports the model of `trainer` ([`EffptTrainer`])."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.args = trainer, trainer.args
        self.staging: Path | None = None  # folder of the checkpoint being written

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[None]:
        """Stages the checkpoint written in the block under a temporary name, then renames it.

        A full disk or a kill thus leaves earlier checkpoints whole. Raises `EffptError` if the disk is full.
        """
        run, wait, saves = (
            Path(self.args.output_dir),
            self.trainer.accelerator.wait_for_everyone,
            self.args.should_save,
        )
        final = run / f"checkpoint-{step}"
        timekeeper = self.trainer.cost.timekeeper
        timekeeper.settle()
        with timekeeper.paused():
            if saves:
                shutil.rmtree(run / STAGING, ignore_errors=True)
            wait()
            self.staging = run / STAGING
            try:
                yield
                wait()
                if saves:
                    shutil.rmtree(final, ignore_errors=True)
                    os.replace(self.staging / final.name, final)
            except Exception as error:
                if is_disk_full(error):
                    kept = [str(folder) for folder in checkpoints_in(run)]
                    raise EffptError(
                        f"The disk is full and {final} could not be saved; free some space and resume from "
                        f"{kept[-1] if kept else 'the beginning'}, which is whole."
                    ) from error
                raise
            finally:
                self.staging = None
                if saves:
                    shutil.rmtree(run / STAGING, ignore_errors=True)
            if saves and self.args.save_total_limit:
                # Damaged checkpoints do not count towards the limit, and the new one is always kept.
                whole = [folder for folder in checkpoints_in(run) if folder != final and fault(folder) is None]
                for old in whole[: max(0, len(whole) + 1 - self.args.save_total_limit)]:
                    shutil.rmtree(old)

    def export(self, out: str) -> None:
        """Writes the stock model with tokenizer, card and `run.json` into the folder `out`, all or nothing."""
        trainer = self.trainer
        with trainer.cost.timekeeper.paused(), replacing_folder_contents(out) as folder:
            exports = exports_of(trainer.accelerator.unwrap_model(trainer.model))
            record = run_record(trainer, exports[""])
            for name, exported in exports.items():
                exported.save_pretrained(folder / name)
                if trainer.processing_class is not None:
                    trainer.processing_class.save_pretrained(folder / name)
            for method in trainer.methods:
                method.save_artifacts(trainer.model.backbone, folder)
            (folder / "run.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
            model_card(record, trainer.hub_model_id).save(folder / "README.md")

    def write_card(self, given: dict[str, Any]) -> None:
        """Writes the card of the current model, with the facts in `given` that are not `None`."""
        known = {name: value for name, value in given.items() if value is not None}
        record = run_record(self.trainer, self.trainer.model.export()) | known
        write_atomically(Path(self.args.output_dir) / "README.md", model_card(record, self.trainer.hub_model_id).save)
