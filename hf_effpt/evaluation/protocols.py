"""Fine-tuning protocols: published recipes, named in their scores since their averages are not comparable."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest
from hf_effpt.evaluation.tasks import base_name


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of fine-tuning on one task.

    Args:
        learning_rate (`float`, *optional*, defaults to 1e-4): peak learning rate of the head.
        epochs (`int`, *optional*, defaults to 3): passes over the training examples.
        batch_size (`int`, *optional*, defaults to 32): examples per optimizer step.
        gradient_accumulation_steps (`int`, *optional*, defaults to 1): parts a batch is computed in, to save memory.
        max_length (`int`, *optional*, defaults to 128): tokens of an example; longer ones are cut.
        scheduler (`str`, *optional*, defaults to `"linear"`): a stock learning rate schedule that ends at 0.
        warmup (`float`, *optional*, defaults to 0.1): share of the steps in which the learning rate rises.
        weight_decay, betas, eps (*optional*): of AdamW; biases and norms are not decayed.
        max_grad_norm (`float`, *optional*, defaults to 1.0): clipping threshold of gradients; 0 for no clipping.
        layer_decay (`float`, *optional*, defaults to 1.0): factor of the learning rate per layer below the head.
        dropout (`float`, *optional*): of hidden states and attention; by default the checkpoint's own.

    Raises an `EffptError` if a value is out of range.
    """

    learning_rate: float = 1e-4
    epochs: int = 3
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    max_length: int = 128
    scheduler: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    layer_decay: float = 1.0
    dropout: float | None = None

    def __post_init__(self) -> None:
        parts = self.gradient_accumulation_steps
        needs = (
            ("learning_rate", self.learning_rate > 0, "above 0"),
            *((name, getattr(self, name) >= 1, "at least 1")
              for name in ("epochs", "batch_size", "gradient_accumulation_steps")),
            ("max_length", self.max_length >= 8, "at least 8"),
            ("warmup", 0 <= self.warmup < 1, "a share from 0 to below 1"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0 and at most 1"),
            ("dropout", self.dropout is None or 0 <= self.dropout < 1, "from 0 to below 1, or None"),
            ("batch_size", parts < 1 or self.batch_size % parts == 0, f"a multiple of the {parts} parts it is cut in"),
        )  # fmt: skip
        for name, holds, needed in needs:
            if not holds:
                value = getattr(self, name)
                raise EffptError(f"The fine-tuning setting `{name}` is {value!r}, but must be {needed}.")


@dataclass(frozen=True)
class Protocol:
    """Fine-tuning of a set of tasks: hyperparameters, reported metrics and seeds.

    Args:
        name (`str`): suffix of its score names, `cola/mcc@NAME`.
        source (`str`): publication it is from.
        settings ([`Settings`], *optional*): for tasks without their own; `None` if there are no others.
        task_settings (`Mapping[str, Settings]`, *optional*): for single tasks.
        reported (`Mapping[str, tuple[str, ...]]`, *optional*): metrics of each task that enter the average;
            `accuracy+f1` is a mean of two. Empty for any tasks, each with its own metrics.
        statistic (`str`, *optional*, defaults to `"mean"`): `mean` or `median` over seeds.
        seeds (`int`, *optional*, defaults to 3), task_seeds (`Mapping[str, int]`, *optional*): number of seeds.
        from_mnli (`frozenset[str]`, *optional*): tasks that start from the encoder fine-tuned on MNLI.
    """

    name: str
    source: str
    settings: Settings | None = None
    task_settings: Mapping[str, Settings] = field(default_factory=dict)
    reported: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    statistic: str = "mean"
    seeds: int = 3
    task_seeds: Mapping[str, int] = field(default_factory=dict)
    from_mnli: frozenset[str] = frozenset()

    def settings_of(self, task: str) -> Settings:
        """Settings of a task, by its name without `_subset` or `_resplit`."""
        settings = self.task_settings.get(task, self.settings)
        if settings is None:
            raise EffptError(
                f"The protocol `{self.name}` has no settings for the task `{task}`, only for "
                f"{', '.join(self.task_settings)}. Use the protocol `default`, which takes any task."
            )
        return settings

    def seeds_of(self, task: str) -> int:
        """Number of seeds of a task."""
        return self.task_seeds.get(task, self.seeds)

    def logged_metrics(self, task: str, metrics: tuple[str, ...]) -> tuple[str, ...]:
        """Metrics reported of a task; `metrics` for a task the protocol does not know."""
        return self.reported.get(task, metrics)

    def score_name(self, task: str, metric: str) -> str:
        """Name of a score, which includes the protocol."""
        return f"{task}/{metric}@{self.name}"

    def choose_seeds(self, task: str, seeds: int | Sequence[int] | None) -> list[int]:
        """Seeds of a task: those given, or the given or the protocol's number of them, from 0."""
        return listed_seeds(self.seeds_of(task) if seeds is None else seeds)

    def over_seeds(self, metric: str, results: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> dict[str, Any]:
        """One metric over the results of all seeds; its value is `None` if it is undefined for one of them."""
        notes = list(dict.fromkeys([*notes, *(note for result in results for note in result["notes"])]))
        missing = {"value": None, "note": "the task has no validation examples for it"}
        seeds = []
        for result in results:
            parts = [result["scores"].get(part, missing) for part in metric.split("+")]
            values = [part["value"] for part in parts]
            value = None if None in values else _mean(values)
            note = "; ".join(part["note"] for part in parts if part["note"]) or None
            seeds.append({**result, "value": value, "note": note})
            if value is not None and note:
                notes.append(f"seed {result['seed']}: {note}")
        values = [seed["value"] for seed in seeds]
        if reasons := [seed["note"] for seed in seeds if seed["value"] is None]:
            because = "; ".join(dict.fromkeys(reasons))
            notes.append(f"undefined for {len(reasons)} of {len(seeds)} seeds: {because}")
            middle = None
        else:
            middle = statistics.median(values) if self.statistic == "median" else _mean(values)
        return {
            "value": middle,
            "statistic": self.statistic,
            "standard_deviation": statistics.stdev(values) if not reasons and len(values) > 1 else None,
            "seeds": seeds,
            "notes": notes,
        }

    def average(self, values: Mapping[tuple[str, str], float | None]) -> tuple[float | None, str]:
        """Average of `values`, by task and metric, over all tasks of the protocol; and a note on it or its absence."""
        values = {key: value for key, value in values.items() if base_name(key[0]) not in NEVER_AVERAGED}
        wanted = [(task, metric) for task, metrics in self.reported.items() for metric in metrics] or list(values)
        if missing := [key for key in wanted if key not in values]:
            named = ", ".join(map("/".join, missing))
            found = [task for task, _ in values if (base := base_name(task)) != task and base in self.reported]
            partial = f"; {', '.join(dict.fromkeys(found))} cannot stand in, being a part of the data" if found else ""
            return None, f"no average: {len(missing)} of {len(wanted)} figures are missing ({named}){partial}"
        if undefined := ["/".join(key) for key in wanted if values[key] is None]:
            return None, f"no average: undefined are {', '.join(undefined)}"
        if not wanted:
            return None, "no average: no task that is averaged was run"
        if self.reported:
            return _mean([values[key] for key in wanted]), f"mean of the {len(wanted)} figures of {self.name}"
        # Each task once, however many metrics it has, as in GLUE's own average (Wang et al., 2019, section 4).
        tasks = list(dict.fromkeys(task for task, _ in wanted))
        means = [_mean([values[key] for key in wanted if key[0] == task]) for task in tasks]
        return _mean(means), f"mean of {', '.join(tasks)}, which were chosen freely; each task counts once"


def listed_seeds(seeds: int | Sequence[int]) -> list[int]:
    """Seeds as a list, a number of them from 0; raises an `EffptError` if there are none, or two are equal."""
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise EffptError(f"`seeds` is {seeds!r}, but must be a number from 1, or different seeds: [0, 1, 2].")
    return chosen


def find_protocol(name: str, hidden_size: int | None = None) -> Protocol:
    """Looks up a protocol; one of `BY_SIZE` is that for models of this hidden size.

    Raises an `EffptError` for an unknown name, or if the protocol depends on a size that is not given.
    """
    if name in BY_SIZE:
        if hidden_size is None:
            raise EffptError(
                f"`{name}` depends on the size of the model; name one of {', '.join(BY_SIZE[name].values())}."
            )
        name = BY_SIZE[name][max(least for least in BY_SIZE[name] if least <= hidden_size)]
    if name not in PROTOCOLS:
        raise EffptError(f"There is no protocol `{name}`: {nearest(str(name), [*PROTOCOLS, *BY_SIZE])}")
    return PROTOCOLS[name]


def _mean(values: list) -> float:
    return sum(values) / len(values)


# Of BERT, ELECTRA and the published protocols; models pre-trained without dropout have 0 in their configuration.
DROPOUT = 0.1
# Its validation examples contradict the training ones (GLUE FAQ, 12), so learning lowers the score.
NEVER_AVERAGED = frozenset({"wnli"})

_DEFAULT = Protocol("default", "ours: one setting for small models and any task", settings=Settings())

_UNCLIPPED = Settings(betas=(0.9, 0.98), eps=1e-6, max_grad_norm=0.0, dropout=DROPOUT)

_GLUE9 = Protocol(
    "glue9_cramming",
    "Geiping and Goldstein (2022), code `eval/GLUE_sane`; Kaddour et al. (2023)",
    # No clipping and no weight decay, as in the code (`eval/GLUE_sane.yaml`, `eval/optim/adam.yaml`).
    settings=replace(_UNCLIPPED, learning_rate=4e-5, epochs=5, batch_size=16, scheduler="cosine", weight_decay=0.0),
    reported={
        "mnli": ("accuracy", "accuracy_mm"),
        "qqp": ("f1",),
        **dict.fromkeys(("qnli", "sst2"), ("accuracy",)),
        "cola": ("mcc",),
        "stsb": ("pearson",),
        "mrpc": ("f1",),
        "rte": ("accuracy",),
    },
    statistic="median",
    seeds=5,
)


def _mosaic(learning_rate: float, their_decay: float, epochs: int, batch_size: int) -> Settings:
    """Settings of the published runs, with their weight decay converted to torch's AdamW; they do not clip.

    Their DecoupledAdamW shrinks weights by decay * lr / initial lr per step, torch's by decay * lr, so the decay is
    divided by the initial learning rate. Theirs also acts on biases and norms, the stock Trainer's does not.
    """
    decay, run = their_decay / learning_rate, {"epochs": epochs, "batch_size": batch_size}
    return replace(_UNCLIPPED, learning_rate=learning_rate, weight_decay=decay, max_length=256, warmup=0.06, **run)


_MOSAIC = Protocol(
    "glue8_mosaic",
    "Portes et al. (2023), code `examples/benchmarks/bert`",
    task_settings={
        "mnli": _mosaic(5e-5, 5e-6, 3, 48),
        "rte": _mosaic(1e-5, 1e-5, 3, 16),
        "qqp": _mosaic(3e-5, 3e-6, 5, 16),
        "cola": _mosaic(5e-5, 5e-6, 10, 32),
        "mrpc": _mosaic(8e-5, 8e-6, 10, 32),
        "qnli": _mosaic(1e-5, 1e-6, 10, 16),
        "sst2": _mosaic(3e-5, 3e-6, 3, 16),
        "stsb": _mosaic(3e-5, 3e-6, 10, 32),
    },
    reported={
        "mnli": ("accuracy+accuracy_mm",),
        "qqp": ("accuracy+f1",),
        "qnli": ("accuracy",),
        "sst2": ("accuracy",),
        "cola": ("mcc",),
        "stsb": ("spearman",),
        "mrpc": ("accuracy+f1",),
        "rte": ("accuracy",),
    },
    # Our reading of their example: 5 for the small tasks, 4 and 3 for the middling, one for the large, which they
    # do not repeat.
    seeds=1,
    task_seeds={"rte": 5, "stsb": 5, "mrpc": 5, "cola": 4, "sst2": 3},
    from_mnli=frozenset({"rte", "mrpc", "stsb"}),
)


def _electra(size: str, learning_rate: float, layer_decay: float) -> Protocol:
    """Protocol of ELECTRA for models of one size.

    The paper's (Clark et al., 2020, appendix B) are the small model's rate, where the code has the base model's, and
    no weight decay, where the code has 0.01. Their Adam has no bias correction, the warm-up multiplies the decay,
    pairs of MRPC and STS-B are shown in both orders, and the head is one linear layer: the stock Trainer and stock
    heads differ in these.
    """
    settings = Settings(learning_rate, layer_decay=layer_decay, weight_decay=0.0, eps=1e-6, dropout=DROPOUT)
    return Protocol(
        f"glue8_electra_{size}",
        f"Clark et al. (2020), appendix B and code `configure_finetuning.py`, {size} models",
        settings=settings,
        task_settings={task: replace(settings, epochs=10) for task in ("rte", "stsb")},
        reported={
            "cola": ("mcc",),
            "stsb": ("spearman",),
            **dict.fromkeys(("sst2", "mrpc", "qqp", "mnli", "qnli", "rte"), ("accuracy",)),
        },
        statistic="median",
        seeds=5,
    )


_ELECTRAS = (_electra("small", 3e-4, 0.8), _electra("base", 1e-4, 0.8), _electra("large", 5e-5, 0.9))

PROTOCOLS: dict[str, Protocol] = {each.name: each for each in (_DEFAULT, _GLUE9, _MOSAIC, *_ELECTRAS)}
# Names that stand for a protocol by the model's size: the least hidden size of each. ELECTRA's three are of 256, 768
# and 1,024; sizes between are taken for the smaller.
BY_SIZE = {"glue8_electra": dict(zip((0, 768, 1024), (each.name for each in _ELECTRAS), strict=True))}
