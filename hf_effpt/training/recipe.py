"""A recipe: everything a pre-training run is told, as one small YAML file.

Each section is one dataclass, so a recipe file, a command-line flag and a script are checked by the same types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

import hf_effpt.methods  # noqa: F401  fills METHODS
from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import write_atomically
from hf_effpt.core.registry import METHODS, build_methods, nearest

from .arguments import EffptTrainingArguments
from .overrides import SECTIONS, apply_overrides
from .recipe_file import read_recipe_file
from .sections import parse_section
from .settings import DataSettings, ModelSettings

# What a reader of a recipe asks first, so it is written even where it is the default.
ALWAYS_WRITTEN = frozenset(
    {
        "output_dir",
        "budget",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "optim",
        "seed",
    }
)


@dataclass(kw_only=True)
class Recipe:
    """Everything a run is told: model, methods, data and training.

    Args:
        data ([`DataSettings`]): what is learned from.
        training ([`EffptTrainingArguments`]): how it is learned, and the budget.
        model ([`ModelSettings`], *optional*): what is trained; by default a small BERT.
        methods (`dict[str, dict]`, *optional*): the methods' settings by name, `{"layerdrop": {"p": 0.1}}`. Kept are
            those that differ from a method's defaults.

    Raises:
        EffptError: for an unknown method or setting, methods that exclude each other or do not suit the model, or
            rows longer than the model can read.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: DataSettings
    training: EffptTrainingArguments

    def __post_init__(self) -> None:
        _default_arguments()  # now, before a Trainer exists that could be disturbed
        self.methods = {name: _method_settings(name, values) for name, values in self.methods.items()}
        build_methods(self.methods, self.model.config())
        if self.data.sequence_length > self.model.max_position_embeddings:
            raise EffptError(
                f"`data.sequence_length` is {self.data.sequence_length}, more than the model can read; raise "
                f"`model.max_position_embeddings`, {self.model.max_position_embeddings}, or shorten the rows."
            )

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
        """Reads a recipe and checks all of it.

        Args:
            source (`str`, `Path` or `Mapping`): a YAML file, the name of a built-in recipe such as `"tiny"`, or the
                sections themselves.
            overrides (`Sequence[str]`, *optional*): command-line flags that change it,
                `["--training.budget", "10min", "--methods.layerdrop.p", "0.1"]`.

        Raises:
            EffptError: naming the file and line, or the section and key, that cannot be used.
        """
        content = source if isinstance(source, Mapping) else read_recipe_file(source)
        if not isinstance(content or {}, Mapping):
            raise EffptError(f"Recipe {source} holds {content!r}, but must have the sections {', '.join(SECTIONS)}.")
        sections = apply_overrides(content or {}, overrides)
        for name in sections:
            if name not in SECTIONS:
                raise EffptError(f"A recipe has no section `{name}`: {nearest(str(name), list(SECTIONS))}")
        methods = sections.get("methods") or {}
        if not isinstance(methods, Mapping):
            raise EffptError(
                f"Section `methods` is {methods!r}, but must be a mapping, such as `{{layerdrop: {{}}}}`."
            )
        return cls(
            model=parse_section("model", ModelSettings, sections.get("model")),
            methods=dict(methods),
            data=parse_section("data", DataSettings, sections.get("data")),
            training=parse_section("training", EffptTrainingArguments, sections.get("training")),
        )

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain values that load as this recipe: what `recipe.yaml` and `run.json` hold.

        Of the training arguments only those that differ from the defaults are there, with the few that readers ask
        for first. Access tokens are left out.
        """
        return {
            "model": _set(asdict(self.model)),
            "methods": {method.name: _set(asdict(method)) for method in build_methods(self.methods)},
            "data": _set(asdict(self.data)),
            "training": _changed(self.training),
        }

    def save(self, path: str | Path) -> None:
        """Writes the resolved recipe as YAML."""
        text = yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True, default_flow_style=False)
        write_atomically(Path(path), text)


def _method_settings(name: str, values: Any) -> dict[str, Any]:
    if name not in METHODS:
        raise EffptError(f"There is no method `{name}`: {nearest(str(name), list(METHODS))}")
    return parse_section(f"methods.{name}", METHODS[name], values).settings()


@lru_cache
def _default_arguments() -> EffptTrainingArguments:
    """The defaults, as the class completes them; made once, since making them resets what Accelerate knows."""
    return EffptTrainingArguments()


def _changed(arguments: EffptTrainingArguments) -> dict[str, Any]:
    default = _default_arguments()
    return {
        field.name: _plain(value)
        for field in fields(arguments)
        if field.init and not field.name.endswith("_token")
        if (value := getattr(arguments, field.name)) is not None
        if field.name in ALWAYS_WRITTEN or value != getattr(default, field.name)
    }


def _set(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    """A value as YAML and JSON can hold it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    return value
