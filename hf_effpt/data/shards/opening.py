"""Opening of packed rows in shards as one memory-mapped dataset, and checks that they are all there."""

import json
import os
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, DatasetInfo, NamedSplit
from datasets.table import MemoryMappedTable, concat_tables

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json
from hf_effpt.data.cache import CONTENTS, is_whole

# The plan is the first file of a folder of shards, its manifest the last one.
PLAN, MANIFEST = "effpt_plan.json", "effpt_rows.json"
TOKENIZER = "tokenizer"
# To be raised when plans, shards or manifests of before cannot be read.
FORMAT = 1


def is_rows(source: Any) -> bool:
    """`True` for a folder that `effpt pack` has begun, whether it is finished or not."""
    if not isinstance(source, str | os.PathLike):
        return False
    try:
        folder = Path(source).expanduser()
        return (folder / PLAN).is_file() or (folder / MANIFEST).is_file()
    except (OSError, ValueError, RuntimeError):  # a name that can be no path
        return False


def refuse_rows(source: str) -> None:
    """Raises an `EffptError` where text is needed and `source` has packed rows."""
    if is_rows(source):
        raise EffptError(
            f"{source} has packed rows, made by `effpt pack`, and not text, which is needed here; name the text that "
            "it was made from. Of a recipe, only `data.dataset` may name such a folder, by itself."
        )


def read_manifest(source: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a folder of packed rows.

    Raises an `EffptError` that names the command to use if the folder is not finished, or of another version.
    """
    folder = Path(source).expanduser()
    finished = (folder / MANIFEST).is_file()
    if not finished and not (folder / PLAN).is_file():
        raise EffptError(f"{source} is no folder of packed rows: it has no {MANIFEST}. Make one with `effpt pack`.")
    found = read_json(folder / (MANIFEST if finished else PLAN))
    if found.get("format") != FORMAT:
        raise EffptError(
            f"{source} was packed by another version of hf_effpt (format {found.get('format')}, needed is {FORMAT}); "
            f"pack the text again into another folder: {found.get('command', 'effpt pack CORPUS')} --out ANOTHER"
        )
    if not finished:
        raise EffptError(f"{source} is not finished, since {MANIFEST} is missing; go on with: {found['command']}")
    return found


def open_rows(folder: str | os.PathLike) -> DatasetDict:
    """Opens the rows that `effpt pack` or [`pack_shards`] has made, memory-mapped, as one dataset a split.

    Args:
        folder (`str`): The folder of the shards; nothing in it is copied.

    Returns:
        `DatasetDict` with `"train"` and, if text is held out, `"validation"`, as `pack` returns it: the facts are in
        `facts(rows["train"])`, the tokenizer in `folder/tokenizer`.

    Raises:
        EffptError: the folder is not finished, of another version, or a shard is missing or damaged; it names the
            command that mends it.
    """
    root, manifest = Path(folder).expanduser(), read_manifest(folder)
    packed = DatasetDict()
    for split, told in manifest["splits"].items():
        tables = []
        for shard in told["shards"]:
            if not is_sound(root / shard["folder"], shard["sha256"], split):
                raise EffptError(
                    f"The shard {root / shard['folder']} is missing or damaged; make it again with: "
                    f"{manifest['command']}"
                )
            tables.append(MemoryMappedTable.from_file(str(root / shard["folder"] / f"{split}.arrow")))
        rows = sum(len(table) for table in tables)
        if rows != told["facts"]["rows"]:
            raise EffptError(
                f"{folder} has {rows:,} rows, and its manifest says {told['facts']['rows']:,}; make it again in "
                f"another folder: {manifest['command']} --out ANOTHER"
            )
        info = DatasetInfo(description=json.dumps({"hf_effpt": told["facts"]}))
        fingerprint = told["facts"]["fingerprint"]
        packed[split] = Dataset(concat_tables(tables), info=info, split=NamedSplit(split), fingerprint=fingerprint)
    return packed


def hash_of(shard: Path, split: str) -> str:
    """SHA-256 that the rows of a shard had when they were written."""
    return json.loads((shard / CONTENTS).read_text())[f"{split}.arrow"]["sha256"]


def is_sound(shard: Path, sha256: str, split: str) -> bool:
    """`True` if the rows of a shard are those of the manifest. They are hashed once after they were moved."""
    return is_whole(shard) and hash_of(shard, split) == sha256
