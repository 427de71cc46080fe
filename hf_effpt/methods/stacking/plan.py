"""Depth of every stage, and fractions of the clock at which the model grows."""

import re
from contextlib import suppress
from itertools import accumulate, pairwise
from typing import Any

from hf_effpt.core.errors import EffptError

from .operators import BY_BLOCKS, OPERATORS

AT = (0.125, 0.3)  # fractions of two growths (Kaddour et al., 2023, No Train No Gain)
_PROPORTIONAL = re.compile(r"prop-(\d{1,2}(?:\.\d+)?)")


def read_at(at: Any) -> list[float] | str | None:
    """Reads `stacking.at`: fractions become a list, which must rise within (0, 1); `prop-alpha` stays."""
    if isinstance(at, str):
        with suppress(ValueError):
            at = float(at)  # a single fraction from a command line
    if isinstance(at, str):
        exponent_of(at)
    if at is None or isinstance(at, str):
        return at
    found = list(at) if isinstance(at, (list, tuple)) else [at]
    numbers = all(isinstance(fraction, (int, float)) and 0.0 < fraction < 1.0 for fraction in found)
    if not found or not numbers or sorted(set(found)) != found:
        raise EffptError(f"`stacking.at` must hold rising fractions of the clock in (0, 1), not {at!r}.")
    return found


def read_depth(depth: Any) -> int | list[int] | None:
    """Reads `stacking.depth`: the number of layers at the start, or a list of those of each stage but the last."""
    found = list(depth) if isinstance(depth, (list, tuple)) else [1 if depth is None else depth]
    if not found or not all(type(stage) is int and stage >= 1 for stage in found):
        raise EffptError(
            "`stacking.depth` must be the number of layers at the start, at least 1, or a list of those of each stage "
            f"but the last, not {depth!r}."
        )
    return found if isinstance(depth, (list, tuple)) else depth


def exponent_of(at: str) -> float:
    """Reads the alpha of `prop-alpha`, the only text that `at` may be."""
    match = _PROPORTIONAL.fullmatch(at)
    if match is None:
        raise EffptError(
            f"`stacking.at` is {at!r}, but must be rising fractions of the clock, such as [0.125, 0.3], or "
            "`prop-1`, `prop-2`, … for stages that take time in proportion to their number to that power."
        )
    return float(match[1])


def depths_for(operator: str, depth: int | list[int] | None, at: list[float] | str | None, target: int) -> list[int]:
    """Depths of all stages, the last of which is `target`; refuses those that the operator cannot go through."""
    if isinstance(depth, list):
        stages = [*depth, target]
    elif operator in BY_BLOCKS:
        stages = _by_blocks(operator, depth, len(at) if isinstance(at, list) else None, target)
    else:
        stages = _by_factors(depth, at, target)
    _check(operator, stages, at, target)
    return stages


def _by_blocks(operator: str, block: int | None, growths: int | None, target: int) -> list[int]:
    if block is None:
        numbers = (4, 3, 2, target) if growths is None else (growths + 1,)
        number = next((number for number in numbers if target % number == 0), None)
        if number is None:
            raise EffptError(
                f"`stacking.operator` `{operator}` adds equally many layers in each growth, and {target} layers do "
                f"not divide into the {numbers[0]} stages of `stacking.at`; give other fractions, or `depth`."
            )
        block = target // number
    if target % block:
        raise EffptError(
            f"`stacking.operator` `{operator}` adds as many layers in each growth as there are at the start, and "
            f"{target} is no multiple of `stacking.depth`, {block}; choose one that divides it."
        )
    return list(range(block, target + 1, block))


def _by_factors(first: int | None, at: list[float] | str | None, target: int) -> list[int]:
    """Depths that grow by the smallest whole factor that reaches `target`, or by less at the end."""
    if isinstance(at, str):
        stages = [-(-target // 4) if first is None else first]
        while stages[-1] < target:
            stages.append(min(2 * stages[-1], target))
        return stages
    growths = len(AT if at is None else at)
    stages = [-(-target // 2**growths) if first is None else first]
    factor = 2
    while stages[0] * factor**growths < target:
        factor += 1
    for later in reversed(range(growths)):
        stages.append(min(factor * stages[-1], target - later))  # each later growth has at least one layer to add
    return stages


def _check(operator: str, stages: list[int], at: list[float] | str | None, target: int) -> None:
    growths = len(stages) - 1
    if growths < 1 or stages[0] < 1 or any(after <= before for before, after in pairwise(stages)):
        raise EffptError(
            f"`stacking` cannot grow from {stages[0]} to {target} layers in {growths} growth(s): the depths "
            f"{stages} of its stages must rise up to the model's. Start with fewer layers by `stacking.depth`, give "
            "`stacking.at` fewer fractions, or the model more layers."
        )
    if isinstance(at, list) and len(at) != growths:
        raise EffptError(
            f"`stacking.at` has {len(at)} fraction(s), but from {stages[0]} to {target} layers by `{operator}` the "
            f"depths are {stages}: {growths} growth(s); give as many fractions, or leave `at` out."
        )
    for before, after in pairwise(stages):
        OPERATORS[operator](before, after, stages[0])


def fractions_for(at: list[float] | str | None, growths: int, operator: str, until: float) -> list[float]:
    """Fractions of the clock at which the model grows; `until` is that at which the last stage ends.

    With `append_top`, where every stage trains equally many layers, stages have equal time.
    """
    if isinstance(at, list):
        return list(at)
    if at is None and growths == len(AT) and operator not in BY_BLOCKS:
        return list(AT)
    power = exponent_of(at) if at is not None else 0.0 if operator == "append_top" else 1.0
    shares = [number**power for number in range(1, growths + 2)]
    return [until * passed / sum(shares) for passed in list(accumulate(shares))[:-1]]
