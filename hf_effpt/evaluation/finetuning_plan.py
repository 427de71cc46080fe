"""Plans of fine-tuning by a protocol: everything is loaded and checked before anything is trained."""

import hashlib
import json
import tempfile
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_effpt.core.errors import EffptError

from .finetune import finetune
from .lora import check_lora
from .protocols import Protocol, Settings, find_protocol
from .stock_checkpoint import check_finetunable, config_of
from .tasks import Task, base_name, load_task

OnResult = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Part:
    """One task of a plan: it `waits` if it starts from the encoder fine-tuned on the first task, MNLI.

    `note` is a remark if the number of seeds is not the protocol's.
    """

    task: Task
    settings: Settings
    seeds: list[int]
    waits: bool
    note: str | None


@dataclass(frozen=True)
class Plan:
    """Checked plan of fine-tuning runs, as [`plan_suite`] makes it."""

    model_dir: Path
    protocol: Protocol
    lora: int | None
    parts: list[Part]

    def run(
        self, on_result: OnResult | None = None, finished: MutableMapping[str, dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Fine-tunes every task with every seed, and calls `on_result` with each task's name and seed's result.

        Seeds whose results are in `finished`, from earlier calls for this model, are not run again; new results are
        added to it before `on_result` is called.

        Returns:
            `protocol`, `lora`, `tasks` (by score name: `value`, `statistic`, `standard_deviation`, `seeds`, `notes`)
            and `average` (`name`, `value`, `note`). A score that one seed lacks has no value, nor has an incomplete
            average.
        """
        finished = {} if finished is None else finished
        suffix = f"+lora{self.lora}" if self.lora else ""
        scores: dict[str, dict[str, Any]] = {}
        values: dict[tuple[str, str], float | None] = {}
        keys = self._keys()
        needs_mnli = any(part.waits and keys[at, seed] not in finished for at, part in enumerate(self.parts)
                         for seed in part.seeds)  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:
            on_mnli = Path(scratch) / "mnli"
            for at, part in enumerate(self.parts):
                notes = [*part.task.notes, *([part.note] if part.note else [])]
                if part.waits:
                    notes.append(f"started from the encoder fine-tuned on {self.parts[0].task.name}")
                results = []
                for seed in part.seeds:
                    key = keys[at, seed]
                    keep = on_mnli if needs_mnli and at == 0 and seed == part.seeds[0] else None
                    if keep is None and key in finished:
                        results.append(finished[key])
                        continue
                    start = on_mnli if part.waits else self.model_dir
                    result = finished[key] = finetune(start, part.task, part.settings, seed, self.lora, keep)
                    results.append(result)
                    if on_result:
                        on_result(part.task.name, result)
                for metric in self.protocol.logged_metrics(base_name(part.task.name), part.task.all_metrics()):
                    name = self.protocol.score_name(part.task.name, metric) + suffix
                    scores[name] = self.protocol.over_seeds(metric, results, notes)
                    values[part.task.name, metric] = scores[name]["value"]
        average, note = self.protocol.average(values)
        said = [note, *(f"{part.task.name} has {part.note}" for part in self.parts if part.note)]
        if self.lora:
            said.append(f"{suffix}: adapters of rank {self.lora} and the head were trained, not all weights")
        return {
            "protocol": self.protocol.name,
            "lora": self.lora,
            "tasks": scores,
            "average": {"name": f"average@{self.protocol.name}{suffix}", "value": average, "note": "; ".join(said)},
        }

    def _keys(self) -> dict[tuple[int, int], str]:
        """Keys of results by part and seed: hashes of everything except the model that they depend on."""
        made_of = [[_content(part.task), repr(part.settings), self.lora] for part in self.parts]
        first = [*made_of[0], self.parts[0].seeds[0]]
        keys = {}
        for at, part in enumerate(self.parts):
            for seed in part.seeds:
                content = [*made_of[at], seed, first if part.waits else None]
                digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
                keys[at, seed] = f"{part.task.name}@{self.protocol.name}, seed {seed}, {digest}"
        return keys


def plan_suite(
    model_dir: str | Path,
    tasks: Sequence[str],
    protocol: str | Protocol,
    *,
    data: str | Path | None,
    seeds: int | Sequence[int] | None = None,
    lora: int | None = None,
) -> Plan:
    """Loads and checks everything that fine-tuning a model by a protocol needs; MNLI comes first.

    The arguments are those of [`evaluate`]; with `lora` score names end in `+loraRANK`. Raises an `EffptError` if a
    task, protocol or model cannot be used.
    """
    check_finetunable(model_dir)
    protocol = protocol_for(protocol, model_dir)
    if lora is not None:
        check_lora(lora)
    loaded = load_tasks(tasks, data)
    loaded.sort(key=lambda task: base_name(task.name) != "mnli")  # others may start from its encoder
    waiting = [task.name for task in loaded if base_name(task.name) in protocol.from_mnli]
    if waiting and base_name(loaded[0].name) != "mnli":
        raise EffptError(
            f"In {protocol.name}, {', '.join(waiting)} start from the model fine-tuned on MNLI, which is not among "
            "the tasks. Add mnli, or use another protocol."
        )
    parts = []
    for task in loaded:
        base = base_name(task.name)
        chosen, usual = protocol.choose_seeds(base, seeds), protocol.seeds_of(base)
        note = f"seeds: {len(chosen)}, where the protocol has {usual}" if len(chosen) != usual else None
        parts.append(Part(task, protocol.settings_of(base), chosen, task.name in waiting, note))
    return Plan(Path(model_dir), protocol, lora, parts)


def protocol_for(protocol: str | Protocol, model_dir: str | Path) -> Protocol:
    """Protocol of a name for the model in a folder; raises an `EffptError` for an unknown name or without a model."""
    if isinstance(protocol, Protocol):
        return protocol
    return find_protocol(protocol, getattr(config_of(model_dir), "hidden_size", None))


def load_tasks(names: Sequence[str], data: str | Path | None) -> list[Task]:
    """Loads tasks; raises an `EffptError` for one that cannot be used, or two whose scores would have one name."""
    loaded: dict[str, tuple[str, Task]] = {}
    for asked in names:
        task = load_task(asked, data)
        if task.name in loaded:
            raise EffptError(
                f"The tasks `{loaded[task.name][0]}` and `{asked}` are both called `{task.name}`, and so would their "
                "scores be. Rename the files of one, or evaluate them separately."
            )
        loaded[task.name] = (asked, task)
    return [task for _, task in loaded.values()]


def _content(task: Task) -> str:
    """Hash of the examples of a task."""
    total = hashlib.sha256(repr((task.text_columns, task.label_names, task.metrics)).encode())
    for name, rows in [("train", task.train), *task.validation.items()]:
        total.update(name.encode())
        total.update(json.dumps(rows.to_dict()).encode())
    return total.hexdigest()
