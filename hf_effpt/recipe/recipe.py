"""`Recipe`: the settings of a pre-training run, loaded from and saved as one small YAML file.

Each section is one dataclass, so a recipe file, a command-line flag and a script are checked by the same types.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cached_property, lru_cache
from math import gcd
from pathlib import Path
from typing import Any

import torch
import yaml

from hf_effpt.core.anatomy import longest_row_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import write_atomically
from hf_effpt.core.registry import build_methods, method_class, nearest
from hf_effpt.core.settings import idle_error, idle_settings
from hf_effpt.data.mixture import parts_of_mixture
from hf_effpt.hub.card_settings import CardSettings, is_on_hub
from hf_effpt.training.arguments import EffptTrainingArguments
from hf_effpt.training.losses import check_changes
from hf_effpt.training.next_tokens import check_next_tokens, learned_until

from .file import read_recipe_file
from .overrides import apply_overrides
from .packed_data import check_packed, with_packed
from .sections import key_of, parse_section, require
from .settings import SECTIONS, DataSettings, ModelSettings

logger = logging.getLogger(__name__)
# Training arguments that readers look for first: written even if they have their default.
ALWAYS_WRITTEN = frozenset(
    "output_dir budget per_device_train_batch_size gradient_accumulation_steps learning_rate lr_scheduler_type "
    "warmup_steps weight_decay max_grad_norm optim seed".split()
)


@dataclass(kw_only=True)
class Recipe:
    """The settings of a run: model, methods, data and training, and what its card says besides.

    Args:
        data ([`DataSettings`]): the training text, and how it becomes rows.
        training ([`EffptTrainingArguments`]): the training arguments, with the budget.
        model ([`ModelSettings`], *optional*): the encoder and its objective; by default a small BERT.
        methods (`dict[str, dict]`, *optional*): the methods' settings by name, `{"layerdrop": {"p": 0.1}}`. Only those
            that differ from a method's defaults are kept.
        card ([`CardSettings`], *optional*): metadata of the model card.

    Raises:
        EffptError: for an unknown method or setting, methods that exclude each other or do not suit the model, or
            rows longer than the model can read.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: DataSettings
    training: EffptTrainingArguments
    card: CardSettings = field(default_factory=CardSettings)

    def __post_init__(self) -> None:
        _default_arguments()  # made now: it resets the state of Accelerate, which a Trainer needs later
        self.methods = {
            name: parse_section(f"methods.{name}", method_class(str(name)), values).settings()
            for name, values in self.methods.items()
        }
        config = self.model.config(methods=self.methods)
        methods = build_methods(self.methods, config)
        if until := learned_until(self.model.objectives):
            check_next_tokens(until, config, methods, self.training.branches)
        smoothing = {"training.label_smoothing_factor": self.training.label_smoothing_factor}
        check_changes(self.model.exported, smoothing)
        self.longest_row = longest_row_of(config)
        self._check_lengths()
        if "embeddings" in (self.model.start or {}) and self.data.tokenizer is None:
            width, size = getattr(config, "embedding_size", config.hidden_size), self.data.vocab_size
            needed = f"above {width}, the width of the word embeddings, for `model.start.embeddings`"
            require(size > width, "data.vocab_size", size, needed)
        for key, value in _idle_beside_checkpoint(vars(self.data), self.model.from_).items():
            raise idle_error("data", key, value, "`model.from` left out", {"model.from": self.model.from_})
        if self.data.add_tokens is not None and self.model.from_ is None:
            raise EffptError(
                f"`data.add_tokens` is {self.data.words_to_add!r}, which adds to the vocabulary of a checkpoint; name "
                "one in `model.from`, or set `data.vocab_size` of the tokenizer that is trained."
            )

    def _check_lengths(self) -> None:
        """Raises `EffptError` if the model, or the batch, does not suit the lengths of rows."""
        lengths, size = list(self.data.lengths.values()), self.training.per_device_train_batch_size
        needed = f"at most {self.longest_row}, the positions of the model (`model.max_position_embeddings`)"
        require(lengths[-1] <= self.longest_row, "data.sequence_length", lengths[-1], needed)
        window = self.model.local_attention
        needed = f"at most `data.sequence_length`, {lengths[-1]}: no token of a row has neighbours that far away"
        require(window is None or window <= lengths[-1], "model.local_attention", window, needed)
        for length in lengths[1:]:
            rows = length // gcd(length, lengths[0])
            needed = f"a multiple of {rows}, for as many tokens in rows of {length} as in those of {lengths[0]}"
            require(size % rows == 0, "training.per_device_train_batch_size", size, needed)
        begin = "of fractions of the clock at which `data.sequence_length` changes"
        known = {*self.model.rotary_bases} <= {*self.data.lengths}
        require(known, "model.rotary_base", self.model.rotary_base, begin)

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
        """Reads and checks a recipe.

        Args:
            source (`str`, `Path` or `Mapping`): a YAML file, the name of a built-in recipe such as `"tiny"`, or the
                sections themselves.
            overrides (`Sequence[str]`, *optional*): command-line flags that change it,
                `["--training.budget", "10min", "--methods.layerdrop.p", "0.1"]`.

        Raises:
            EffptError: naming the file and line, or the section and key, that cannot be used.
        """
        content = (source if isinstance(source, Mapping) else read_recipe_file(source)) or {}
        if not isinstance(content, Mapping):
            raise EffptError(f"Recipe {source} holds {content!r}, but must have the sections {', '.join(SECTIONS)}.")
        sections = apply_overrides(content, overrides)
        if "data" in sections:
            sections["data"] = with_packed(sections["data"])
        # What flags have made idle goes, and so does what older versions took and wrote into the recipe of a run.
        before = {} if _is_resolved(content) else idle_in(content).get("data", {})
        given = idle_in(apply_overrides({}, overrides), beside=sections).get("data", {})
        idle = {key: value for key, value in idle_in(sections).get("data", {}).items() if key not in before | given}
        for key, value in idle.items():
            logger.warning("The recipe has `data.%s: %s`, which does nothing here and is left out", key, value)
        if idle:
            sections["data"] = {key: value for key, value in sections["data"].items() if key not in idle}
        for name in sections:
            if name not in SECTIONS:
                raise EffptError(f"A recipe has no section `{name}`: {nearest(str(name), list(SECTIONS))}")
        methods = sections.get("methods") or {}
        require(isinstance(methods, Mapping), "methods", methods, "a mapping, such as `methods: {layerdrop: {}}`")
        parsed = {name: parse_section(name, kind, sections.get(name)) for name, kind in SECTIONS.items() if kind}
        check_packed(parsed["data"])
        return cls(methods=dict(methods), **parsed)

    def resolved(self) -> dict[str, Any]:
        """Returns the recipe as plain values that load as an equal recipe; `recipe.yaml` and `run.json` hold them.

        Training arguments that have their default are left out, except for `ALWAYS_WRITTEN`, and so are access tokens.
        """
        card = _set(self.card.facts())
        return {
            "model": _set({key: value for key, value in asdict(self.model).items() if key not in _taken(self.model)}),
            "methods": {method.name: _set(asdict(method)) for method in build_methods(self.methods)},
            "data": _set(asdict(self.data)),
            "training": _changed(self.training),
            **({"card": card} if card else {}),
        }

    def card_facts(self) -> dict[str, Any]:
        """Returns the facts for the model card; by default with what of its text and checkpoint is on the Hub."""
        data, start = self.data.dataset, self.model.from_
        sources = [data] if isinstance(data, str) else parts_of_mixture(data)[0]
        found = {"datasets": [name.partition(":")[0] for name in map(str, sources) if is_on_hub(name)]}
        found |= {"base_model": start} if start is not None and is_on_hub(start) else {}
        return {key: value for key, value in found.items() if value} | self.card.facts()

    def save(self, path: str | Path) -> None:
        """Writes the resolved recipe as YAML."""
        text = yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True, default_flow_style=False)
        write_atomically(Path(path), text)


def idle_in(sections: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Settings of the sections of a recipe that do nothing, by section and key; methods are not looked at.

    They are judged beside all settings of the recipe `beside`, by default `sections`.
    """
    beside, found = sections if beside is None else beside, {}
    for name, kind in SECTIONS.items():
        values, every = ({} if not isinstance(of.get(name), Mapping) else dict(of[name]) for of in (sections, beside))
        if kind is None or not values:
            continue
        names = {key_of(one.name): one.name for one in fields(kind)}
        known = {names[key]: value for key, value in every.items() if key in names and value is not None}
        idle = {key: known[key] for key in idle_settings(kind, known)}
        if name == "data":
            model = beside.get("model")
            idle |= _idle_beside_checkpoint(known, model.get("from") if isinstance(model, Mapping) else None)
        found[name] = {key_of(key): value for key, value in idle.items() if key_of(key) in values}
    return found


def check_heeded(data: DataSettings, heeded: Set[str], strict: bool = True) -> None:
    """Raises an `EffptError`, or warns unless `strict`, if a setting has no effect on the sources of text.

    `heeded` are those that do have one, as `Corpus.heeds` tells once a source is open.
    """
    needed = {"split": "splits", "streaming": "a download from the Hub", "text_column": "columns"}
    for key, what in needed.items():
        value = getattr(data, key)
        if value != getattr(DataSettings, key) and key not in heeded:
            error = idle_error("data", key, value, f"a `dataset` with {what}, unlike {data.dataset!r}")
            if strict:
                raise error
            logger.warning("%s", error)


def _idle_beside_checkpoint(data: Mapping[str, Any], source: str | None) -> dict[str, Any]:
    """Settings of the section `data` that do nothing since the tokenizer is that of the checkpoint `source`."""
    if source is None or data.get("tokenizer") is not None:
        return {}
    return {key: data[key] for key in idle_settings(DataSettings, {**data, "tokenizer": source}) if key != "tokenizer"}


def _is_resolved(content: Mapping[str, Any]) -> bool:
    """`True` if a recipe was written by a run, with its defaults."""
    training = content.get("training")
    return isinstance(training, Mapping) and training.keys() >= ALWAYS_WRITTEN - {"budget"}


class _Defaults(EffptTrainingArguments):
    """Arguments that look for no device: that would reset the state of Accelerate, and take a run its processes."""

    @cached_property
    def _setup_devices(self) -> torch.device:
        return torch.device("cpu")


@lru_cache
def _default_arguments() -> EffptTrainingArguments:
    """Returns the completed default arguments."""
    return _Defaults()


def _changed(arguments: EffptTrainingArguments) -> dict[str, Any]:
    default = _default_arguments()
    return {
        field.name: _plain(value)
        for field in fields(arguments)
        if field.init and not field.name.endswith("_token")
        if (value := getattr(arguments, field.name)) is not None
        if field.name in ALWAYS_WRITTEN or value != getattr(default, field.name)
    }


def _taken(model: ModelSettings) -> tuple[str, ...]:
    """Settings that have a default and are those of a checkpoint instead."""
    return ("backbone", "size") if model.from_ is not None else ()


def _set(values: dict[str, Any]) -> dict[str, Any]:
    return {key_of(key): _plain(value) for key, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    """Returns a value as YAML and JSON can hold it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    return value
