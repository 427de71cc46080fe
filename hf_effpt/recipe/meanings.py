"""Explanations of the settings of a recipe, read from the docstrings and fields of the classes that hold them."""

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import METHODS, method_class, nearest
from hf_effpt.core.settings import default_of, plain
from hf_effpt.training.arguments import EffptTrainingArguments

from .sections import key_of
from .settings import SECTIONS

# `name, other (`type`, *optional*): text`, with continuation lines indented; stock docstrings break after the colon.
_ENTRY = re.compile(r"^    (?P<names>\w[\w, ]*?) ?\((?P<kind>.*?)\):\s+(?P<text>.*?)(?=^ {4}\S|^\S|\Z)", re.M | re.S)
REQUIRED = "(required)"  # in the place of a default
_STOCK = {field.name for field in dataclasses.fields(TrainingArguments)}


@dataclass(frozen=True)
class Meaning:
    """Key, type, default and explanation of a setting; `source` is the class, page or paper that it comes from."""

    key: str
    kind: str
    default: Any
    text: str
    source: str
    stock: bool = False


def sections() -> list[str]:
    """Names of the sections, and of those of the methods: `model`, `methods.layerdrop`."""
    own = [name for name, kind in SECTIONS.items() if kind is not None]
    return [*own, *(f"methods.{name}" for name in sorted(METHODS))]


def settings_in(section: str) -> list[Meaning]:
    """Settings of a section, in the order of their class; stock training arguments that are left as they are, last.

    Raises `EffptError` if there is no such section.
    """
    if section not in sections():
        raise EffptError(f"A recipe has no section `{section}`: {nearest(section, sections())}")
    kind: Any = method_class(section.partition(".")[2]) if "." in section else SECTIONS[section]
    told = entries_of(kind)
    stock = entries_of(TrainingArguments) if kind is EffptTrainingArguments else {}
    paper = getattr(kind, "paper", None)
    found = []
    for field in dataclasses.fields(kind):
        if not field.init or field.name.startswith("_"):
            continue
        key, is_stock = key_of(field.name), kind is EffptTrainingArguments and field.name in _STOCK
        help_, default = field.metadata.get("help", ""), default_of(field)
        kind_, text = told.get(key) or stock.get(key, (str(field.type), help_))
        if key not in told and field.name in kind.__annotations__:
            text = help_ or text  # of a stock argument that this package has changed, it says how
        source = f"{paper.title} ({paper.year})" if paper else f"`{kind.__name__}`"
        if is_stock:
            source = "`transformers.TrainingArguments`"
        text = re.sub(r"\[(`[^`]+`)\]", r"\1", text)
        shown = REQUIRED if default is dataclasses.MISSING else plain(default)
        found.append(Meaning(key, kind_, shown, text, source, is_stock and key not in told))
    return sorted(found, key=lambda one: one.stock)


def setting(name: str) -> Meaning:
    """The setting `SECTION.KEY`, such as `training.learning_rate`; raises `EffptError` if there is none."""
    section, _, key = name.rpartition(".")
    known = {one.key: one for one in settings_in(section)}
    if key not in known:
        raise EffptError(f"`{section}` has no setting `{key}`: {nearest(key, list(known))}")
    return known[key]


def entries_of(kind: type) -> dict[str, tuple[str, str]]:
    """Type and explanation of each argument in a class's docstring, by key."""
    text = re.sub(r"^(Args|Parameters):$", "Args:", inspect.getdoc(kind) or "", flags=re.M)
    block = text.partition("Args:\n")[2]
    found = {}
    for entry in _ENTRY.finditer(block):
        kinds = re.findall(r"`([^`]+)`", entry["kind"].partition("*optional*")[0])
        for key in entry["names"].split(", "):
            found.setdefault(key, (" or ".join(kinds), " ".join(entry["text"].split())))
    return found
