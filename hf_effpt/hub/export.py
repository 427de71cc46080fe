"""Turning a training checkpoint into a stock model that needs nothing but `transformers`."""

from __future__ import annotations

import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers import AutoTokenizer, PreTrainedModel

import hf_effpt.models
from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import replacing_folder_contents
from hf_effpt.core.ledger import ledger_of

from .card import model_card
from .folders import MODEL_FILES, RECORD_FILES, TOKENIZER_FILES, check_free, check_whole, read_json, write_json

# What a finished run's record says that is not true of an earlier point.
OF_THE_END = ("evaluation", "throughput", "energy", "scores", "costs", "learning_rate")
MISFITS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def export(checkpoint: str | os.PathLike, out: str | os.PathLike) -> Path:
    """Writes the stock model of a training checkpoint, with tokenizer, card and run record, into the folder `out`.

    The result is read back with the stock class and compared before anything in `out` changes.

    Args:
        checkpoint (`str` or `os.PathLike`): a training checkpoint (`OUT/checkpoint-900`), or the folder of a finished
            run (`OUT`), whose root holds the stock model already and is copied.
        out (`str` or `os.PathLike`): an empty or new folder, an earlier export, or the checkpoint's own run folder
            when that run never finished.

    Returns:
        `Path`: `out`.

    Raises:
        EffptError: if there is no whole checkpoint at `checkpoint`, if `out` holds something else, if the tokenizer
            does not fit the model, or if the disk is full.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    check_whole(checkpoint)
    check_free(checkpoint, out)
    architecture = (read_json(checkpoint / "config.json").get("architectures") or ["unknown"])[0]
    training_class = getattr(hf_effpt.models, architecture, None)
    with replacing_folder_contents(out) as folder:
        if training_class is None:
            _copy_run(checkpoint, architecture, folder)
        else:
            _export_checkpoint(checkpoint, training_class, folder)
    return out


def _copy_run(root: Path, architecture: str, folder: Path) -> None:
    if not (root / "run.json").is_file():
        raise EffptError(
            f"{str(root)!r} holds a `{architecture}` that no run of hf_effpt has written (there is no run.json): "
            "it is no training checkpoint, so there is nothing to export."
        )
    for name in (*MODEL_FILES, *TOKENIZER_FILES, *RECORD_FILES):
        if (root / name).is_file():
            shutil.copyfile(root / name, folder / name)
    write_json(folder / "run.json", read_json(root / "run.json") | {"exported_from": root.resolve().name})
    verify(folder, getattr(transformers, architecture).from_pretrained(root))


def _export_checkpoint(checkpoint: Path, training_class: type[PreTrainedModel], folder: Path) -> None:
    trained, report = training_class.from_pretrained(
        checkpoint,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # all misfits are named in one error below
    )
    if misfits := [name for kind in MISFITS for name in sorted(map(str, report[kind]))]:
        raise EffptError(
            f"The weights in {str(checkpoint)!r} do not belong to its config.json; what does not fit: "
            f"{', '.join(misfits)}. Export a checkpoint whose files were saved together."
        )
    ledger = ledger_of(trained.config)
    stock = trained.export()
    stock.save_pretrained(folder)
    # the run's root has the tokenizer when the checkpoint was saved without one
    source = checkpoint if (checkpoint / "tokenizer.json").is_file() else checkpoint.parent
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (checkpoint.parent / "recipe.yaml").is_file():
        shutil.copyfile(checkpoint.parent / "recipe.yaml", folder / "recipe.yaml")
    verify(folder, stock)
    model = {
        "training_class": training_class.__name__,
        "stock_class": type(stock).__name__,
        "parameters": stock.num_parameters(),
    }
    run = _run_so_far(checkpoint) | {"ledger": ledger, "model": model}
    write_json(folder / "run.json", run)
    model_card(run).save(folder / "README.md")


def _run_so_far(checkpoint: Path) -> dict[str, Any]:
    """What the run's folder and the trainer's state tell about the run up to this checkpoint."""
    root, run = checkpoint.resolve().parent, {}
    if (root / "run.json").is_file():
        run = read_json(root / "run.json")
    elif (root / "recipe.yaml").is_file():
        run = {"recipe": yaml.safe_load((root / "recipe.yaml").read_text(encoding="utf-8"))}
    if (checkpoint / "trainer_state.json").is_file():
        state = read_json(checkpoint / "trainer_state.json")
        totals = state.get("stateful_callbacks", {}).get("ClockCallback", {}).get("attributes", {})
        names = [field.name for field in fields(Clock)]
        clock = {"steps": state["global_step"]} | {key: value for key, value in totals.items() if key in names}
        if run.get("clock", {}).get("steps") != clock["steps"]:
            # the totals and the evaluation of the finished run are not those of this earlier point
            run = {key: value for key, value in run.items() if key not in OF_THE_END}
            run |= {"clock": clock, "history": state["log_history"]}
    return run | {"exported_from": f"{root.name}/{checkpoint.name}"}


def verify(folder: str | os.PathLike, model: PreTrainedModel) -> None:
    """Reads `folder` back with `model`'s class and compares the weights; the tokenizer, if any, must fit the model.

    Raises:
        EffptError: if a parameter is missing, unexpected or different, or the tokenizer is larger than the vocabulary.
    """
    loaded, report = type(model).from_pretrained(folder, output_loading_info=True)
    faults = [f"{kind} {sorted(report[kind])}" for kind in MISFITS if report[kind]]
    written = loaded.state_dict()
    faults += [
        f"different {name}"
        for name, value in model.state_dict().items()
        if name in written and not torch.allclose(written[name], value.cpu(), rtol=0, atol=0, equal_nan=True)
    ]
    if faults:
        raise EffptError(f"The export of `{type(model).__name__}` does not load back: {'; '.join(faults)}.")
    if (Path(folder) / "tokenizer.json").is_file():
        tokens, vocabulary = len(AutoTokenizer.from_pretrained(folder)), model.config.vocab_size
        if tokens > vocabulary:
            raise EffptError(
                f"The tokenizer has {tokens} tokens but the model only {vocabulary} embeddings: it is not the "
                "tokenizer this model was trained with. Put the right one beside the checkpoint; nothing was saved."
            )
