"""Settings of methods, and combinations of them, that are refused when a method or a model is made."""

import math

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import METHODS, build_methods
from tests import tiny

from .settings import name_of

# A method's settings that its class refuses by itself, and what the message says, as a regular expression.
ALONE = {
    "compress": [
        ({"distill": -0.1}, "`compress.distill` must be at least 0 and finite, not -0.1"),
        ({"distill": math.nan}, "`compress.distill` must be at least 0 and finite, not nan"),
        ({"distill": math.inf}, "`compress.distill` must be at least 0 and finite, not inf"),
        ({"head_keep": 0.0}, r"`compress.head_keep` must be in \(0, 1\]"),
        ({"ffn_keep": 1.1}, r"`compress.ffn_keep` must be in"),
        ({"depth": 0}, "`compress.depth` must be a whole number of at least 1, not 0"),
        ({"at": 0.0}, r"`compress.at` must be in \(0, 1\), not 0.0: the large model trains before"),
        ({"at": 1.0}, r"`compress.at` must be in"),
        ({"rounds": 0}, "`compress.rounds` must be a whole number"),
        ({"rounds": 2, "until": 0.5}, "`compress.until` must be after `compress.at`, 0.7, not 0.5"),
        ({"importance": "size"}, "`compress.importance` must be one of michel, gates, magnitude, random"),
    ],
    "earlybert": [
        ({"head_keep": 0.0}, r"head_keep` must be in \(0, 1\], not 0.0"),
        ({"ffn_keep": 1.1}, r"ffn_keep` must be in \(0, 1\], not 1.1"),
        ({"max_search_steps": 0.0}, "max_search_steps` must be above 0 and finite, not 0.0"),
        ({"max_search_steps": 2.5}, "share of the clock below 1 or a whole number"),
        ({"epsilon": 1.1}, r"epsilon` must be in \[0, 1\]"),
        ({"window": 1}, "window` must be a whole number of at least 2"),
        ({"every": 0}, "every` must be a whole number of at least 1"),
        ({"weights": "reset"}, "must be one of rewind, keep, not 'reset'"),
        ({"l1": -1.0}, "l1` must be at least 0"),
        ({"gate_learning_rate": 0.0}, "gate_learning_rate` must be above 0"),
        ({"after": 1.0}, r"after` must be in \[0, 1\)"),
    ],
    "layerdrop": [
        ({"p": 1.0}, "`layerdrop.p`"),
        ({"p": -0.1}, "`layerdrop.p`"),
        ({"after": 1.0}, "`layerdrop.after`"),
        ({"after": -0.2}, "`layerdrop.after`"),
        ({"rate": "falling"}, "`layerdrop.rate`"),
        ({"group": 0}, "`layerdrop.group`"),
        ({"group": 1.5}, "`layerdrop.group`"),
        ({"heads": 1.0}, "`layerdrop.heads`"),
        ({"heads": -0.1}, "`layerdrop.heads`"),
        ({"scaling": "both"}, "`layerdrop.scaling`"),
    ],
    "layerskip": [
        ({"target": 0.0}, "`layerskip.target`"),
        ({"target": 1.2}, "`layerskip.target`"),
        ({"alpha": -1.0}, "`layerskip.alpha`"),
        ({"alpha": math.nan}, "`layerskip.alpha`"),
        ({"alpha": math.inf}, "`layerskip.alpha`"),
        ({"beta": 0.0}, "`layerskip.beta`"),
        ({"beta": -0.1}, "`layerskip.beta`"),
        ({"beta": math.nan}, "`layerskip.beta`"),
        ({"after": 1.0}, "`layerskip.after`"),
        ({"harden": 0.0}, "`layerskip.harden`"),
        ({"estimator": "ste"}, "`layerskip.estimator`"),
        ({"routing": "top"}, "`layerskip.routing`"),
        ({"evaluation": "off"}, "`layerskip.evaluation`"),
        ({"estimator": "ste_reweighted", "routing": "topk"}, "`layerskip.(routing` `topk|estimator)`"),
        ({"estimator": "reinforce", "routing": "topk"}, "`layerskip.(routing` `topk|estimator)`"),
        ({"evaluation": "hardened", "routing": "topk"}, "`layerskip.(routing` `topk|evaluation)`"),
    ],
    "lottery": [
        ({"sparsity": 1.0}, r"sparsity` must be in \(0, 1\)"),
        ({"rounds": 0}, "rounds` must be a whole number of at least 1"),
        ({"rewind_to": 2.5}, "rewind_to` must be a whole number of at least 0, not 2.5"),
        ({"criterion": "small"}, "criterion` must be one of large_final"),
        ({"signs": "flip"}, "signs` must be one of rewind"),
        ({"learn": "both"}, "learn` must be one of magnitude"),
        ({"learn": "supermask", "score_learning_rate": 0.0}, "must be above 0"),
    ],
    "selection": [
        ({"strategy": "randon"}, "did you mean `random`"),
        ({"keep": 0}, r"must be in \(0, 1\], not 0"),
        ({"keep": 1.2}, r"must be in \(0, 1\], not 1.2"),
        ({"keep": math.nan}, r"must be in \(0, 1\], not nan"),
        ({"strategy": "random", "scorer": "full"}, "`random` does not have: it has none"),
        ({"strategy": "core_set", "scorer": "stale"}, "it has embedding, first_layer, full"),
        ({"rule": "entropy"}, "it has mean, ucb, vote, agreement"),
        ({"strategy": "random", "rule": "x"}, "it has none"),
        ({"mode": "best"}, "one of topk, rank_sample, weighted"),
        ({"level": "body"}, "one of head, full"),
        ({"strategy": "infobatch", "mode": "rank_sample"}, "`infobatch` does not have: it has topk"),
        ({"strategy": "core_set", "mode": "weighted"}, "`core_set` does not have: it has topk"),
        ({"strategy": "selective_backprop", "mode": "topk"}, "does not have: it has rank_sample"),
        ({"strategy": "rho"}, "give the folder of one"),
        ({"strategy": "token_selection"}, "give the folder of one"),
        ({"start": 0.9}, "0 <= start < end <= 1"),
        ({"start": -0.1}, "0 <= start < end <= 1"),
        ({"end": 1.1}, "0 <= start < end <= 1"),
        ({"explore": 1.0}, r"`selection.explore` must be in \[0, 1\)"),
        ({"outliers": -0.1}, r"`selection.outliers` must be in \[0, 1\)"),
        ({"interrupt": 1}, "every step takes rows as they come; give at least 2, or 0"),
        ({"interrupt": -2}, "`selection.interrupt` must be a whole number of at least 0, not -2"),
        ({"strategy": "deep_bayesian", "passes": 1}, "`selection.passes` must be a whole number of at least 2"),
        ({"strategy": "core_set", "queue": 2.5}, "must be a whole number of at least 1, not 2.5"),
        ({"warmup": 10**30}, "must be a whole number of at least 0, not 10{30}, which has more than 64 bits"),
        ({"warmup": True}, "must be a whole number of at least 0, not True"),
        ({"members": 1}, "`selection.members` must be a whole number of at least 2"),
        ({"warmup": -1}, "`selection.warmup` must be a whole number of at least 0"),
        ({"strategy": "core_set", "queue": 0}, "`selection.queue` must be a whole number of at least 1"),
        ({"strategy": "deep_bayesian", "dropout": 0.0}, "without dropout all draws"),
        ({"strategy": "deep_bayesian", "dropout": 1.0}, r"`selection.dropout` must be in \(0, 1\)"),
        ({"strategy": "infobatch", "max_age": 0}, "at least 1, not 0"),
        ({"strategy": "deep_bayesian", "num_score_positions": 0}, "must be a whole number of at least 1, not 0"),
        ({"strategy": "deep_bayesian", "num_score_positions": 0.5}, "must be a whole number of at least 1, not 0.5"),
    ],
    "stacking": [
        ({"at": []}, "`stacking.at`"),
        ({"at": [0.0]}, "`stacking.at`"),
        ({"at": [1.0]}, "`stacking.at`"),
        ({"at": [0.5, 0.3]}, "`stacking.at`"),
        ({"at": [0.3, 0.3]}, "`stacking.at`"),
        ({"at": "prop"}, "`stacking.at`"),
        ({"at": "prop-1000"}, "`stacking.at`"),
        ({"at": ["0.3"]}, "`stacking.at`"),
        ({"at": 1.5}, "`stacking.at`"),
        ({"depth": 0}, "`stacking.depth`"),
        ({"depth": []}, "`stacking.depth`"),
        ({"depth": [0, 2]}, "`stacking.depth`"),
        ({"depth": "3"}, "`stacking.depth`"),
        ({"depth": 2.5}, "`stacking.depth`"),
        ({"depth": [2, 2.5]}, "`stacking.depth`"),
        ({"depth": True}, "`stacking.depth`"),
        ({"operator": "double"}, "`stacking.operator`"),
        ({"optimizer_state": "halve"}, "`stacking.optimizer_state`"),
        ({"optimizer_state": "keep", "operator": "ligo_depth"}, "`stacking.optimizer_state`"),
        ({"rewarmup": -1}, "`stacking.rewarmup`"),
        ({"slope": 0.1}, "`stacking.slope`"),
        ({"slope": "x"}, "`stacking.slope`"),
        ({"slope": -math.inf}, "`stacking.slope`"),
        ({"rewarmup": None}, "`stacking.rewarmup`"),
        ({"joint_at": 1.0, "operator": "append_top"}, "`stacking.joint_at`"),
        ({"at": [0.3, 0.8], "operator": "append_top"}, "`stacking.at`"),
        ({"auxiliary": "shrink"}, "`stacking.auxiliary`"),
        ({"at": "gstack"}, "`stacking.at` is 'gstack'.*prop-1"),
    ],
    "tnf": [
        ({"k": -1}, r"`tnf\.k`.*-1"),
        ({"gamma": 0.0}, r"`tnf\.gamma`.*0.0"),
        ({"gamma": 1.1}, r"`tnf\.gamma`.*1.1"),
        ({"weight": 1.0}, r"`tnf\.weight`.*1.0"),
        ({"weight": -0.1}, r"`tnf\.weight`.*-0.1"),
        ({"min_count": 0}, r"`tnf\.min_count`.*0"),
        ({"max_count": 0}, r"`tnf\.max_count`.*0"),
        ({"max_entries": 0}, r"`tnf\.max_entries`.*0"),
        ({"entries": 0}, r"`tnf\.entries`.*0"),
        ({"scale": "x"}, r"`tnf\.scale`.*x"),
        ({"at_growth": "x"}, r"`tnf\.at_growth`.*x"),
        ({"use": "x"}, r"`tnf\.use`.*x"),
        ({"min_count": 5, "max_count": 3}, r"`tnf\.max_count` is 3, below `tnf\.min_count`, 5"),
    ],
}
GROWS = {"depth": 1, "at": [0.3, 0.6]}
# A ledger that does not suit its model or itself, the message, and how the model differs from the one of `tiny`.
MODELS = [
    # The shape of the model.
    ({"compress": {"head_keep": 0.2}}, r"leaves none of 2 heads; set it to at least 0.5"),
    ({"compress": {"ffn_keep": 0.1}}, r"leaves 6 of 64 neurons, fewer .*, 8; set it to at least 0.125"),
    ({"compress": {"depth": 5}}, "`compress.depth` is 5, but the model has 4 layers"),
    ({"compress": {"depth": 4}}, "nothing to cut of 4 layers"),
    ({"compress": {"head_keep": 1.0, "ffn_keep": 1.0}}, "nothing to cut: `head_keep` and `ffn_keep` are 1"),
    ({"earlybert": {"head_keep": 0.2}}, "leaves none of the 2 heads of a layer; keep at least 0.5"),
    ({"earlybert": {"ffn_keep": 0.1}}, "leaves 6.4 of the 64 neurons of a layer, and a layer needs 8"),
    ({"earlybert": {}}, "have been cut already", {"layer_widths": [[1, 8]] * 4}),
    ({"earlybert": {"max_search_steps": 0.6, "after": 0.5}}, "to the end of the run"),
    ({"earlybert": {"ticket": "goood"}}, "or the path of a ticket .* there is no file 'goood'"),
    ({"layerdrop": {"group": 3}}, "`layerdrop.group` is 3, which does not divide .* 4 layers; use 1, 2 or 4"),
    ({"layerdrop": {"rate": "progressive", "p": 0.6}}, "`layerdrop.p` is 0.6.*set it to 0.5 at most"),
    (
        {"layerdrop": {"rate": "progressive", "p": 0.5, "group": 2}},
        "4 layers in groups of 2 always run; set it to 0 at most",
    ),
    ({"layerdrop": {"rate": "progressive"}}, "set it to 0.333 at most", {"num_hidden_layers": 3}),
    ({"layerdrop": {"scaling": "training"}}, "`layerdrop.scaling` is `training`.*effpt_bert.*leave `scaling` out"),
    ({"layerskip": {}}, "at least 3", {"num_hidden_layers": 2}),
    ({"stacking": {"depth": 5, "at": [0.5]}}, "cannot grow from 5 to 4 layers in 1 growth"),
    ({"stacking": {"depth": 4, "at": [0.5]}}, "cannot grow from 4 to 4 layers in 1 growth"),
    ({"stacking": {"at": [0.1, 0.2]}}, "cannot grow from 1 to 2 layers in 2 growth", {"num_hidden_layers": 2}),
    ({"stacking": {"depth": [3, 2]}}, r"depths \[3, 2, 4\] of its stages must rise"),  # shrinks
    ({"stacking": {"depth": [2, 8]}}, r"depths \[2, 8, 4\] of its stages must rise"),  # beyond what is allocated
    ({"stacking": {"depth": [2], "at": [0.1, 0.2]}}, r"`stacking.at` has 2 fraction\(s\).*1 growth"),
    ({"stacking": {"operator": "interpolate", "depth": [2, 3]}}, "2 layers cannot become 3"),
    ({"stacking": {"operator": "midas", "depth": 3}}, "4 is no multiple of `stacking.depth`, 3"),
    ({"stacking": {"operator": "midas", "depth": [1, 3]}}, "1 layers cannot become 3"),
    ({"stacking": {"operator": "midas", "at": [0.1, 0.2]}}, "4 layers do not divide into the 3 stages"),
    ({"stacking": {"operator": "append_top", "depth": [1, 3]}}, "1 layers can become at most 2, not 3"),
    ({"stacking": {"operator": "identity"}}, "post-LN.*Use `stack`"),
    # The objective.
    ({"layerskip": {"estimator": "reinforce"}}, "`reinforce`.*`electra`.*`ste_reweighted`", {"objective": "electra"}),
    (
        {"selection": {"strategy": "selective_backprop", "scorer": "generator"}},
        "objective `mlm` has none of; use full",
    ),
    ({"selection": {"strategy": "rho", "holdout": "x"}}, "needs the loss of masked tokens", {"objective": "electra"}),
    (
        {"selection": {"strategy": "token_selection", "holdout": "x"}},
        "needs the loss of masked tokens",
        {"objective": "replace_mlm"},
    ),
    ({"selection": {"strategy": "adaptive_masking"}}, "needs the loss of masked tokens", {"objective": "electra"}),
    (
        {"selection": {"strategy": "least_confidence", "scorer": "full"}},
        "use `scorer: generator`",
        {"objective": "mcbert"},
    ),
    (
        {"selection": {"strategy": "loss_rank", "scorer": "first_layer"}},
        "use `scorer: generator`",
        {"objective": "mcbert"},
    ),
    ({"stacking": {"auxiliary": "grow"}}, "`stacking.auxiliary` is `grow`, but the model has none"),
    (
        {"stacking": {"auxiliary": "grow"}},
        "has one of 2 layers; a generator that grows along must be as deep",
        {"objective": "electra", "generator": {"num_hidden_layers": 2}},
    ),
    # Two methods.
    ({"compress": {"at": 0.6}, "stacking": {"depth": 1, "at": [0.3, 0.65]}}, "changes the architecture until 0.65"),
    (
        {"compress": {"importance": "gates", "at": 0.7}, "stacking": {"depth": 1, "at": [0.3, 0.65]}},
        "its gates learn from 0.6 on",
    ),
    ({"compress": {"depth": 2}, "layerskip": {}}, "always runs the first and the last layer"),
    ({"compress": {"at": 0.5}, "layerdrop": {"after": 0.6}}, "has to end at 0.5, before the model is cut"),
    ({"compress": {"depth": 3}, "layerskip": {"after": 0.5}}, "changes the architecture until 0.7"),
    *(
        (
            {waiting: {}, "earlybert": {"max_search_steps": 5}},
            f"`{waiting}` starts when `earlybert` no longer .* a share of the clock",
        )
        for waiting in ("layerdrop", "layerskip")
    ),
    *(
        (
            {waiting: {"after": 0.4}, "earlybert": {"max_search_steps": 0.2}, "stacking": {"depth": 2, "at": [0.3]}},
            f"`{waiting}.after` is 0.4",
        )
        for waiting in ("layerdrop", "layerskip")
    ),
    ({"earlybert": {"after": 0.2}, "stacking": {"depth": 2, "at": [0.3]}}, "`earlybert.after` is 0.2"),
    ({"layerdrop": {"after": 0.5}, "stacking": GROWS}, "`layerdrop.after` is 0.5.*until 0.6.*leave `after` out"),
    *(
        ({"layerdrop": {"after": 0.4}, "stacking": grows}, "another method changes the architecture until")
        for grows in ({"depth": 1, "at": "prop-1"}, {"operator": "append_top", "joint_at": 0.8})
    ),
    *(
        ({"layerdrop": {"rate": rate}, "tnf": {}}, "`tnf` writes notes.*`layerdrop.p` 0.5")
        for rate in ("pld", "progressive")
    ),
    *(({"layerdrop": {"p": p}, "tnf": {}}, rf"`layerdrop\.p` {p}.*below 0\.5, or use `stacking`") for p in (0.5, 0.9)),
    ({"layerskip": {}, "layerdrop": {}}, "`layerdrop`"),
    ({"layerskip": {"after": 0.5}, "stacking": GROWS}, "`layerskip.after` is 0.5.*until 0.6.*leave `after` out"),
    *(
        ({"lottery": settings, other: {}}, f"with `{other}` some learn less often")
        for other in ("layerdrop", "layerskip")
        for settings in ({}, {"learn": "supermask"})
    ),
    *(
        ({"lottery": settings, "stacking": {}}, "for a model of full depth")
        for settings in ({"ticket": "t"}, {"learn": "supermask"})
    ),
    # Types.
    *(
        ({name: {key: "much"}}, f"{name}.*{key}")
        for name, key in (("layerdrop", "p"), ("layerskip", "target"), ("stacking", "depth"), ("tnf", "gamma"))
    ),
]
# What is next to a refusal and is sound.
ALLOWED = [
    {"layerdrop": {"scaling": "none"}},
    *({"layerdrop": {"rate": rate, "p": 0.4}, "tnf": {}} for rate in ("pld", "progressive")),
    {"tnf": {}, "layerdrop": {"p": 0.49}},
    *({"lottery": {"ticket": "t"}, other: {}} for other in ("layerdrop", "layerskip")),
]


def model_of(ledger, objective="mlm", **changes):
    return tiny.model(ledger, **changes) if objective == "mlm" else tiny.joint(objective, ledger, **changes)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [(name, settings, message) for name, rows in ALONE.items() for settings, message in rows],
)
def test_settings_are_refused_at_construction_and_in_a_recipe(name, settings, message):
    with pytest.raises(EffptError, match=message):
        METHODS[name](**settings)
    with pytest.raises(EffptError, match=message):
        build_methods({name: settings}, tiny.config())


@pytest.mark.parametrize("row", MODELS, ids=lambda row: f"{name_of(row[0])}: {row[1][:40]}")
def test_models_are_refused(row):
    ledger, message, changes = (*row, {})[:3]
    with pytest.raises(EffptError, match=message):
        model_of(ledger, **changes)


@pytest.mark.parametrize("ledger", ALLOWED, ids=name_of)
def test_neighbours_of_refusals_are_allowed(ledger):
    assert len(build_methods(ledger, tiny.config())) == len(ledger)


def test_every_method_has_refusals():
    assert set(ALONE) == set(METHODS)
