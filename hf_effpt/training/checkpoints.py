"""Checkpoints: which are whole, and how a run begins again from one."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from hf_effpt.core.errors import EffptError

TENSORS = "model.safetensors"
STATE = "trainer_state.json"
NEEDED = ("config.json", TENSORS, STATE, "optimizer.pt", "scheduler.pt")


def checkpoints_in(run: Path) -> list[Path]:
    """The checkpoint folders of a run, first to last, whole or not."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", folder.name), folder) for folder in run.glob("checkpoint-*")]
    return [folder for _, folder in sorted((int(match[1]), folder) for match, folder in found if match)]


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder, in a few words; `None` if it is whole."""
    if not checkpoint.is_dir():
        return "it is not a folder"
    for name in NEEDED:
        if not (checkpoint / name).is_file():
            return f"`{name}` is missing"
    try:
        for name in ("config.json", STATE):
            json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except ValueError:
        return f"`{name}` cannot be read"
    try:
        with safe_open(checkpoint / TENSORS, framework="pt"):
            pass
    except (SafetensorError, OSError):
        return f"`{TENSORS}` is damaged or cut short"
    cut = [name for name in ("optimizer.pt", "scheduler.pt") if not zipfile.is_zipfile(checkpoint / name)]
    return f"`{cut[0]}` is damaged or cut short" if cut else None


def choose(wanted: str | Path | Literal[True], run: Path) -> Path:
    """The checkpoint to resume from: `wanted`, or the last one in `run` where it is `True`.

    Raises:
        EffptError: if there is none, or it is not whole; then the last whole one is named.
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


def progress(checkpoint: Path) -> dict[str, Any]:
    """The trainer state saved in a checkpoint."""
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))


def load_training_model(model: Any, checkpoint: Path) -> Any:
    """A model of the class of `model` with the architecture, ledger and weights of `checkpoint`.

    Raises:
        EffptError: if the weights do not fit the architecture that the checkpoint's configuration describes.
    """
    loaded, report = type(model).from_pretrained(
        checkpoint, attn_implementation=model.config._attn_implementation, output_loading_info=True
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise EffptError(
            f"The weights in {checkpoint} do not fit its configuration: missing {sorted(report['missing_keys'])}, "
            f"unexpected {sorted(report['unexpected_keys'])}; take another checkpoint."
        )
    return loaded
