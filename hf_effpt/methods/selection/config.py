"""The settings of selection: what is left open is filled in by the strategy, and what cannot work is refused."""

from typing import TYPE_CHECKING

from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import nearest

from .strategies import STRATEGIES
from .strategy import ResolvedSettings, Scorer, Strategy

if TYPE_CHECKING:
    from .method import Selection

OPEN = (
    "keep", "mode", "start", "end", "interrupt", "explore", "outliers",
    "warmup", "passes", "dropout", "level", "members", "queue",
)  # fmt: skip
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
    _check_times(resolved)
    return resolved


def _refuse_what_it_has_not(settings: "Selection", kind: type[Strategy]) -> None:
    name = settings.strategy
    for key, valid in (("scorer", kind.scorers), ("rule", kind.rules)):
        value = getattr(settings, key)
        if value is not None and value not in valid:
            other = f"it has {', '.join(valid)}" if valid else "it has none"
            raise EffptError(f"`selection.{key}` is {value!r}, which the strategy `{name}` does not have: {other}.")
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


def _check_times(resolved: ResolvedSettings) -> None:
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
