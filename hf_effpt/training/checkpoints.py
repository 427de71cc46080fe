"""Checking and loading of checkpoints."""

import re
import zipfile
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json
from hf_effpt.core.method import Method
from hf_effpt.data.packing import facts

TENSORS = "model.safetensors"
STATE = "trainer_state.json"
NEEDED = ("config.json", TENSORS, STATE, "optimizer.pt", "scheduler.pt")


def checkpoints_in(run: Path) -> list[Path]:
    """Checkpoint folders of a run, first to last, whole or not."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", folder.name), folder) for folder in run.glob("checkpoint-*")]
    return [folder for _, folder in sorted((int(match[1]), folder) for match, folder in found if match)]


def fault(checkpoint: Path) -> str | None:
    """Short description of a checkpoint folder's defect; `None` if it is whole."""
    if not checkpoint.is_dir():
        return "it is not a folder"
    for name in NEEDED:
        if not (checkpoint / name).is_file():
            return f"`{name}` is missing"
    try:
        for name in ("config.json", STATE):
            read_json(checkpoint / name)
    except ValueError:
        return f"`{name}` cannot be read"
    try:
        with safe_open(checkpoint / TENSORS, framework="pt"):
            pass
    except (SafetensorError, OSError):
        return f"`{TENSORS}` is damaged or cut short"
    if not list(checkpoint.glob("rng_state*.pth")):
        return "`rng_state.pth` is missing"
    for archive in sorted(
        [*checkpoint.glob("rng_state*.pth"), checkpoint / "optimizer.pt", checkpoint / "scheduler.pt"]
    ):
        try:
            with zipfile.ZipFile(archive) as file:
                whole = file.testzip() is None
        except zipfile.BadZipFile:
            whole = False
        if not whole:
            return f"`{archive.name}` is damaged or cut short"
    return None


def choose(wanted: str | Path | Literal[True], run: Path) -> Path:
    """Returns the checkpoint to resume from: `wanted`, or the last one in `run` if `True`.

    Raises `EffptError` if there is none, or it is not whole; the message names the last whole one.
    """
    there = checkpoints_in(run)
    if wanted is True:
        if not there:
            raise EffptError(f"There is no checkpoint in {run} to resume from; start the run without `resume`.")
        wanted = there[-1]
    checkpoint = Path(wanted)
    if wrong := fault(checkpoint):
        whole = [other for other in there if other != checkpoint and fault(other) is None]
        way_out = f"resume from the last whole one: {whole[-1]}" if whole else "there is no whole one; start anew"
        raise EffptError(f"The checkpoint {checkpoint} cannot be used: {wrong}; {way_out}.")
    return checkpoint


def totals(checkpoint: Path) -> dict[str, Any]:
    """Totals of clock and rows in a checkpoint; raises `EffptError` if another Trainer saved it."""
    callbacks = read_json(checkpoint / STATE).get("stateful_callbacks", {})
    if "ClockCallback" not in callbacks:
        raise EffptError(
            f"The checkpoint {checkpoint} says nothing of a clock, so another Trainer has saved it; load its weights "
            "with `from_pretrained` and start a new run."
        )
    return callbacks["ClockCallback"]["attributes"]


def identity_of(dataset: Any) -> str | None:
    """Fingerprint of corpus, tokenizer and packing, and the number of rows; `None` if not packed."""
    try:
        return f"{facts(dataset)['fingerprint']}, {len(dataset)} rows"
    except (EffptError, AttributeError):
        return None


def check_data(checkpoint: Path, dataset: Any) -> None:
    """Raises `EffptError` if the rows differ from those the run was started with."""
    before, now = totals(checkpoint).get("data"), identity_of(dataset)
    if before is not None and now is not None and before != now:
        raise EffptError(
            f"The text or the tokenizer has changed since {checkpoint} was saved (fingerprint {before}, now {now}); "
            "resume with the data the run was started with, or start a new run."
        )


def check_optimizer(checkpoint: Path, bias_correction: bool) -> None:
    """Raises `EffptError` if `bias_correction` differs from the checkpoint's."""
    before = totals(checkpoint).get("bias_correction", True)
    if before != bias_correction:
        raise EffptError(
            f"{checkpoint} was saved with `bias_correction: {str(before).lower()}`, which the state of its optimizer "
            "is made for; resume with that setting."
        )


def load_training_model(model: Any, checkpoint: Path) -> Any:
    """Loads a model of the class of `model` with the architecture, ledger and weights of `checkpoint`.

    Raises `EffptError` if the weights do not fit the checkpoint's configuration, or methods or settings differ.
    """
    loaded, report = type(model).from_pretrained(
        checkpoint, attn_implementation=model.config._attn_implementation, output_loading_info=True
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise EffptError(
            f"The weights in {checkpoint} do not fit its configuration: missing {sorted(report['missing_keys'])}, "
            f"unexpected {sorted(report['unexpected_keys'])}; take another checkpoint."
        )
    check_methods(checkpoint, model.methods, loaded.methods)
    return loaded


def check_methods(checkpoint: Path, wanted: list[Method], trained: list[Method]) -> None:
    """Raises `EffptError`, naming the first difference, if methods or their settings changed."""
    now, before = ({method.name: method.settings() for method in methods} for methods in (wanted, trained))
    for name in sorted({*now, *before}):
        if now.get(name) != before.get(name):
            told = [f"`{name}: {found[name]}`" if name in found else f"no `{name}`" for found in (before, now)]
            raise EffptError(
                f"{checkpoint} was saved by a run with {told[0]}, and this one has {told[1]}; resume with the methods "
                "it was started with, or load its weights with `from_pretrained` and start a new run."
            )
