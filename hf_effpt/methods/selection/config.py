"""Settings of a selection: defaults by strategy, and refusal of invalid combinations."""

from dataclasses import fields
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest
from hf_effpt.core.settings import When, idle_error

from .strategies import STRATEGIES
from .strategy import OF_STALE, ResolvedSettings, Scorer, Strategy

# Settings that only some strategies have.
OWN = (
    "explore", "outliers", "passes", "dropout", "level", "members", "queue", "num_score_positions", "max_age",
    "holdout", "table",
)  # fmt: skip
GENERATED = ("electra", "electra_15", "replace_mlm", "all_tokens_mlm", "mcbert")  # objectives with a generator


def resolve(settings: Any, objective: str = "mlm") -> ResolvedSettings:
    """Settings with every default filled in, for a model of this objective.

    Raises an `EffptError` if the strategy lacks a setting, or `start` and `end` do not fit.
    """
    if settings.strategy not in STRATEGIES:
        raise EffptError(
            f"`selection.strategy` {settings.strategy!r} is none: {nearest(settings.strategy, list(STRATEGIES))}"
        )
    kind = STRATEGIES[settings.strategy]
    _refuse_unknown(settings, kind)
    suitable = (one for one in kind.scorers if objective != "mcbert" or _suits_candidates(kind, one))
    defaults = {"scorer": next(suitable, None), "rule": next(iter(kind.rules), None), "mode": kind.modes[0]}
    defaults |= kind.defaults
    if settings.mode not in (None, "topk"):
        defaults["explore"] = 0.0  # random modes explore by themselves
    keys = [field.name for field in fields(ResolvedSettings)]
    given = {key: getattr(settings, key) for key in keys if getattr(settings, key) is not None}
    resolved = ResolvedSettings(**defaults | given)
    if not 0.0 <= resolved.start < resolved.end <= 1.0:
        raise EffptError(
            f"`selection.start` {resolved.start} and `selection.end` {resolved.end} must be fractions of the clock "
            "with 0 <= start < end <= 1."
        )
    if resolved.interrupt == 1:
        raise EffptError(
            "`selection.interrupt` is 1, with which every step takes rows as they come; give at least 2, or 0 for no "
            "interruption."
        )
    return resolved


def _refuse_unknown(settings: Any, kind: type[Strategy]) -> None:
    """Refuses settings and values that the strategy does not have."""
    name = settings.strategy
    for key, valid in (("scorer", kind.scorers), ("rule", kind.rules), ("mode", kind.modes)):
        value = getattr(settings, key)
        if value is not None and value not in valid:
            other = f"it has {', '.join(valid)}" if valid else "it has none"
            raise EffptError(f"`selection.{key}` is {value!r}, which the strategy `{name}` does not have: {other}.")
    scorer = settings.scorer or next(iter(kind.scorers), None)
    known = kind.settings_with(scorer, settings.rule)
    for key in OWN:
        value = getattr(settings, key)
        if value is not None and key not in known:
            having = tuple(other for other, one in STRATEGIES.items() if key in one.settings)
            whens = ([When(strategy=having)] if having else []) + ([When(scorer="stale")] if key in OF_STALE else [])
            here = {"strategy": name, "scorer": scorer, "rule": settings.rule}
            here = {other: found for other, found in here.items() if found}
            raise idle_error(settings.name, key, value, " or with ".join(map(str, whens)), here)
    if "holdout" in known and settings.holdout is None:
        raise EffptError(
            f"`selection.strategy` `{name}` compares with a model trained on held-out text; give the folder of one, "
            "of the same vocabulary, as `selection.holdout`."
        )


def check(settings: Any, objective: str) -> None:
    """Raises an `EffptError` if the strategy or the scorer does not suit the objective."""
    kind, scorer, name = STRATEGIES[settings.strategy], settings.resolved.scorer, settings.strategy
    if scorer == "generator" and objective not in GENERATED:
        raise EffptError(
            f"`selection.scorer` is `generator`, which the objective `{objective}` has none of; use "
            f"{', '.join(one for one in kind.scorers if one != 'generator')}."
        )
    if objective == "mcbert" and not _suits_candidates(kind, scorer):
        raise EffptError(
            f"`selection.strategy` `{name}` with `scorer` `{scorer}` goes by probabilities over the vocabulary, and "
            "the head of MC-BERT has them over a few candidates; use `scorer: generator`."
        )
    if kind.mlm_only and objective != "mlm":
        raise EffptError(
            f"`selection.strategy` `{name}` needs the loss of masked tokens, and the objective is `{objective}`; use "
            "`mlm`, or another strategy."
        )


def _suits_candidates(kind: type[Strategy], scorer: Scorer | None) -> bool:
    """`True` if the scorer needs no probabilities over the vocabulary, which MC-BERT's head lacks."""
    needs = {"logits": ("full", "first_layer"), "losses": ("first_layer",)}
    return scorer not in needs.get(kind.input_kind, ())
