"""A report as a comparison writes it: three arms, three seeds, three budgets, everything known."""

import copy
import math
from typing import Any

import numpy as np

BUDGET, FRACTIONS, SEEDS, FLOOR = 120.0, (0.5, 0.7, 1.0), (0, 1, 2), 6.40
# name: loss at the end of the whole budget, tokens a second
ARMS = {"baseline": (5.62, 41_000.0), "stacking": (5.55, 58_000.0), "layerdrop": (5.66, 47_000.0)}
PER_TOKEN = {"baseline": 9.3e6, "stacking": 6.1e6, "layerdrop": 8.0e6}
METHODS = {"baseline": {}, "stacking": {"stacking": {"depth": 1}}, "layerdrop": {"layerdrop": {"p": 0.1}}}
WATTS = 21.0


def _run(name: str, seed: int, fraction: float) -> dict[str, Any]:
    final, speed = ARMS[name]
    noise = 0.05 * (seed - 1) + np.random.default_rng([seed, *name.encode()]).normal(
        0, 0.008
    )  # shared by a pair, and own
    loss = final - 0.35 * math.log(fraction) + noise
    curve = []
    for share in np.linspace(0.1, 1.0, 10).round(2).tolist():
        seconds = share * fraction * BUDGET
        curve.append(
            {
                "clock": share,
                "seconds": seconds,
                "tokens": seconds * speed,
                "flops": seconds * speed * PER_TOKEN[name],
                "reference_seconds": None,
                "kwh": seconds * WATTS / 3.6e6,
                "loss": loss + 3.0 * (1 - share) ** 2,
            }
        )
    last = curve[-1]
    return {
        "seed": seed,
        "fraction": fraction,
        "state": "finished",
        "note": None,
        "held_out_loss": last["loss"],
        "clock": {
            "steps": int(last["tokens"] // 4096),
            "tokens": last["tokens"],
            "flops": last["flops"],
            "seconds": last["seconds"],
            "reference_seconds": None,
            "joules": last["seconds"] * WATTS,
        },
        "co2e": last["kwh"] * 475,
        "final_learning_rate": 1e-8,
        "costs": dict.fromkeys(METHODS[name], 0.31 + 0.01 * seed),
        "curve": curve,
        "scores": {"blimp/pll_word_l2r": 0.531 + 0.002 * seed, "sst2/accuracy@default": 0.712, "cola/mcc@default": 0.0}
        if fraction == 1.0
        else {},
    }


def _spread(values: list[float]) -> dict[str, Any]:
    mean, half = float(np.mean(values)), 4.303 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(values)}


def _arm(name: str) -> dict[str, Any]:
    runs = [_run(name, seed, fraction) for seed in SEEDS for fraction in FRACTIONS]
    full = [run for run in runs if run["fraction"] == 1.0]
    scores = {score: _spread([run["scores"][score] for run in full]) | {"note": None} for score in full[0]["scores"]}
    scores["cola/mcc@default"] = {
        "mean": None, "low": None, "high": None, "n": 3, "note": "one class predicted for all 1,043 examples",
    }  # fmt: skip
    reached = {"stacking": 98.0}.get(name)
    return {
        "name": name,
        "baseline": name == "baseline",
        "objective": "mlm",
        "loss_of": "mlm, per masked token",
        "floor_name": "unigram floor",
        "comparable": True,
        "methods": METHODS[name],
        "summary_of_methods": ", ".join(METHODS[name]) or "none",
        "recipe": {"model": {"size": "tiny"}, "methods": METHODS[name], "training": {"budget": "2min"}},
        "runs": runs,
        "summary": {
            "final_loss": _spread([run["held_out_loss"] for run in full]),
            "floor": _spread([FLOOR] * len(full)),
            "margin": _spread([FLOOR - run["held_out_loss"] for run in full]),
            "generator_loss": None,
            "replaced_rate": None,
            "budget_to_baseline_loss": reached and {"value": reached},
            "speed_up": reached and {"value": BUDGET / reached, "low": 1.11, "high": 1.37},
            "speed_up_note": None if reached else "the baseline's loss was not reached" if METHODS[name] else None,
            "scores": scores,
            "seconds": BUDGET,
            "tokens": full[0]["clock"]["tokens"],
            "flops": full[0]["clock"]["flops"],
            "kwh": BUDGET * WATTS / 3.6e6,
            "co2e": BUDGET * WATTS / 3.6e6 * 475,
            "method_seconds": 0.32 if METHODS[name] else 0.0,
        },
        "difference": None,
        "score_differences": {},
        "verdict": {"label": "baseline", "text": "The arm that the others are compared with."},
    }


def example_report() -> dict[str, Any]:
    """A new report at each call, for a test to change."""
    arms = [_arm(name) for name in ARMS]
    for arm in arms[1:]:
        pairs = [
            (ours["held_out_loss"] - theirs["held_out_loss"])
            for ours, theirs in zip(arm["runs"], arms[0]["runs"], strict=True)
            if ours["fraction"] == 1.0
        ]
        arm["difference"] = _spread(pairs) | {"p": 0.006, "p_holm": 0.012}
        gap = {"mean": 0.011, "low": -0.002, "high": 0.024, "n": 3, "p": 0.07, "p_holm": None}
        arm["score_differences"] = {"blimp/pll_word_l2r": gap, "cola/mcc@default": None}
        side = "below" if arm["difference"]["mean"] < 0 else "above"
        arm["verdict"] = {
            "label": "better" if side == "below" else "worse",
            "text": f"Ends {abs(arm['difference']['mean']):.3f} nats {side} the baseline, with 95 % confidence.",
        }
    return {
        "title": "Stacking and LayerDrop against plain training",
        "command": "effpt compare tiny stacking_tiny layerdrop_tiny --budget 2min --seeds 0 1 2",
        "clock": {"unit": "seconds", "budget": BUDGET, "text": "2 min"},
        "baseline": "baseline",
        "seeds": list(SEEDS),
        "fractions": list(FRACTIONS),
        "primary": "held_out_loss",
        "void": None,
        "notes": ["BLiMP is near chance (0.5) at this size."],
        "environment": {"hf_effpt": "0.1.0", "torch": "2.13.0", "device": "CPU, 2 cores"},
        "energy": {"source": "estimated from CPU time", "carbon_intensity": 475.0},
        "arms": arms,
    }


def with_many_arms(number: int) -> dict[str, Any]:
    """The example with copies of its arms, `number` of them together, on the whole budget only."""
    report = example_report()
    copies = [copy.deepcopy(report["arms"][1 + index % 2]) for index in range(number - 3)]
    for index, arm in enumerate(copies):
        arm["name"] += f" with setting {index}"
    report["arms"] += copies
    for arm in report["arms"]:
        arm["runs"] = [run for run in arm["runs"] if run["fraction"] == 1.0]
    report["fractions"] = [1.0]
    return report


def without_energy() -> dict[str, Any]:
    """The example on a machine where nothing measures energy."""
    report = example_report()
    report["energy"]["source"] = None
    for arm in report["arms"]:
        arm["summary"]["kwh"] = arm["summary"]["co2e"] = None
        for run in arm["runs"]:
            run["clock"]["joules"] = run["co2e"] = None
            for point in run["curve"]:
                point["kwh"] = None
    return report


def with_divergence() -> dict[str, Any]:
    """The example with a layerdrop run that diverged half-way: its curve ends in NaN, as a careless caller has it."""
    report = example_report()
    arm = report["arms"][2]
    run = next(run for run in arm["runs"] if run["seed"] == 1 and run["fraction"] == 1.0)
    run |= {"state": "diverged", "note": "loss was NaN at step 310", "held_out_loss": None, "scores": {}}
    for point in run["curve"][5:]:
        point["loss"] = math.nan
    arm["verdict"] = {"label": "no verdict", "text": "1 of 3 runs diverged, so nothing is concluded."}
    arm["summary"]["final_loss"] = None
    arm["difference"] = None
    return report


def with_objectives() -> dict[str, Any]:
    """The example with a discriminator in the place of layerdrop."""
    report = example_report()
    arm = report["arms"][2]
    for run in arm["runs"]:
        run["objective"] = "electra"
        for point in run["curve"]:
            point["loss"] /= 14
        run["held_out_loss"] /= 14
    full = [run for run in arm["runs"] if run["fraction"] == 1.0]
    arm |= {"name": "electra", "objective": "electra", "loss_of": "electra, per token", "floor_name": "prior entropy"}
    arm |= {"comparable": False, "difference": None}
    arm["verdict"] = {"label": "another objective", "text": "Another objective: its loss cannot be compared."}
    arm["summary"] |= {
        "final_loss": _spread([run["held_out_loss"] for run in full]),
        "floor": _spread([0.42537] * 3),
        "margin": _spread([0.42537 - run["held_out_loss"] for run in full]),
        "generator_loss": _spread([5.766] * 3),
        "replaced_rate": _spread([0.1515] * 3),
        "budget_to_baseline_loss": None,
        "speed_up": None,
        "speed_up_note": "not given: another objective",
    }
    return report
