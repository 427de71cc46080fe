"""Packing of a corpus into shards of rows by many processes or machines: `pack_shards`."""

import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from filelock import Timeout
from huggingface_hub.utils import WeakFileLock
from transformers import AutoTokenizer

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import is_disk_full
from hf_effpt.data.cache import build_once, is_whole
from hf_effpt.data.holding_out import open_validation
from hf_effpt.data.packed_rows import facts
from hf_effpt.data.tokenizer_training import train_tokenizer

from .opening import MANIFEST, PLAN, TOKENIZER, open_rows
from .plan import PackSettings, Plan

logger = logging.getLogger(__name__)
LOGS = "logs"
EXECUTORS = ("local", "slurm", "ray")


def pack_shards(
    dataset: Any,
    out: str | os.PathLike,
    *,
    workers: int | None = None,
    executor: str = "local",
    executor_options: Sequence[str] = (),
    **settings: Any,
) -> DatasetDict | None:
    """Packs text into shards of rows by datatrove pipelines, for text beyond one process or machine.

    A tokenizer is trained once, or given. Then each task tokenises its files, documents are held out by the rule of
    [`pack`], and each task packs its part into one shard; the manifest comes last. What was killed goes on where it
    was when it is called again. Rows are those of `pack` if there is one task. With several, documents and held-out
    rows are the same, and each shard drops its last row if that is not full.

    Args:
        dataset (`str` or `list`): The text, as [`open_corpus`] takes it, but by name, since other processes open it.
        out (`str`): New folder for the rows, or one that this was begun in. Machines of a cluster must share it.
        workers (`int`, *optional*): Processes at a time, by default one for every core. Of a cluster's executor it is
            a setting.
        executor (`str`, *optional*, defaults to `"local"`): `"local"` processes, `"slurm"` or `"ray"`.
        executor_options (`Sequence[str]`, *optional*): Settings of the cluster's executor of datatrove, `KEY=VALUE`.
        **settings: `sequence_length`, `isolate_documents` and `validation` (a share, or `None`) as of `pack`;
            `text_column`, `split`, `streaming` and `documents` as of `open_corpus`; `tokenizer` (a folder or Hub id),
            or `vocab_size`, `kind`, `lowercase` and `strip_accents` of one that is trained, as of `train_tokenizer`;
            and `tasks`, the number of shards at most, by default one for every 128 MiB of text, up to 1,000.

    Returns:
        `DatasetDict`: the rows, as [`open_rows`] opens them; `None` if they were submitted to Slurm.

    Raises:
        EffptError: for settings or text that cannot be used, a folder that is another's, begun with other settings or
            in use, or tasks that have failed.
    """
    require_datatrove()
    known = [one.name for one in fields(PackSettings)]
    if unknown := sorted(set(settings) - set(known)):
        raise EffptError(f"pack_shards takes no {', '.join(unknown)}; its settings are {', '.join(known[1:])}.")
    asked = PackSettings(dataset, **settings)
    _check(asked, workers, executor)
    from .executors import options_of

    options = options_of(executor, executor_options)
    folder = Path(out).expanduser()
    plan = _claim(asked, str(out))
    try:
        with WeakFileLock(folder / ".lock", timeout=0.1):
            return _pack(plan, workers or _cores(), executor, options)
    except Timeout as error:
        raise EffptError(f"Another process is packing into {out} now; wait for it, or name another folder.") from error
    except OSError as error:
        if is_disk_full(error):
            raise EffptError(
                f"The disk of {out} is full (nothing half-written was kept). Free some space and go on with: "
                f"{plan.command}"
            ) from error
        raise


def _pack(plan: Plan, workers: int, executor: str, options: dict[str, Any]) -> DatasetDict | None:
    from .executors import Stage, run_stages
    from .steps import Finish, HoldOut, ReadDocuments, WriteRows, WriteTokens

    if (plan.folder / PLAN).exists():
        before = Plan.read(plan.folder)
        if plan.settings != before.settings:
            raise EffptError(
                f"{plan.folder} was begun with other settings; go on with: {before.command}, or name another folder."
            )
        before.check_unchanged(before.corpus)
        plan = before
    else:
        plan.write()
    _forget_damaged(plan)
    if (plan.folder / MANIFEST).exists():
        return open_rows(plan.folder)
    # Tasks on other machines may begin in another folder.
    folder, tasks = plan.folder.absolute(), len(plan.tasks)
    if plan.settings.tasks is not None and tasks < plan.settings.tasks:
        logger.info("%s can be cut into %d parts at most: there are %d tasks", plan.name, tasks, tasks)
    _make_tokenizer(plan)
    together = min(workers, tasks) if executor == "local" else 1
    threads = max(1, _cores() // together) if executor == "local" else int(options.get("cpus_per_task", 1))
    stages = [
        Stage("1_tokens", [ReadDocuments(folder), WriteTokens(folder, threads)], tasks),
        Stage("2_held_out", [HoldOut(folder)], 1),
        Stage("3_rows", [WriteRows(folder)], tasks),
        Stage("4_manifest", [Finish(folder)], 1),
    ]
    if not run_stages(stages, folder / LOGS, executor, options, workers, plan.command):
        return None
    return open_rows(folder)


def require_datatrove() -> None:
    """Raises an `EffptError` if datatrove is not installed."""
    try:
        import datatrove  # noqa: F401
    except ImportError as error:
        raise EffptError(
            "Packing into shards needs datatrove, which is not installed: pip install hf_effpt[pack]"
        ) from error


def _check(asked: PackSettings, workers: int | None, executor: str) -> None:
    """Raises an `EffptError` for settings that are impossible, before anything is written."""
    if executor not in EXECUTORS:
        raise EffptError(f"executor={executor!r} is not known; choose one of {', '.join(EXECUTORS)}.")
    for key, value in (("workers", workers), ("tasks", asked.tasks)):
        if value is not None and value < 1:
            raise EffptError(f"{key}={value} must be at least 1.")
    if workers is not None and executor != "local":
        raise EffptError(f"workers={workers} is of local processes; of {executor} set executor_options workers=N.")
    if not isinstance(asked.sequence_length, int) or asked.sequence_length < 8:
        raise EffptError(f"sequence_length={asked.sequence_length} must be one whole number of at least 8.")
    if asked.validation is not None and not isinstance(asked.validation, int | float):
        raise EffptError(
            f"validation={asked.validation!r} must be a share of the text, or None (0 on the command line)."
        )
    trained = {"vocab_size", "kind", "lowercase", "strip_accents"}
    changed = [key for key in sorted(trained) if getattr(asked, key) != getattr(PackSettings, key)]
    if asked.tokenizer is not None and changed:
        raise EffptError(
            f"{', '.join(changed)} are of a tokenizer that is trained, but tokenizer={asked.tokenizer!r}."
        )


def _claim(asked: PackSettings, out: str) -> Plan:
    """Plans the packing, and makes its folder; raises an `EffptError` if that holds something else."""
    folder = Path(out).expanduser()
    plan = Plan.make(asked, out)
    open_validation(asked.validation, plan.settings.open(plan.dataset))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise EffptError(f"{out} cannot be the folder of the rows ({error.strerror}); name another.") from error
    if held and PLAN not in held:
        raise EffptError(f"{out} holds {', '.join(held[:5])}, and no {PLAN} of a packing; name a new folder.")
    return plan


def _make_tokenizer(plan: Plan) -> None:
    """Trains the tokenizer, or loads the one that is given, and saves it with the rows, once."""
    own = plan.settings

    def save(target: Path) -> None:
        if own.tokenizer is None:
            keys = ("vocab_size", "kind", "lowercase", "strip_accents")
            train_tokenizer(plan.corpus.in_parts(), **{key: getattr(own, key) for key in keys}, out=target)
            return
        try:
            AutoTokenizer.from_pretrained(own.tokenizer).save_pretrained(target)
        except (OSError, ValueError) as error:
            raise EffptError(
                f"The tokenizer {own.tokenizer!r} cannot be loaded ({str(error).splitlines()[0]}); give a folder made "
                "by `effpt tokenizer`, or leave it out to train one."
            ) from error

    build_once(plan.folder / TOKENIZER, save, AutoTokenizer.from_pretrained, "name another folder with --out")


def _forget_damaged(plan: Plan) -> None:
    """Has tasks run again whose results are missing or damaged, though they were done."""
    redo: list[Path] = []
    logs, held_out = plan.folder / LOGS, is_whole(plan.folder / "held_out")
    for task in range(len(plan.tasks)):
        whole = is_whole(plan.shard(task))
        redo += [] if whole else [logs / "3_rows" / "completions" / f"{task:05d}"]
        if not (whole and held_out) and not is_whole(plan.tokens(task)):
            redo.append(logs / "1_tokens" / "completions" / f"{task:05d}")
    redo += [] if held_out else [logs / "2_held_out" / "completions" / "00000"]
    manifest = plan.folder / MANIFEST
    validation = plan.settings.validation is None or is_whole(plan.folder / "validation")
    if redo or not validation or not manifest.exists():
        redo += [logs / "4_manifest" / "completions" / "00000", manifest]
    for path in redo:
        path.unlink(missing_ok=True)


def _cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def summary(folder: str | os.PathLike, rows: DatasetDict) -> str:
    """Lines that tell what is in a folder of packed rows."""
    told = facts(rows["train"])
    shards = len(list((Path(folder).expanduser() / "shards").glob("[0-9]*[0-9]")))
    lines = [
        f"{folder} has {told['rows']:,} rows of {told['sequence_length']} tokens in {shards} shards, "
        f"{told['tokens']:,} tokens of {told['documents']:,} documents."
    ]
    if "held_out" in told:
        aside, own = told["held_out"], facts(rows["validation"])
        lines.append(
            f"Held out: {aside['documents']:,} documents, {aside['share']:.2%} of the tokens, {own['rows']:,} rows; "
            f"{told['doubles']:,} training documents equal one of them."
        )
    return "\n".join(lines)
