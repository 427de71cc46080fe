"""Saving: checkpoints appear whole or not at all, and the run folder's root is the exported model."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import STAGING, is_disk_full, replacing_folder_contents
from hf_effpt.hub.card import model_card
from hf_effpt.models.base import exports_of

from .arguments import EffptTrainingArguments
from .checkpoints import checkpoints_in, fault
from .record import run_record
from .reference_time_meter import ReferenceMeter
from .timekeeping import Timekeeper


class ExportingTrainer(Trainer):
    """A Trainer that saves checkpoints in one go and exports what it has trained."""

    # The stock class declares these more widely, as optional or as unions; once a run is made they are all there.
    args: EffptTrainingArguments
    accelerator: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any
    train_dataset: Any
    eval_dataset: Any
    timekeeper: Timekeeper
    reference: ReferenceMeter | None  # where the budget is reference system time
    costs: dict[str, float]  # seconds of each method besides training
    method_flops: dict[str, float]
    facts: dict[str, Any]  # what `run.json` says beyond what the trainer itself knows
    evaluation: dict[str, Any] | None  # the last held-out loss

    masking: Any  # the collator that masks

    staging: Path | None = None

    @property
    def clock(self) -> Clock:
        return self.timekeeper.clock

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes to a temporary name and renames: a full disk or a kill leaves the earlier checkpoints whole."""
        run = Path(self.args.output_dir)
        final = run / f"checkpoint-{self.state.global_step}"
        self.timekeeper.settle()
        with self.timekeeper.paused():
            if self.args.should_save:
                shutil.rmtree(run / STAGING, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            self.staging = run / STAGING
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
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
                if self.args.should_save:
                    shutil.rmtree(run / STAGING, ignore_errors=True)
            if self.args.should_save and self.args.save_total_limit:
                # A checkpoint that cannot be resumed from takes no other's place, and the one just written stays.
                whole = [folder for folder in checkpoints_in(run) if folder != final and fault(folder) is None]
                for old in whole[: max(0, len(whole) + 1 - self.args.save_total_limit)]:
                    shutil.rmtree(old)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Exports the stock model, with tokenizer, card and `run.json`; only checkpoints keep the training model."""
        if self.staging is not None:
            super().save_model(output_dir, _internal_call)
            return
        out = output_dir or self.args.output_dir
        if self.args.should_save:
            with self.timekeeper.paused(), replacing_folder_contents(out) as folder:
                exports = exports_of(self.accelerator.unwrap_model(self.model))
                record = run_record(self, exports[""])
                for name, exported in exports.items():
                    exported.save_pretrained(folder / name)
                    if self.processing_class is not None:
                        self.processing_class.save_pretrained(folder / name)
                for method in self.model.methods:
                    method.save_artifacts(self.model.backbone, folder)
                (folder / "run.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
                model_card(record, self.hub_model_id).save(folder / "README.md")
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(
        self, language: Any = None, license: str | None = None, tags: Any = None, **kwargs: Any
    ) -> None:
        """Writes the package's own card, from what the run has measured; the stock Trainer's other facts are in it."""
        if self.is_world_process_zero():
            given = {"language": language, "license": license, "tags": tags}
            record = run_record(self, self.model.export()) | {
                name: value for name, value in given.items() if value is not None
            }
            model_card(record, self.hub_model_id).save(Path(self.args.output_dir) / "README.md")
