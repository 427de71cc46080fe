"""Model folders: lists their files, checks that a saved model is complete, and that a folder may be overwritten."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import finish_replacing, read_json
from hf_effpt.core.manifest import MANIFEST, manifest_fault

CODE_FILES = (  # of models that bring their own code
    "configuration_pruned_bert.py", "modeling_pruned_bert.py",
    "configuration_pruned_modernbert.py", "modeling_pruned_modernbert.py",
)  # fmt: skip
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", *CODE_FILES)
TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.txt vocab.json merges.txt"
).split()
RECIPE = "recipe.yaml"
DIVERGED = "diverged.json"  # of a run that a comparison has made, in the place of `run.json`
RECORD_FILES = ("README.md", RECIPE, "run.json")
JSON_FILES = ("config.json", "trainer_state.json", "run.json")
EXTRA_FOLDERS = ("generator",)  # folders of models exported beside the main one
NEAR = "the last whole checkpoint is {0!r}: `effpt export {0} --out DIR`"
OTHERWISE = "name a folder such as OUT/checkpoint-900"


def files_of(folder: Path) -> list[str]:
    """Lists the existing files of an exported model, of its record, of its methods and of models beside it."""
    run = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    artifacts = [name for name in run.get("artifacts", ()) if Path(name).name == name]
    own = (*MODEL_FILES, *TOKENIZER_FILES, *RECORD_FILES, *artifacts)
    beside = [f"{place}/{name}" for place in EXTRA_FOLDERS for name in (*MODEL_FILES, *TOKENIZER_FILES)]
    return [name for name in (*own, *beside) if (folder / name).is_file()]


def checkpoints_in(run: Path) -> list[Path]:
    """Checkpoint folders of a run, first to last, whole or not."""
    return sorted((one for one in run.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", one.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was saved, as its folder's name says."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def recipe_of(checkpoint: Path) -> Path | None:
    """The recipe that a checkpoint was saved by: its own copy, or that of its run; `None` if there is neither."""
    places = (checkpoint / RECIPE, checkpoint.resolve().parent / RECIPE)
    return next((place for place in places if place.is_file()), None)


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads a recipe that a run has written.

    Raises `EffptError` if there is none in the file, with the last whole checkpoint nearby and its copy of the recipe.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        found = None
    if isinstance(found, dict) and found:
        return found
    whole = next((one for one in reversed(checkpoints_in(path.parent)) if not _fault(one)), None)
    fix = "write the recipe of the run into it again"
    if whole and (whole / RECIPE).is_file():
        fix = f"the last whole checkpoint has a copy: `cp {whole / RECIPE} {path}`"
    elif whole:
        fix += f", or export the last whole checkpoint: `effpt export {whole} --out DIR`"
    raise EffptError(f"{str(path)!r} holds no recipe; {fix}.")


def others_in(folder: Path) -> list[str]:
    """Names of files and folders in `folder` that saving a model there would replace."""
    names = (*MODEL_FILES, *TOKENIZER_FILES, *RECORD_FILES, *EXTRA_FOLDERS)
    return [name for name in names if (folder / name).exists()]


def check_whole(folder: Path, near: str = NEAR, otherwise: str = OTHERWISE) -> None:
    """Raises `EffptError` unless `folder` holds a model and all of it.

    The fix that the error names is `near`, with the last whole checkpoint nearby, or `otherwise` if there is none.
    """
    finish_replacing(folder)
    if fault := _fault(folder):
        beside = [*checkpoints_in(folder.parent), *checkpoints_in(folder)][::-1]
        whole = next((str(path) for path in beside if path != folder and not _fault(path)), None)
        raise EffptError(f"{str(folder)!r} {fault}; {near.format(whole) if whole else otherwise}.")


def _fault(folder: Path) -> str | None:
    if not folder.is_dir():
        return "is not a folder"
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            return f"has no {name}, so it holds no saved model"
    fault = manifest_fault(folder) if (folder / MANIFEST).is_file() else None
    if fault := fault or json_fault(folder, JSON_FILES) or weights_fault(folder / "model.safetensors"):
        return f"is corrupt or half-written ({fault})"
    return None


def json_fault(folder: Path, names: Iterable[str]) -> str | None:
    """Says which of these files, of those that there are, holds no JSON object; `None` if all do."""
    for name in names:
        try:
            if (folder / name).is_file():
                read_json(folder / name)
        except ValueError:
            return f"`{name}` cannot be read"
    return None


def weights_fault(file: Path) -> str | None:
    """Says what is wrong with the tensors of a file; `None` if they are there and weights and biases are finite.

    Others, such as losses that a method remembers, may be infinite.
    """
    try:
        with safe_open(file, framework="pt") as tensors:  # compares the header with the file's length
            for name in tensors.keys():
                if name.endswith(("weight", "bias")) and not tensors.get_tensor(name).isfinite().all():
                    return f"`{file.name}` has numbers that are not finite, in `{name}`"
    except (SafetensorError, OSError):
        return f"`{file.name}` is damaged or cut short"
    return None


def check_free(checkpoint: Path, out: Path) -> None:
    """Refuses a folder `out` that holds a finished run, or anything but an earlier export."""
    if not out.is_dir() or not any(out.iterdir()):
        return
    record = out / "run.json"
    if record.is_file():
        if "exported_from" in read_json(record):
            return
        what = "holds a finished run, which an export would overwrite"
    elif out.resolve() == checkpoint.resolve().parent:
        return
    else:
        what = "is not empty and holds no earlier export"
    raise EffptError(f"{str(out)!r} {what}; name a new or empty folder.")
