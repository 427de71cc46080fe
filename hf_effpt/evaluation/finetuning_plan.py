"""Fine-tuning by a protocol: what will be done is found, and found wrong, before any of it is."""

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
from .stock_checkpoint import check_finetunable
from .tasks import Task, base_name, load_task

OnResult = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Part:
    """One task of a plan.

    Args:
        task ([`Task`]), settings ([`Settings`]), seeds (`list[int]`): what is learned, how, and how often.
        waits (`bool`): whether it starts from the encoder fine-tuned on the first task, MNLI.
        note (`str`, *optional*): of seeds that are not as many as the protocol has.
    """

    task: Task
    settings: Settings
    seeds: list[int]
    waits: bool
    note: str | None


@dataclass(frozen=True)
class Plan:
    """What [`plan_suite`] has checked, to be run."""

    model_dir: Path
    protocol: Protocol
    lora: int | None
    parts: list[Part]

    def run(
        self, on_result: OnResult | None = None, finished: MutableMapping[str, dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Fine-tunes every task with every seed.

        Args:
            on_result (`Callable`, *optional*): called with a task's name and the result of [`finetune`] of one seed.
            finished (`MutableMapping[str, dict]`, *optional*): results of earlier calls for this model, which are not
                measured again; new ones are added before `on_result` is called.

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
                base = base_name(part.task.name)
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
                    result = finetune(start, part.task, part.settings, seed, self.lora, keep)
                    results.append(result)
                    finished[key] = result
                    if on_result:
                        on_result(part.task.name, result)
                own = tuple(f"{metric}{end}" for end in part.task.validation for metric in part.task.metrics)
                for figure in self.protocol.logged_metrics(base, own):
                    name = self.protocol.score_name(part.task.name, figure) + suffix
                    scores[name] = self.protocol.over_seeds(figure, results, notes)
                    values[part.task.name, figure] = scores[name]["value"]
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
        """For each part and seed a name of everything, but the model, that its result depends on."""
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
    tasks: Sequence[str] | None,
    protocol: str | Protocol,
    *,
    data: str | Path | None,
    seeds: int | Sequence[int] | None = None,
    lora: int | None = None,
) -> Plan:
    """Loads and checks everything that fine-tuning a model by a protocol needs; MNLI comes first.

    Args:
        model_dir (`str` or `Path`): folder of a stock checkpoint with its tokenizer.
        tasks (`Sequence[str]`, *optional*): as `load_task` takes them; by default all of the protocol's.
        protocol (`str` or [`Protocol`]): `default`, `glue9_cramming`, `glue8_mosaic` or `glue8_electra`.
        data (`str` or `Path`): folder of known tasks, or `"hub"`; `None` if none is named.
        seeds (`int` or `Sequence[int]`, *optional*): number of seeds or the seeds; by default the protocol's number.
        lora (`int`, *optional*): rank of LoRA adapters; score names then end in `+loraRANK`.

    Raises:
        EffptError: a task, protocol or model cannot be used.
    """
    protocol = find_protocol(protocol) if isinstance(protocol, str) else protocol
    names = list(dict.fromkeys(protocol.reported if tasks is None else tasks))
    if not names:
        raise EffptError(f"No tasks were named, and the protocol `{protocol.name}` has none of its own. Name some.")
    check_finetunable(model_dir)
    if lora is not None:
        check_lora(lora)
    loaded = load_tasks(names, data)
    loaded.sort(key=lambda task: base_name(task.name) != "mnli")  # others may start from it
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


def load_tasks(names: Sequence[str], data: str | Path | None) -> list[Task]:
    """Loads tasks, no two of one name, since the scores of one would replace the other's.

    Raises:
        EffptError: for a task that cannot be used, or two of one name.
    """
    loaded: dict[str, tuple[str, Task]] = {}
    for asked in names:
        task = load_task(asked, data)
        if task.name in loaded:
            raise EffptError(
                f"The tasks `{loaded[task.name][0]}` and `{asked}` are both called `{task.name}`, and so would their "
                "scores be. Rename the files of one, or evaluate them one at a time."
            )
        loaded[task.name] = (asked, task)
    return [task for _, task in loaded.values()]


def _content(task: Task) -> str:
    """A hash of the examples of a task."""
    total = hashlib.sha256(repr((task.text_columns, task.label_names, task.metrics)).encode())
    for name, rows in [("train", task.train), *task.validation.items()]:
        total.update(name.encode())
        total.update(json.dumps(rows.to_dict()).encode())
    return total.hexdigest()
