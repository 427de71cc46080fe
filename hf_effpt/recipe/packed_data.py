"""Section `data` of a recipe whose dataset is a folder of packed rows, which has settings of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.data.shards.opening import TOKENIZER, is_rows, read_manifest

from .settings import DataSettings

# Settings of how text becomes rows, which do nothing once it has.
OF_TEXT = ("text_column", "split", "streaming", "documents", "add_tokens", "num_proc", "select")


def with_packed(data: Any) -> Any:
    """The section with the settings of its packed rows in place of those that it leaves out.

    Raises an `EffptError` for rows that are not finished.
    """
    if not isinstance(data, Mapping) or not is_rows(data.get("dataset")):
        return data
    return {**_settings_of(data["dataset"]), **{key: value for key, value in data.items() if value is not None}}


def check_packed(data: DataSettings) -> None:
    """Raises an `EffptError` for a setting that contradicts the packed rows of the section, if it has some."""
    if not is_rows(data.dataset):
        return
    for key, value in _settings_of(data.dataset).items():
        given = getattr(data, key)
        same = given == value
        if key == "validation":
            same = data.held_out == (float(value) or None)
        if key == "tokenizer":
            same = given is not None and Path(given).expanduser().resolve() == Path(value).expanduser().resolve()
        if not same:
            raise EffptError(
                f"`data.{key}` is {given!r}, but the rows in {data.dataset} were packed with {value!r}; set it to "
                "that, or pack the text again with `effpt pack`."
            )
    for key in OF_TEXT:
        if getattr(data, key) != getattr(DataSettings, key):
            raise EffptError(
                f"`data.{key}` is {getattr(data, key)!r}, but {data.dataset} is packed already: leave it out, or name "
                "the text in `data.dataset`."
            )


def _settings_of(dataset: Any) -> dict[str, Any]:
    settings = read_manifest(dataset)["settings"]
    own = {key: settings[key] for key in ("sequence_length", "isolate_documents")}
    return {**own, "validation": str(settings["validation"] or 0), "tokenizer": str(Path(dataset, TOKENIZER))}
