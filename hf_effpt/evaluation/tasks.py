"""Labelled tasks to fine-tune on: GLUE, AG News and your own, from files or, if asked, from the Hub."""

import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_effpt.core.errors import EffptError, first_line
from hf_effpt.core.registry import nearest

from .table_files import READERS, read_table

logger = logging.getLogger(__name__)

HELD_OUT, HELD_OUT_SEED = 0.1, 0


@dataclass(frozen=True)
class Known:
    """Public task as the Hub has it."""

    text_columns: tuple[str, ...]
    label_names: tuple[str, ...] | None  # None for a regression
    metrics: tuple[str, ...] = ("accuracy",)
    hub: str = "nyu-mll/glue"
    validation: tuple[str, ...] = ("validation", "dev")


_PAIR, _ENTAILED = ("sentence1", "sentence2"), ("entailment", "not_entailment")

KNOWN: dict[str, Known] = {
    "cola": Known(("sentence",), ("unacceptable", "acceptable"), ("mcc",)),
    "sst2": Known(("sentence",), ("negative", "positive")),
    "mrpc": Known(_PAIR, ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "rte": Known(_PAIR, _ENTAILED),
    "stsb": Known(_PAIR, None, ("pearson", "spearman")),
    "qnli": Known(("question", "sentence"), _ENTAILED),
    "qqp": Known(("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy")),
    "mnli": Known(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"),
                  validation=("validation_matched", "dev_matched", "validation", "dev")),
    "wnli": Known(_PAIR, ("not_entailment", "entailment")),
    # It has no validation split; published scores are on its test split.
    "ag_news": Known(("text",), ("World", "Sports", "Business", "Sci/Tech"), hub="fancyzhx/ag_news",
                     validation=("validation", "dev", "test")),
}  # fmt: skip

MISMATCHED = ("validation_mismatched", "dev_mismatched")
# Text columns looked for in unknown tasks, in this order.
USUAL_TEXTS = (_PAIR, ("premise", "hypothesis"), ("question", "sentence"), ("question1", "question2"),
               ("text", "text_pair"), ("text",), ("sentence",))  # fmt: skip


@dataclass(frozen=True)
class Task:
    """Labelled task.

    `name` is such as `mnli`, or `mnli_subset` if the data are not the published ones. `train` has the text columns,
    and `label`: a class from 0, or a float. `validation` is by suffix of metric names, `""`, and `"_mm"` for MNLI's
    mismatched examples. `label_names` are those of the classes, `None` for a regression; `notes` are caveats.
    """

    name: str
    train: Dataset
    validation: dict[str, Dataset]
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...] | None
    metrics: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def all_metrics(self) -> tuple[str, ...]:
        """Names of its scores: each metric on each set of validation examples."""
        return tuple(f"{metric}{part}" for part in self.validation for metric in self.metrics)

    def majority(self) -> float | None:
        """Validation accuracy of always predicting the commonest class of the training examples."""
        if self.label_names is None:
            return None
        commonest = np.bincount(self.train["label"][:]).argmax()
        return float(np.mean(np.asarray(self.validation[""]["label"][:]) == commonest))


def load_task(name: str, data: str | Path | None = None) -> Task:
    """Loads a task; raises an `EffptError` if it lacks files, columns or splits, or its labels cannot be learned from.

    `name` is a known task, `cola` `sst2` `mrpc` `rte` `stsb` `qnli` `qqp` `mnli` `wnli` `ag_news`; a folder with
    `train` and `validation` files, or one file; or a dataset on the Hub, `org/name` or `org/name:configuration`. Files
    are Parquet, JSON lines, CSV or, without quoting, TSV. `data` is the folder that holds `NAME/` or `tasks/NAME/`
    (also `NAME_subset`, `NAME_resplit`), or `"hub"` to download known tasks.
    """
    known = KNOWN.get(base_name(name))
    if known and str(data) == "hub":
        if name not in KNOWN:
            raise EffptError(f"The Hub has no `{name}`, only the whole task. Name that, or give a folder that has it.")
        return _build(name, *_from_hub(known.hub, name if known.hub == "nyu-mll/glue" else None), known)
    if known or not Path(name).exists():
        if data is not None and str(data) != "hub" and (folder := _folder_of(name, Path(data), known)):
            return _build(folder.name, *_from_folder(folder, known), known) if known else _from_path(folder)
        if known:
            raise EffptError(
                f"The task `{name}` needs `data` (on the command line `--data`): a folder with {name}/train.* and "
                f"{name}/validation.*, or `hub` to download {known.hub}."
            )
        if re.fullmatch(r"[\w.-]*\w/[\w.-]+(:[\w.-]+)?", name) and not name.endswith(tuple(READERS)):
            repository, _, configuration = name.partition(":")
            return _build(name, *_from_hub(repository, configuration or None), None)
        raise EffptError(
            f"There is no task `{name}`: it is no known task ({nearest(name, list(KNOWN))}), no file or folder "
            f"({Path(name).absolute()}) and no dataset on the Hub, org/name."
        )
    return _from_path(Path(name))


def base_name(task: str) -> str:
    """Name of a task without the suffix of unpublished data."""
    return task.removesuffix("_subset").removesuffix("_resplit")


def _folder_of(name: str, data: Path, known: Known | None) -> Path | None:
    if not data.is_dir():
        raise EffptError(f"The data folder {data.absolute()} does not exist. Correct it, or give `hub` to download.")
    names = (name, f"{name}_subset", f"{name}_resplit") if known else (name,)
    tried = [folder / each for folder in (data / "tasks", data) for each in names]
    found = [folder for folder in tried if folder.is_dir()]
    if known and not found:
        raise EffptError(
            f"The data folder {data.absolute()} has no task `{name}`; looked for {', '.join(map(str, tried))}. Add "
            f"its files, leave the task out, or give `hub` in its place to download {known.hub}."
        )
    return found[0] if found else None


def _from_path(path: Path) -> Task:
    """Task of your own; only a folder with the name, columns and labels of a known task counts as that one."""
    name = Path(os.path.abspath(path)).name
    known = KNOWN.get(base_name(name))
    if path.is_dir():
        notes = (f"given by its path, {path}: whether these are the data of {name} is not checked",) if known else ()
        return _build(name, *_from_folder(path, known), known, notes)
    clashes = KNOWN.get(base_name(path.stem))
    return _build(path.name if clashes else path.stem, {"train": _read([path])}, str(path), None)


def _from_folder(folder: Path, known: Known | None) -> tuple[dict[str, Dataset], str]:
    """Splits in a folder by name, and the folder's name; a split may be in shards, as on the Hub."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in READERS:
            files.setdefault(re.sub(r"-\d+-of-\d+$", "", path.stem), []).append(path)
    if "train" not in files:
        present = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise EffptError(
            f"{folder.absolute()} has no training split: it holds {present}, but needs train.* and, better, "
            f"validation.*, as {', '.join(READERS)}."
        )
    needed = {"train", *(known or Known).validation, *MISMATCHED}
    return {split: _read(paths) for split, paths in files.items() if split in needed}, str(folder)


def _from_hub(repository: str, configuration: str | None) -> tuple[dict[str, Dataset], str]:
    where = f"{repository}:{configuration}" if configuration else repository
    logger.warning("Downloading the dataset %s from the Hub", where)
    try:
        loaded = datasets.load_dataset(repository, configuration)
    except (OSError, ValueError, RuntimeError) as error:
        raise EffptError(
            f"{where} is neither a file or folder here nor can it be had from the Hub ({type(error).__name__}: "
            f"{first_line(error)}). Check the spelling and the network, or use local files."
        ) from error
    if not isinstance(loaded, DatasetDict) or "train" not in loaded:
        raise EffptError(f"The dataset {where} has no training split, only {list(loaded)}; use one that has.")
    return dict(loaded), where


def _build(name: str, splits: dict[str, Dataset], where: str, known: Known | None, said: tuple[str, ...] = ()) -> Task:
    """Finds columns, labels and validation examples, and checks them."""
    notes = list(said)
    if known and name not in KNOWN:
        notes.append(f"{name} is not the published data of the task: its scores compare with no published ones")
    parts = {"train": splits["train"]}
    if main := next((split for split in (known or Known).validation if split in splits), None):
        parts[""] = splits[main]
        if main == "test":
            notes.append(f"{name} has no validation split; evaluated on test, as is usual")
    if main and (mismatched := next((split for split in MISMATCHED if split in splits), None)):
        parts["_mm"] = splits[mismatched]
    for split, rows in parts.items():
        if not len(rows):
            raise EffptError(f"{where}: the split {split or main} has no examples; it needs at least one.")
    features = parts["train"].features
    label = next((column for column in ("label", "labels") if column in features), None)
    if label is None:
        raise EffptError(
            f"{where} has the columns {', '.join(map(repr, features))}, but a task needs one named `label` or "
            "`labels`. Rename it; a CSV or TSV needs a first line with the names."
        )
    texts = _text_columns(features, label, where, known)
    if not known:
        notes.append(f"text is read from {' and '.join(texts)}")
    parts = {split: _complete(rows, texts, label, split or "validation", where) for split, rows in parts.items()}
    if not main:
        parts = _with_held_out(parts["train"], where, known)
        notes.append(f"no validation split: {HELD_OUT:.0%} of the training examples are held out, always the same")
    kinds = {str(rows.features["label"]) for rows in parts.values()}
    if len(kinds) > 1:
        raise EffptError(f"{where}: labels are of different kinds in train and validation, {' and '.join(kinds)}.")
    train = parts["train"]
    names, convert = _labels(train.features["label"], train["label"][:], where, known)
    if names is None and not known and all(float(value).is_integer() for value in train["label"][:]):
        notes.append("a regression, since the labels are floats, though whole ones; write classes without a point")
    parts = _numbered(parts, names, convert, where)
    for note in notes:
        logger.warning("%s: %s", name, note)
    metrics = known.metrics if known else (("pearson", "spearman") if names is None else ("accuracy",))
    return Task(name, parts.pop("train"), parts, texts, names, metrics, tuple(notes))


def _with_held_out(rows: Dataset, where: str, known: Known | None) -> dict[str, Dataset]:
    """Holds out validation examples, of every class its share; a class of one example stays in training."""
    kind = str(getattr(rows.features["label"], "dtype", ""))
    number = (known and known.label_names is None) or kind.startswith("float")
    classes: dict[Any, list[int]] = {}
    labels = rows["label"][:]
    for index in np.random.default_rng(HELD_OUT_SEED).permutation(len(rows)).tolist():
        classes.setdefault(None if number else labels[index], []).append(index)
    # Class by class, so that every tenth example is the same share of each class, whatever its size.
    order = [index for _, alike in sorted(classes.items(), key=str) if len(alike) > 1 for index in alike]
    if not order:
        raise EffptError(
            f"{where} has no validation split and no class of two examples, one to train on and one to hold out; add "
            "examples, or validation.*."
        )
    every = round(1 / HELD_OUT)
    aside = set(order[min(every, len(order)) // 2 :: every])
    train = [index for index in range(len(rows)) if index not in aside]
    return {"train": rows.select(train), "": rows.select(sorted(aside))}


def _text_columns(features: Features, label: str, where: str, known: Known | None) -> tuple[str, ...]:
    strings = [
        column
        for column, feature in features.items()
        if column != label and isinstance(feature, Value) and feature.dtype in ("string", "large_string")
    ]
    for texts in (known.text_columns,) if known else USUAL_TEXTS:
        if set(texts) <= set(strings):
            return texts
    if known or not strings:
        needed = " and ".join(known.text_columns) if known else "at least one"
        raise EffptError(
            f"{where} has the string columns {', '.join(strings) or 'none'}, but needs {needed}. Rename or add them."
        )
    return tuple(strings[:2])


def _complete(rows: Dataset, texts: tuple[str, ...], label: str, split: str, where: str) -> Dataset:
    """The columns needed, checked for missing values."""
    if missing := [column for column in (*texts, label) if column not in rows.features]:
        raise EffptError(f"{where}: {split} lacks the column {missing[0]!r} that train has; make the splits alike.")
    rows = rows.select_columns([*texts, label])
    table = rows.with_format("arrow")[:]
    for column in (*texts, label):
        empty = pc.is_null(table[column], nan_is_null=True)
        if pc.any(empty).as_py():
            raise EffptError(
                f"{where}: row {pc.index(empty, True).as_py()} of {split} has no {column!r}; fill it or remove it."
            )
    return rows if label == "label" else rows.rename_column(label, "label")


def _labels(
    feature: Any, values: Iterable, where: str, known: Known | None
) -> tuple[tuple[str, ...] | None, Callable]:
    """Names of the classes, or `None` for a regression, and a function from labels in the data to numbers."""
    kind = feature.dtype if isinstance(feature, Value) else ""
    if known and known.label_names is None:
        fits = kind.startswith(("float", "int", "uint"))
    elif known and isinstance(feature, ClassLabel):
        fits = tuple(feature.names) == known.label_names
    elif known:
        fits = kind.endswith("string") or kind.startswith(("int", "uint"))
    else:
        fits = isinstance(feature, ClassLabel | Value)
    if not fits:
        wanted = ", ".join(known.label_names or ["a number each"]) if known else "a class or a number each"
        raise EffptError(f"{where}: the labels are {feature}, but the task needs {wanted}. Convert the column.")
    if kind.startswith("float") or (known and known.label_names is None):
        return None, float
    if isinstance(feature, ClassLabel):
        return tuple(feature.names), int
    if known:
        names = known.label_names or ()
        return names, {name: index for index, name in enumerate(names)}.get if kind.endswith("string") else int
    order = {value: index for index, value in enumerate(sorted({value for value in values if value != -1}))}
    return tuple(map(str, order)), {**order, -1: -1}.get


def _numbered(
    parts: dict[str, Dataset], names: tuple[str, ...] | None, convert: Callable, where: str
) -> dict[str, Dataset]:
    """Splits with labels as numbers, after checking that they can be learned from."""
    seen: set[int] = set()
    numbered = {}
    for part, rows in parts.items():
        split = part if part == "train" else f"validation{part}"
        labels = rows["label"][:]
        numbers = [convert(label) for label in labels]
        if names is not None:
            if hidden := numbers.count(-1):
                raise EffptError(
                    f"{where}: {hidden} of {len(numbers)} labels in {split} are -1, which marks hidden labels, as in "
                    "GLUE's test splits. Use a split with labels, or number your classes from 0."
                )
            allowed = set(range(len(names))) if part == "train" else seen
            if strange := {str(label) for label, number in zip(labels, numbers, strict=True) if number not in allowed}:
                only = "the classes are" if part == "train" else "train has only"
                raise EffptError(
                    f"{where}: {split} has the labels {', '.join(sorted(strange)[:5])}, but {only} "
                    f"{', '.join(names[number] for number in sorted(allowed))}. Correct them, or split the data anew."
                )
            if part == "train" and len(seen := set(numbers)) < 2:
                raise EffptError(
                    f"{where}: every label in train is {labels[0]!r}, but learning needs two classes. Add examples "
                    "of another class, or label with floats for a regression."
                )
        columns = {name: rows.with_format("arrow")[:][name] for name in rows.column_names}
        columns["label"] = pa.array(numbers, pa.float32() if names is None else pa.int64())
        numbered[part] = Dataset(pa.table(columns))
    return numbered


def _read(paths: list[Path]) -> Dataset:
    """One split, read from its files."""
    if len({path.suffix for path in paths}) > 1 or len({path.name for path in paths if "-of-" not in path.stem}) > 1:
        raise EffptError(
            f"{paths[0].parent.absolute()} has {', '.join(path.name for path in paths)} for one split; keep one."
        )
    tables = [read_table(path) for path in paths]
    try:
        return Dataset(pa.concat_tables(tables))
    except pa.ArrowException as error:
        raise EffptError(f"{paths[0].parent.absolute()}: its shards do not fit each other: {error}") from error
