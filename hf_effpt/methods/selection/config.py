"""The settings of selection: what is left open is filled in by the strategy, and what cannot work is refused."""

from typing import TYPE_CHECKING, get_args

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest

from .strategies import STRATEGIES
from .strategy import Level, Mode, ResolvedSettings, Scorer, Strategy

if TYPE_CHECKING:
    from .method import Selection

OPEN = (
    "keep", "mode", "start", "end", "interrupt", "explore", "outliers",
    "warmup", "passes", "dropout", "level", "members", "queue",
)  # fmt: skip
COUNTS = ("interrupt", "warmup", "passes", "members", "queue", "max_age", "num_score_positions")
DRAWS = ("passes", "dropout", "level")
GENERATED = ("electra", "electra_15", "replace_mlm", "all_tokens_mlm", "mcbert")  # objectives with a generator


def resolve(settings: "Selection", objective: str = "mlm") -> ResolvedSettings:
    """The settings with nothing left open, for a model that is trained for this objective.

    Raises:
        EffptError: if one is outside its range, or the strategy does not have it.
    """
    if settings.strategy not in STRATEGIES:
        raise EffptError(
            f"`selection.strategy` {settings.strategy!r} is none: {nearest(str(settings.strategy), list(STRATEGIES))}"
        )
    kind = STRATEGIES[settings.strategy]
    _refuse_what_it_has_not(settings, kind)
    defaults = dict(kind.defaults)
    if settings.mode not in (None, "topk") and settings.explore is None:
        defaults["explore"] = 0.0  # such draws explore by themselves
    given = {name: getattr(settings, name) for name in OPEN if getattr(settings, name) is not None}
    resolved = ResolvedSettings(
        **defaults | given,
        scorer=settings.scorer or _usual_scorer(kind, objective),
        rule=settings.rule or (kind.rules[0] if kind.rules else None),
        max_age=settings.max_age,
        num_score_positions=settings.num_score_positions,
        rows=settings.rows or 0,
    )
    _check_ranges(settings, resolved)
    return resolved


def _refuse_what_it_has_not(settings: "Selection", kind: type[Strategy]) -> None:
    name = settings.strategy
    for key, valid in (("scorer", kind.scorers), ("rule", kind.rules)):
        value = getattr(settings, key)
        if value is not None and value not in valid:
            other = f"it has {', '.join(valid)}" if valid else "it has none"
            raise EffptError(f"`selection.{key}` is {value!r}, which the strategy `{name}` does not have: {other}.")
    for key, valid in (("mode", get_args(Mode)), ("level", get_args(Level))):
        value = getattr(settings, key)
        if value is not None and value not in valid:
            raise EffptError(f"`selection.{key}` must be one of {', '.join(valid)}, not {value!r}.")
    own = kind.pick is not Strategy.pick or not kind.picks_rows
    if own and settings.mode not in (None, kind.defaults.get("mode", "topk")):
        raise EffptError(
            f"`selection.mode` is {settings.mode!r}, but `{name}` picks in a way of its own; leave it out."
        )
    scorer = settings.scorer or (kind.scorers[0] if kind.scorers else None)
    only = {
        "holdout": (kind.compares is not None, "only `rho` and `token_selection` compare with another model"),
        "table": (
            scorer == "stale" or kind.compares == "rows",
            "only `scorer: stale` begins with a table of losses, and `rho` keeps one",
        ),
        "max_age": (scorer == "stale", "only with `scorer: stale` are losses kept that can be too old"),
        "num_score_positions": (
            kind.input_kind == "logits" and settings.rule != "observed",
            "only strategies that go by what the model answers can do with fewer positions, and of "
            "`expected_gradient_length` the rule `observed` cannot",
        ),
        "queue": ("queue" in kind.defaults, f"`{name}` has no queue"),
        "explore": (kind.explores, f"`{name}` draws by itself, or leaves no row out"),
        "outliers": (kind.explores, f"`{name}` takes no rows for the height of their scores alone"),
        "members": (name == "perceptron_ensemble", "only `perceptron_ensemble` has several"),
    }
    only |= dict.fromkeys(DRAWS, (name == "deep_bayesian", "only `deep_bayesian` draws dropout"))
    for key, (fits, why) in only.items():
        if getattr(settings, key) is not None and not fits:
            raise EffptError(f"`selection.{key}` is {getattr(settings, key)!r}, but {why}; leave it out.")
    if kind.compares is not None and settings.holdout is None:
        raise EffptError(
            f"`selection.strategy` `{name}` compares with a model trained on held-out text; give the folder of one, "
            "of the same vocabulary, as `selection.holdout`."
        )


def _check_ranges(settings: "Selection", resolved: ResolvedSettings) -> None:
    for key in COUNTS:
        value = getattr(resolved, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise EffptError(f"`selection.{key}` is a whole number, not {value!r}.")
    if not 0.0 < resolved.keep <= 1.0:
        raise EffptError(
            f"`selection.keep` is a share in (0, 1], not {resolved.keep}: 0.5 learns from half of the rows looked at, "
            "and 1 from all of them."
        )
    if not 0.0 <= resolved.start < resolved.end <= 1.0:
        raise EffptError(
            f"`selection.start` {resolved.start} and `selection.end` {resolved.end} must be fractions of the clock "
            "with 0 <= start < end <= 1."
        )
    for key in ("explore", "outliers"):
        if not 0.0 <= getattr(resolved, key) < 1.0:
            raise EffptError(f"`selection.{key}` must be in [0, 1), not {getattr(resolved, key)}.")
    if resolved.interrupt == 1 or resolved.interrupt < 0:
        raise EffptError(
            f"`selection.interrupt` is {resolved.interrupt}: of the steps one in so many takes rows as they come, so "
            "at 1 none would be selected; give at least 2, or 0 for no interruption."
        )
    for key, least in (("passes", 2), ("members", 2), ("warmup", 0), ("queue", 0)):
        if getattr(resolved, key) < least:
            raise EffptError(f"`selection.{key}` must be at least {least}, not {getattr(resolved, key)}.")
    if "queue" in STRATEGIES[settings.strategy].defaults and resolved.queue < 1:
        raise EffptError(f"`selection.queue` must be at least 1, not {resolved.queue}.")
    if settings.strategy == "deep_bayesian" and not 0.0 < resolved.dropout < 1.0:
        raise EffptError(
            f"`selection.dropout` must be in (0, 1), not {resolved.dropout}: without dropout all draws of "
            "`deep_bayesian` agree, and no row is less certain than another."
        )
    if resolved.max_age is not None and resolved.max_age < 1:
        raise EffptError(f"`selection.max_age` is a number of steps of at least 1, not {resolved.max_age}.")
    if resolved.num_score_positions is not None and resolved.num_score_positions < 1:
        raise EffptError(
            f"`selection.num_score_positions` is {resolved.num_score_positions}, but a row is judged at 1 position at "
            "least; leave it out to judge it at all that are masked."
        )


def check(settings: "Selection", objective: str) -> None:
    """Checks the settings against what the model is trained for.

    Raises:
        EffptError: if a strategy or scorer does not suit it.
    """
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
    if objective != "mlm" and (kind.compares or name == "adaptive_masking"):
        raise EffptError(
            f"`selection.strategy` `{name}` needs the loss of masked tokens, and the objective is `{objective}`; use "
            "`mlm`, or another strategy."
        )


def _usual_scorer(kind: type[Strategy], objective: str) -> Scorer | None:
    suiting: list[Scorer] = [one for one in kind.scorers if objective != "mcbert" or _suits_candidates(kind, one)]
    return suiting[0] if suiting else None


def _suits_candidates(kind: type[Strategy], scorer: Scorer | None) -> bool:
    """Whether a scorer does without probabilities over the vocabulary, which the head of MC-BERT does not give."""
    needs = {"logits": ("full", "first_layer"), "losses": ("first_layer",)}
    return scorer not in needs.get(kind.input_kind, ())
