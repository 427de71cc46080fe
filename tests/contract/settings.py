"""Settings under which a run of eight steps meets all that a method does: the example of each method, and variants."""

from itertools import combinations

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import METHODS, build_methods
from tests import tiny

SETTINGS: dict[str, dict] = {name: dict(method.example) for name, method in METHODS.items()}
# What else a method can be asked to do, where it is another path through its code.
VARIANTS: dict[str, dict[str, dict]] = {
    "compress by importance": {"compress": {"depth": 3, "ffn_keep": 0.5, "at": 0.4, "rounds": 2, "until": 0.7}},
    "compress by gates": {"compress": {"head_keep": 0.5, "ffn_keep": 0.5, "importance": "gates", "at": 0.5}},
    "compress at random": {"compress": {"head_keep": 0.5, "depth": 2, "importance": "random", "at": 0.4}},
    "compress, distilled": {
        "compress": {"depth": 3, "head_keep": 0.5, "distill": 1.0, "at": 0.4, "rounds": 2, "until": 0.7}
    },
    "earlybert, kept": {"earlybert": {"weights": "keep", "max_search_steps": 0.6, "every": 1, "epsilon": 0.0}},
    "earlybert, by what the loss depends on": {"earlybert": {"ticket": "michel", "max_search_steps": 0.5}},
    "midas, state copied": {"stacking": {"operator": "midas", "at": [0.2, 0.4, 0.7], "optimizer_state": "copy"}},
    "interpolate, state reset": {
        "stacking": {"operator": "interpolate", "depth": [1, 2], "at": [0.3, 0.7], "optimizer_state": "reset"}
    },
    "append_top": {"stacking": {"operator": "append_top", "depth": [1, 2], "at": [0.2, 0.45], "joint_at": 0.8}},
    "ligo_depth": {"stacking": {"operator": "ligo_depth", "depth": 2, "at": [0.5]}},
    "by slope": {"stacking": {"depth": 2, "at": [0.6], "slope": -0.05}},
    "lottery, rewound to later": {"lottery": {"rounds": 2, "rewind_to": 1, "criterion": "magnitude_increase"}},
    "lottery at random": {"lottery": {"rounds": 2, "criterion": "random", "signs": "random_sign"}},
    "supermask": {"lottery": {"learn": "supermask", "signs": "keep_sign", "rescale": True}},
    **{
        f"selection, {name}": {"selection": {"start": 0.0, "end": 1.0, "interrupt": 0, **settings}}
        for name, settings in {
            "adaptive masking": {"strategy": "adaptive_masking"},
            "core set": {"strategy": "core_set", "queue": 16},
            "deep Bayesian": {"strategy": "deep_bayesian", "level": "full", "rule": "bald"},
            "discriminative": {"strategy": "discriminative", "scorer": "first_layer", "queue": 24},
            "gradient length": {"strategy": "expected_gradient_length", "mode": "weighted"},
            "highest loss": {"strategy": "highest_loss", "mode": "rank_sample"},
            "InfoBatch": {"strategy": "infobatch", "end": 0.875},
            "loss rank": {"strategy": "loss_rank", "max_age": 6},
            "perceptrons": {"strategy": "perceptron_ensemble", "warmup": 3, "keep": 0.7},
            "random": {"strategy": "random", "keep": 0.3},
            "reweighting": {"strategy": "reweighting"},
            "selective backprop": {"strategy": "selective_backprop", "scorer": "first_layer", "keep": 0.7},
        }.items()
    },
    "pld": {"layerdrop": {"p": 0.8, "rate": "pld", "heads": 0.3}},
    "progressive": {"layerdrop": {"p": 0.5, "rate": "progressive", "group": 1}},
}


def ledgers() -> list[dict[str, dict]]:
    """Each method alone, and each pair that is allowed."""
    return [
        {name: SETTINGS[name] for name in names}
        for size in (1, 2)
        for names in combinations(METHODS, size)
        if allowed({name: SETTINGS[name] for name in names})
    ]


def allowed(ledger: dict[str, dict]) -> bool:
    try:
        build_methods(ledger, tiny.config())
    except EffptError:
        return False
    return True


def name_of(ledger: dict[str, dict]) -> str:
    return "+".join(ledger) or "none"
