"""The `card` section of a recipe: what a model card says that no run can know."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest


@dataclass
class CardSettings:
    """Metadata of the model card, which no run can know; a change does not concern the training.

    Args:
        license (`str`, *optional*): identifier of the license, as the Hub lists them: `apache-2.0`.
        language (`list[str]`, *optional*): languages of the text, as codes of ISO 639: `en`.
        datasets (`list[str]`, *optional*): datasets on the Hub that the model learned from; by default those among
            `data.dataset`.
        base_model (`str`, *optional*): model on the Hub that the run went on from; by default `model.from`, if that
            is one.
        widget (`list[str]`, *optional*): examples with which the Hub's page tries the model:
            `The capital of France is [MASK].`
        tags (`list[str]`, *optional*): further tags.

    Raises:
        EffptError: for a value that the Hub would refuse.
    """

    license: str | None = None
    language: list[str] | None = None
    datasets: list[str] | None = None
    base_model: str | None = None
    widget: list[str] | None = None
    tags: list[str] | None = None

    def __post_init__(self) -> None:
        for key in ("language", "datasets", "widget", "tags"):
            if isinstance(value := getattr(self, key), str):
                setattr(self, key, [value])
        _check("license", [self.license], r"[a-z0-9][a-z0-9.+-]*", "an identifier such as apache-2.0")
        _check("language", self.language, r"[a-z]{2,3}(-\w+)*|code|multilingual", "codes of ISO 639, such as en")
        for key, names in (("datasets", self.datasets), ("base_model", [self.base_model])):
            for name in names or ():
                if name is not None and not _is_hub_id(str(name)):
                    raise EffptError(f"`card.{key}` has {name!r}, but must name what is on the Hub, as ORG/NAME.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "CardSettings":
        """The settings `given` by name; raises `EffptError` for a name that is none."""
        valid = [field.name for field in fields(cls)]
        for key in given:
            if key not in valid:
                raise EffptError(f"A card has no `{key}`: {nearest(key, valid)}")
        return cls(**given)

    def facts(self) -> dict[str, Any]:
        """The settings that are given."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def metadata(self) -> dict[str, Any]:
        """The settings that are given, in the Hub's format."""
        widget = {"widget": [{"text": text} for text in self.widget]} if self.widget else {}
        return self.facts() | widget


def is_on_hub(source: str) -> bool:
    """`True` if the name of a checkpoint or text, which may have a `:configuration`, can only be one of the Hub."""
    name = source.partition(":")[0]
    return name != "builtin" and _is_hub_id(name) and not Path(source).exists()


def _check(key: str, values: list[Any] | None, pattern: str, needed: str) -> None:
    for value in values or ():
        if value is not None and not re.fullmatch(pattern, str(value)):
            raise EffptError(f"`card.{key}` has {value!r}, but must be {needed}.")


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
