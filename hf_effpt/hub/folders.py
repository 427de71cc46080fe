"""Model folders: lists their files, checks that a saved model is complete, and that a folder may be overwritten."""

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import finish_replacing, read_json

CODE_FILES = (  # of models that bring their own code
    "configuration_pruned_bert.py", "modeling_pruned_bert.py",
    "configuration_pruned_modernbert.py", "modeling_pruned_modernbert.py",
)  # fmt: skip
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", *CODE_FILES)
TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.txt vocab.json merges.txt"
).split()
RECORD_FILES = ("README.md", "recipe.yaml", "run.json")
EXTRA_FOLDERS = ("generator",)  # folders of models exported beside the main one


def files_of(folder: Path) -> list[str]:
    """Lists the existing files of an exported model, of its record, of its methods and of models beside it."""
    run = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    artifacts = [name for name in run.get("artifacts", ()) if Path(name).name == name]
    own = (*MODEL_FILES, *TOKENIZER_FILES, *RECORD_FILES, *artifacts)
    beside = [f"{place}/{name}" for place in EXTRA_FOLDERS for name in (*MODEL_FILES, *TOKENIZER_FILES)]
    return [name for name in (*own, *beside) if (folder / name).is_file()]


def checkpoints_in(run: Path) -> list[Path]:
    """Checkpoint folders of a run, first to last, whole or not."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", folder.name), folder) for folder in run.glob("checkpoint-*")]
    return [folder for _, folder in sorted((int(match[1]), folder) for match, folder in found if match)]


def others_in(folder: Path) -> list[str]:
    """Names of files and folders in `folder` that saving a model there would replace."""
    names = (*MODEL_FILES, *TOKENIZER_FILES, *RECORD_FILES, *EXTRA_FOLDERS)
    return [name for name in names if (folder / name).exists()]


def check_whole(folder: Path) -> None:
    """Raises `EffptError`, with the last whole checkpoint nearby, unless `folder` holds a model and all of it."""
    finish_replacing(folder)
    if fault := _fault(folder):
        beside = [*checkpoints_in(folder.parent), *checkpoints_in(folder)]
        whole = [str(path) for path in beside if path != folder and not _fault(path)]
        fix = f"the last whole checkpoint is {whole[-1]!r}" if whole else "name a folder such as OUT/checkpoint-900"
        raise EffptError(f"{str(folder)!r} {fault}; {fix}.")


def _fault(folder: Path) -> str | None:
    if not folder.is_dir():
        return "is not a folder"
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            return f"has no {name}, so it holds no saved model"
    try:
        read_json(folder / "config.json")
        with safe_open(folder / "model.safetensors", framework="pt"):  # compares the header with the file's length
            return None
    except (ValueError, SafetensorError) as error:
        return f"is corrupt or half-written ({error})"


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
