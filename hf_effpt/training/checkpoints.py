"""Checking, loading and atomic saving of checkpoints, and saving of the exported model in the run folder's root."""

import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from hf_effpt.core.anatomy import longest_row_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import (
    STAGING,
    is_disk_full,
    read_json,
    replacing_folder_contents,
    write_atomically,
    write_json,
)
from hf_effpt.core.freezing import carry_frozen
from hf_effpt.core.manifest import MANIFEST, manifest_fault, write_manifest
from hf_effpt.data.packing import PackedRows
from hf_effpt.hub.card import model_card
from hf_effpt.hub.card_settings import CardSettings
from hf_effpt.hub.folders import RECIPE, checkpoints_in, json_fault, step_of, weights_fault
from hf_effpt.hub.push import push
from hf_effpt.models.base import exports_of
from hf_effpt.models.kept_heads import save_stock
from hf_effpt.models.quiet import without_bars

from .arguments import EffptTrainingArguments
from .averaging import FILE as AVERAGE
from .record import run_record
from .resuming import check_same

TENSORS = "model.safetensors"
STATE = "trainer_state.json"
NEEDED = ("config.json", TENSORS, STATE, "optimizer.pt", "scheduler.pt")
# Names of the stock Trainer for facts of a card.
STOCK_NAMES = {"finetuned_from": "base_model", "dataset_tags": "datasets"}


def fault(checkpoint: Path, hashes: bool = True) -> str | None:
    """Short description of a checkpoint folder's defect; `None` if it is whole.

    Without `hashes` a checkpoint with a manifest is only asked for the sizes of its files.
    """
    if not checkpoint.is_dir():
        return "it is not a folder"
    for name in NEEDED:
        if not (checkpoint / name).is_file():
            return f"`{name}` is missing"
    if has_manifest := (checkpoint / MANIFEST).is_file():  # older checkpoints have none
        if wrong := manifest_fault(checkpoint, hashes):
            return wrong
        if not hashes:
            return None
    if wrong := json_fault(checkpoint, ("config.json", STATE)) or weights_fault(checkpoint / TENSORS):
        return wrong
    if (checkpoint / AVERAGE).is_file() and (wrong := weights_fault(checkpoint / AVERAGE)):
        return wrong
    if has_manifest:
        return None
    generators = sorted(checkpoint.glob("rng_state*.pth"))  # one for each process
    if not generators:
        return "`rng_state.pth` is missing"
    for archive in (checkpoint / "optimizer.pt", *generators, checkpoint / "scheduler.pt"):
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(archive) as file:
            if file.testzip() is None:
                continue
        return f"`{archive.name}` is damaged or cut short"
    return None


def choose(wanted: str | Path | Literal[True], run: Path) -> Path:
    """Returns the checkpoint to resume from: `wanted`, or the last one in `run` if `True`.

    Raises `EffptError` if there is none, or it is not whole; the message names the last whole one.
    """
    if wanted is True:
        if not (there := checkpoints_in(run)):
            raise EffptError(f"There is no checkpoint in {run} to resume from; start the run without `resume`.")
        wanted = there[-1]
    checkpoint = Path(wanted)
    if wrong := fault(checkpoint) or _misnamed(checkpoint):
        raise EffptError(f"The checkpoint {checkpoint} cannot be used: {wrong}; {_another(checkpoint, run)}.")
    return checkpoint


def _misnamed(checkpoint: Path) -> str | None:
    """Says that a checkpoint of a run is of another step than its name; resuming from it would set it aside."""
    step = read_json(checkpoint / STATE).get("global_step")
    if re.fullmatch(r"checkpoint-\d+", checkpoint.name) and step != step_of(checkpoint):
        return f"it is of step {step} and has been renamed"
    return None


def _another(checkpoint: Path, run: Path) -> str:
    """Says from which other checkpoint of a run to go on instead of one that cannot be used."""
    for other in checkpoints_in(run)[::-1]:
        if other != checkpoint and fault(other) is None and _misnamed(other) is None:
            return f"resume from the last whole one: {other} (`--resume {other}`)"
    return "there is no whole one; start anew"


def totals(checkpoint: Path, now: str | None, args: EffptTrainingArguments) -> dict[str, Any]:
    """Totals of clock and rows in a checkpoint; `now` identifies the rows of the run.

    Raises `EffptError` if another Trainer saved it, its run had other rows, or [`check_same`] refuses.
    """
    try:
        found = read_json(checkpoint / STATE)["stateful_callbacks"]["ClockCallback"]["attributes"]
        before = found.get("data")
    except (KeyError, TypeError, AttributeError) as error:
        raise EffptError(
            f"The checkpoint {checkpoint} says nothing of a clock, so another Trainer has saved it; load its weights "
            "with `from_pretrained` and start a new run."
        ) from error
    if before is not None and now is not None and before != now:
        raise EffptError(
            f"The text or the tokenizer has changed since {checkpoint} was saved (fingerprint {before}, now {now})"
            ", or another version of hf_effpt packed them; resume with the data and the version the run was started "
            "with, or start a new run."
        )
    check_same(found, args, checkpoint)
    return found


def load_training_model(model: Any, checkpoint: Path) -> Any:
    """Loads a model of the class of `model` with the architecture, ledger and weights of `checkpoint`.

    Parameters that the user has frozen in `model` are frozen in it, too.

    Raises `EffptError` if the weights do not fit the checkpoint's configuration, or methods or settings differ.
    """
    loaded, report = type(model).from_pretrained(
        checkpoint, attn_implementation=model.config._attn_implementation, output_loading_info=True,
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    resized = sorted(name for name, *_ in report["mismatched_keys"])
    if missing or unexpected or resized:
        raise EffptError(
            f"The weights in {checkpoint} do not fit its configuration, `config.json`: missing {missing[:8]}, "
            f"unexpected {unexpected[:8]}, of another shape {resized[:8]}; {_another(checkpoint, checkpoint.parent)}."
        )
    now, before = ({method.name: method.settings() for method in one.methods} for one in (model, loaded))
    for name in sorted({*now, *before}):
        if now.get(name) != before.get(name):
            told = [f"`{name}: {found[name]}`" if name in found else f"no `{name}`" for found in (before, now)]
            raise EffptError(
                f"{checkpoint} was saved by a run with {told[0]}, and this one has {told[1]}; resume with the methods "
                "it was started with, or load its weights with `from_pretrained` and start a new run."
            )
    carry_frozen(model, loaded)
    return loaded


class Saver:
    """Saves checkpoints atomically and exports the model of `trainer` ([`EffptTrainer`])."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.args = trainer, trainer.args
        self.staging: Path | None = None  # folder of the checkpoint being written
        self.begin([])

    def begin(self, parts: list[dict[str, Any]]) -> None:
        """Begins a run of these `parts`, by the settings that resuming has changed; nothing of it is saved yet."""
        self.parts = parts
        self._saved: set[Path] = set()

    def has_saved(self, checkpoint: Path) -> bool:
        """Returns `True` if the run has saved this checkpoint since it began, or was resumed."""
        return checkpoint in self._saved

    @property
    def changed(self) -> bool:
        """`True` if the run has just been resumed with other settings."""
        return len(self.parts) > 1 and self.parts[-1]["step"] == self.trainer.clock.steps

    def way_out(self) -> str:
        """Says from which checkpoint a run goes on that has broken off."""
        whole = [folder for folder in checkpoints_in(Path(self.args.output_dir)) if not fault(folder, hashes=False)]
        return f"Go on with `--resume {whole[-1]}`, which is whole." if whole else "No checkpoint was saved before."

    @contextmanager
    def checkpoint(self, step: int, run: Path | None = None) -> Iterator[None]:
        """Stages the checkpoint written in the block under a temporary name, then renames it.

        It comes into the folder `run`, by default the output folder.

        A full disk or a kill thus leaves earlier checkpoints whole. Raises `EffptError` if the disk is full, or the
        weights are not finite.
        """
        run, saves = run or Path(self.args.output_dir), self.args.should_save
        final, wait = run / f"checkpoint-{step}", self.trainer.accelerator.wait_for_everyone
        timekeeper = self.trainer.cost.timekeeper
        timekeeper.settle()
        with timekeeper.paused(), without_bars():
            self.trainer.guard.check_weights()
            if saves:
                shutil.rmtree(run / STAGING, ignore_errors=True)
            wait()
            self.staging = run / STAGING
            try:
                yield
                wait()
                if saves:
                    self._complete(self.staging / final.name)
                    shutil.rmtree(final, ignore_errors=True)
                    os.replace(self.staging / final.name, final)
            except Exception as error:
                if is_disk_full(error):
                    kept = [str(folder) for folder in checkpoints_in(run)]
                    way_out = f"resume from {kept[-1]}, which is whole" if kept else "start anew, without `resume`"
                    raise EffptError(
                        f"The disk is full and {final} could not be saved; free some space and {way_out}."
                    ) from error
                raise
            else:
                self._saved.add(final)
            finally:
                self.staging = None
                if saves:
                    shutil.rmtree(run / STAGING, ignore_errors=True)
            # What was saved before a run began to diverge is kept.
            if saves and self.args.save_total_limit and not self.trainer.guard.in_a_row:
                # Damaged checkpoints do not count towards the limit, and the new one is always kept.
                whole = [folder for folder in checkpoints_in(run) if folder != final and not fault(folder, False)]
                old = whole[: max(0, len(whole) + 1 - self.args.save_total_limit)]
                best = self.trainer.state.best_model_checkpoint
                for folder in old:
                    if best is None or folder.name != Path(best).name:
                        shutil.rmtree(folder)

    def _complete(self, folder: Path) -> None:
        """Adds to a checkpoint, which all processes have written, what the stock Trainer does not save."""
        self.trainer.average.save(folder)
        if (recipe := Path(self.args.output_dir, RECIPE)).is_file():
            shutil.copyfile(recipe, folder / RECIPE)
        write_json(folder / STATE, read_json(folder / STATE))  # losses in it may be NaN
        write_manifest(folder)

    def export(self, out: str) -> None:
        """Writes the stock model with tokenizer, card and `run.json` into the folder `out`, all or nothing."""
        trainer = self.trainer
        paused = trainer.cost.timekeeper.paused()
        with paused, trainer.average.applied(), replacing_folder_contents(out) as folder:
            exports = exports_of(trainer.accelerator.unwrap_model(trainer.model))
            record = run_record(trainer, exports[""])
            for name, exported in exports.items():
                save_stock(exported, folder / name)
                if trainer.processing_class is not None:
                    stream = trainer.stream
                    rows = stream.phases[stream.phase].rows  # the longest so far
                    with announcing(trainer.processing_class, trainer.model, rows):
                        trainer.processing_class.save_pretrained(folder / name)
            saved = set(folder.iterdir())
            for method in trainer.methods:
                method.save_artifacts(trainer.model.backbone, folder)
            if artifacts := sorted(path.name for path in folder.iterdir() if path not in saved):
                record["artifacts"] = artifacts
            write_json(folder / "run.json", record)
            model_card(record, trainer.hub_model_id).save(folder / "README.md")

    def push(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> str | None:
        """Exports the model and uploads it; returns the address of the commit, `None` in all but the first process.

        `card` has facts for the card, such as `license`, `language` and `tags`. It waits for the upload in any case.
        """
        trainer, args = self.trainer, self.args
        trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
        self.add_to_card(card)
        trainer.save_model(_internal_call=True)
        if not trainer.is_world_process_zero():
            return None
        return push(
            args.output_dir, args.hub_model_id or Path(args.output_dir).absolute().name,
            private=args.hub_private_repo if private is None else private, revision=revision or args.hub_revision,
            token=token or args.hub_token, message=commit_message or "End of training",
        )  # fmt: skip

    def add_to_card(self, given: Mapping[str, Any]) -> None:
        """Adds facts to all later cards: those of [`CardSettings`], also by the names of the stock Trainer."""
        known = {STOCK_NAMES.get(name, name): value for name, value in given.items() if value is not None}
        known = {field.name: known[field.name] for field in fields(CardSettings) if field.name in known}
        if known:
            self.trainer.facts["card"] = CardSettings(**self.trainer.facts.get("card", {}) | known).facts()

    def write_card(self, given: Mapping[str, Any]) -> None:
        """Writes the card of the exported model, or else of the current one, with the facts `given`."""
        self.add_to_card(given)
        out, record = Path(self.args.output_dir), {}
        if (out / "run.json").is_file():
            record = read_json(out / "run.json") | {"card": self.trainer.facts.get("card", {})}
            write_json(out / "run.json", record)
        record = record or run_record(self.trainer, self.trainer.model.export())
        write_atomically(out / "README.md", model_card(record, self.trainer.hub_model_id).save)


@contextmanager
def announcing(tokenizer: Any, model: Any, rows: Any) -> Iterator[None]:
    """Has the tokenizer announce, within the block, the longest input that the model has read in training.

    That is the length of its packed `rows`, or for a continued model what the tokenizer announced before, if that is
    longer.
    """
    before = getattr(tokenizer, "model_max_length", None)
    if before is not None and PackedRows.fits(rows):
        tokenizer.model_max_length = longest_input(before, rows.features["input_ids"].length, model)
    try:
        yield
    finally:
        if before is not None:
            tokenizer.model_max_length = before


def longest_input(own: int, length: int, model: Any) -> int:
    """Longest input that a model reads after training on rows of `length`, if its tokenizer announced `own` before."""
    return max(length, min(own, longest_row_of(model.config))) if model.continued else length
