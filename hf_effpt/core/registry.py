"""The registry: methods by name, from this package or others."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import logging
import os
import sys
from collections import UserDict
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from .errors import EffptError
from .method import Method
from .settings import idle_error, idle_settings, lonely_settings

logger = logging.getLogger(__name__)

GROUP = "hf_effpt.methods"  # entry-point group of modules that register methods when imported
BUILT_IN = "builtin"  # the entry point of the package's own methods, which come first
IMPORTS = "HF_EFFPT_IMPORT"  # environment variable: further modules to import, separated by commas


class Registry(UserDict[str, type[Method]]):
    """Method classes by name, in the order in which methods act: the package's own, depth before width, then others.

    The first access imports the modules of the entry-point group `hf_effpt.methods`.
    """

    def __init__(self) -> None:
        self._classes: dict[str, type[Method]] = {}
        self._is_loaded = False

    @property
    def data(self) -> dict[str, type[Method]]:
        """The registered classes, after all modules that register some are imported."""
        if not self._is_loaded:
            self._is_loaded = True  # before the imports, since the modules may read the registry
            self._load()
            # A script may have registered its methods before.
            self._classes = dict(sorted(self._classes.items(), key=lambda item: not is_own(item[1])))
        return self._classes

    def add(self, method: type[Method]) -> None:
        """Adds a class without loading the others; raises an `EffptError` if another one has its name."""
        known = self._classes.get(method.name, method)
        if (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
            raise EffptError(f"Two methods are called `{method.name}`: {known} and {method}; rename one.")
        self._classes[method.name] = method

    @staticmethod
    def _load() -> None:
        for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name != BUILT_IN, entry.name)):
            try:
                entry.load()
            except Exception as error:
                if entry.name == BUILT_IN:
                    raise
                logger.warning("the methods of `%s` cannot be imported: %s", entry.value, error)
        for module in filter(None, os.environ.get(IMPORTS, "").split(",")):
            _import(module)


def is_own(method: type[Method]) -> bool:
    """Returns `True` for a method of this package."""
    return method.__module__.startswith("hf_effpt.")


METHODS = Registry()


def import_methods(modules: Iterable[str]) -> None:
    """Imports modules that register methods, here and in every process that this one starts.

    A module may lie in the working directory. Raises an `EffptError` if one cannot be imported.
    """
    known = filter(None, os.environ.get(IMPORTS, "").split(","))
    os.environ[IMPORTS] = ",".join(dict.fromkeys([*known, *modules]))
    for module in modules:
        _import(module)


def environment_of(names: Iterable[str]) -> dict[str, str]:
    """Environment variables with which a new Python process knows these methods, of whichever package.

    Raises an `EffptError` if one is of the script itself, which no other process can import.
    """
    modules = {METHODS[name].__module__ for name in names if not is_own(METHODS[name])}
    folders = []
    for module in sorted(modules):
        if module == "__main__":
            raise EffptError(
                f"One of the methods {', '.join(names)} is defined in the script itself, where no other process finds "
                "it; move it into a module, such as `my_methods.py`, and import that."
            )
        path = Path(sys.modules[module].__file__ or "").resolve()
        folders.append(str(path.parents[module.count(".") + (path.stem == "__init__")]))
    if not modules:
        return {}
    imports = [*filter(None, os.environ.get(IMPORTS, "").split(",")), *sorted(modules)]
    places = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *folders]
    return {IMPORTS: ",".join(dict.fromkeys(imports)), "PYTHONPATH": os.pathsep.join(dict.fromkeys(places))}


def _import(module: str) -> None:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(module)
    except Exception as error:
        raise EffptError(
            f"The module `{module}` cannot be imported ({type(error).__name__}: {error}); name one that Python finds, "
            "such as `my_methods` for `my_methods.py` in this folder."
        ) from error


def register(method: type[Method]) -> type[Method]:
    """Class decorator that makes a method known by its name: to recipes, the command line, checkpoints and export.

    Raises an `EffptError` if another class has that name.
    """
    METHODS.add(method)
    return method


def nearest(wrong: str, valid: list[str]) -> str:
    """A hint with the valid key nearest to a mistyped one, or with all of them."""
    close = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else f"valid ones are: {', '.join(sorted(valid)) or 'none'}."


def method_class(name: str) -> type[Method]:
    """The method of that name; raises an `EffptError` if there is none."""
    if name not in METHODS:
        raise EffptError(
            f"There is no method `{name}`: {nearest(name, list(METHODS))} If it is one of your own, import the module "
            f"that registers it first: `--import MODULE` on the command line, or an entry point `{GROUP}`."
        )
    return METHODS[name]


def without_idle(ledger: Mapping[str, Mapping[str, Any] | None] | None) -> dict[str, dict[str, Any]]:
    """A saved ledger without settings that do nothing, which older versions took."""
    kept = {name: dict(settings or {}) for name, settings in (ledger or {}).items()}
    for name in kept.keys() & METHODS.keys():
        idle = [*idle_settings(METHODS[name], kept[name]), *_lonely(name, kept[name], kept)]
        for key in idle:
            logger.warning("`%s.%s`, %r, has done nothing, and is left out", name, key, kept[name].pop(key))
    return kept


def _lonely(name: str, values: Mapping[str, Any], ledger: Collection[str]) -> dict[str, Any]:
    """Settings of a method that do nothing beside the others of a ledger, each with what would give it an effect."""
    others = [other for other in ledger if other != name]
    changing = any(other in METHODS and METHODS[other].order < Method.order for other in others)
    return {} if changing else lonely_settings(METHODS[name], values, others)


def build_methods(ledger: Mapping[str, Mapping[str, Any] | None] | None, config: Any = None) -> list[Method]:
    """Builds the methods of a run from its ledger and checks that they may run together.

    Args:
        ledger (`Mapping[str, Mapping]`, *optional*): settings by method name, `{"layerdrop": {"p": 0.2}}`.
        config (*optional*): configuration of the model they act on; without it only the settings are checked.

    Raises:
        EffptError: for an unknown method or setting, an impossible value, or methods that exclude each other.
    """
    methods: dict[str, Method] = {}
    for name, settings in (ledger or {}).items():
        cls = method_class(name)
        valid = [field.name for field in dataclasses.fields(cls)]
        for key in settings or {}:
            if key not in valid:
                raise EffptError(f"Method `{name}` has no setting `{key}`: {nearest(key, valid)}")
        try:
            methods[name] = cls(**(settings or {}))
        except TypeError as error:
            raise EffptError(
                f"A setting of `{name}` in {dict(settings or {})} has the wrong type: {error}."
            ) from error
    # In the order in which they act: a method waits for earlier ones, whose end may depend on the model.
    for name, method in sorted(methods.items(), key=lambda item: item[1].order):
        others = {other: methods[other] for other in methods if other != name}
        for key, needed in _lonely(name, given := vars(method), methods).items():
            raise idle_error(name, key, given[key], str(needed[0]))
        for other, that in others.items():
            if other in method.conflicts or name in that.conflicts:
                raise EffptError(f"`{name}` and `{other}` cannot run together; remove one of them from `methods`.")
        method.bind(config, others)
    return [methods[name] for name in METHODS if name in methods]  # independent of the order in a JSON file
