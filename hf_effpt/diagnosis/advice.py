"""Flags that findings recommend, as far as the recipe takes them."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.recipe.recipe import Recipe

# Settings that may stand in the way of another, with the word that takes them out of it.
IN_THE_WAY: dict[str, dict[str, str]] = {
    "training.budget": {"training.max_steps": "-1", "training.num_train_epochs": "null"},
    "training.lr_scheduler_type": {
        "training.lr_scheduler_kwargs": "null", "training.branches": "null", "training.multiply_warmup": "false",
    },
    "training.warmup_steps": {"training.branches": "null"},
    "training.per_device_train_batch_size": {"training.batch_ramp": "null"},
}  # fmt: skip


def accepted(recipe: Mapping[str, Any], flags: Sequence[str]) -> list[str]:
    """Those of the flags that the loader takes beside the recipe, with those that reset what stands in their way.

    A flag is a setting and its value, as a shell takes them, or several that belong together. Each is tried after
    those before it. Beside a recipe that cannot be loaded itself nothing is known, and all are returned.
    """
    if _loads(recipe, flags) or not _loads(recipe, []):
        return list(flags)
    kept: list[str] = []
    for flag in flags:
        for attempt in ([flag], [flag, *_resets(recipe, flag)]):
            if _loads(recipe, [*kept, *attempt]):
                kept += attempt
                break
    return kept


def _resets(recipe: Mapping[str, Any], flag: str) -> list[str]:
    """Flags that reset what the recipe sets and what may stand in the way of a flag."""
    found = []
    for name in (word[2:] for word in shlex.split(flag) if word.startswith("--")):
        for other, value in IN_THE_WAY.get(name, {}).items():
            section, _, key = other.partition(".")
            if (recipe.get(section) or {}).get(key) is not None:
                found.append(f"--{other} {value}")
    return found


def _loads(recipe: Mapping[str, Any], flags: Sequence[str]) -> bool:
    logger = logging.getLogger("hf_effpt.recipe")
    before = logger.level
    logger.setLevel(logging.ERROR)  # its warnings are of no run
    try:
        Recipe.load(recipe, shlex.split(" ".join(flags)))
    except EffptError:
        return False
    finally:
        logger.setLevel(before)
    return True
