"""Each planted fault is found by its check and no other; healthy texts, recipes and runs have no finding."""

import shlex
from dataclasses import replace

import numpy as np
import pytest

from hf_effpt.data.corpus import corpus_of
from hf_effpt.data.tokenizer_report import TokenizerReport, tokenizer_report
from hf_effpt.diagnosis import course_checks
from hf_effpt.diagnosis.advice import accepted
from hf_effpt.diagnosis.doctor import findings_in
from hf_effpt.diagnosis.range_test import RateRange
from hf_effpt.diagnosis.recipe_facts import RecipeFacts, recipe_facts
from hf_effpt.diagnosis.run_facts import RunFacts, run_facts
from hf_effpt.diagnosis.text_facts import text_facts
from hf_effpt.recipe.recipe import Recipe
from tests import tiny

from .planted import FLAT, LEARNED, NOISY_RISE, QUICK, RISING, SHORT, curve, record, with_jump

TEXT = [
    f"The {number} sentences of this document tell of {number + 1} things and of no others." for number in range(60)
]
REPORT = TokenizerReport(**record()["tokenizer"])


def of_text(texts, validation=None):
    return text_facts(corpus_of(texts), None if validation is None else corpus_of(validation))


def of_recipe(*flags, text_tokens=8e6):
    return recipe_facts(Recipe.load("tiny", flags), "tiny", 8192, text_tokens)


def of_run(*args, **changes):
    return run_facts(record(*args, **changes), "out")


def of_steps(steps, budget):
    return {"unit": "steps", "budget": budget, "steps": steps}


NO_NUMBERS = np.where(np.arange(64) < 40, curve(LEARNED), np.nan)
GROWING = np.where(np.arange(64) < 40, 1.5, 30.0)
CPU = record()["throughput"]
PLANTED = {
    # texts
    "doubles": ("doubles", lambda: of_text([*TEXT, *TEXT[:20]])),
    "leakage": ("leakage", lambda: of_text(TEXT, [TEXT[3].upper(), "Another text, which is new."])),
    "garbled": ("garbled", lambda: of_text([text.replace("of", "o\ufffd") for text in TEXT])),
    "mojibake": ("garbled", lambda: of_text([text + "cafÃ©" for text in TEXT])),
    "lines": ("lengths", lambda: of_text([f"Only {number} words." for number in range(60)])),
    "one document": ("lengths", lambda: of_text([*TEXT[:2], " ".join(TEXT)])),
    "scripts": ("scripts", lambda: of_text([text + " Это слово здесь чужое" for text in TEXT])),
    # tokenizers
    "unknown": ("unknown", lambda: tokenizer_report(tiny.tokenizer(), ["w1 w2 w3 w4 w1 w2 w3 w4 strange"])),
    "fragments": ("fragments", lambda: replace(REPORT, bytes_per_token=1.4, fertility=4.2)),
    # recipes
    "rate too high": ("learning rate", lambda: of_recipe("--training.learning_rate", "0.1")),
    "rate too low": ("learning rate", lambda: of_recipe("--training.learning_rate", "1e-6")),
    "no warm-up": ("warm-up", lambda: of_recipe("--training.warmup_steps", "0")),
    "constant rate": ("schedule", lambda: of_recipe("--training.lr_scheduler_type", "constant_with_warmup")),
    "few steps": ("batch", lambda: of_recipe("--training.budget", "100steps")),
    "large batch": ("batch", lambda: of_recipe("--training.gradient_accumulation_steps", "500")),
    "many passes": ("passes", lambda: of_recipe("--training.budget", "1e9tokens")),
    "memory": ("memory", lambda: of_recipe("--training.per_device_train_batch_size", "1000000", text_tokens=None)),
    "range test": ("range test", lambda: RateRange("tiny", rate=0.1, quickest=4e-3, diverges=0.02)),
    # runs
    "no numbers": ("divergence", lambda: of_run(NO_NUMBERS, held_out=float("nan"))),
    "rises": ("divergence", lambda: of_run(RISING, held_out=7.1)),
    "rises among noise": ("divergence", lambda: of_run(curve(NOISY_RISE, noise=0.12), held_out=6.2)),
    "spikes": ("spikes", lambda: of_run(with_jump(1.5))),
    "gradients grow": ("gradient norm", lambda: of_run(norms=GROWING)),
    "gradients vanish": ("gradient norm", lambda: of_run(norms=np.full(64, 1e-6))),
    "above the floor": ("floor", lambda: of_run(held_out=7.2)),
    "plateau": ("plateau", lambda: of_run(FLAT)),
    "by heart": ("overfit", lambda: of_run(QUICK, held_out=5.2, passes=30.0)),
    "trained on held-out": ("leakage", lambda: of_run(data={"doubles": 9, "held_out": {"documents": 80}})),
    "unfinished": ("unfinished", lambda: of_run(clock=of_steps(3200, 5000))),
    "not decayed": ("schedule", lambda: of_run(learning_rate={"peak": 3e-3, "final": 3e-3})),
    "waits for data": ("data-bound", lambda: of_run(throughput=CPU | {"data": 0.4, "mfu": 0.05})),
    "idle device": ("launch-bound", lambda: of_run(throughput=CPU | {"mfu": 0.02})),
}  # fmt: skip


@pytest.mark.parametrize(("check", "facts"), PLANTED.values(), ids=PLANTED)
def test_planted_fault_is_found_by_its_check_alone_and_the_fix_is_a_command(check, facts):
    facts = facts()
    (found,) = findings_in([facts])
    assert found.check == check
    words = shlex.split(found.fix)
    if words[:2] == ["effpt", "pretrain"] and "--resume" not in words:
        Recipe.load(getattr(facts, "recipe", None) or "tiny", words[3:])  # refuses what it does not know


STABLE = ("lr_scheduler_type", "warmup_stable_decay", "lr_scheduler_kwargs", "{num_decay_steps: 0.2}")
VARIANTS = {
    "steps": ("max_steps", "3000", "budget", "null"),
    "passes": ("num_train_epochs", "5", "budget", "null"),
    "growing batches": ("batch_ramp", "{0: 4, 0.5: 16, 0.8: 32}", "per_device_train_batch_size", "32"),
    "branches": (*STABLE, "branches", "[0.5, 0.75]"),
    "a schedule with settings": (
        "lr_scheduler_type",
        "cosine_with_min_lr",
        "lr_scheduler_kwargs",
        "{min_lr_rate: 0.3}",
    ),
    "a constant rate": ("lr_scheduler_type", "constant_with_warmup"),
    "a multiplied warm-up": ("multiply_warmup", "true"),
}
OF_TRAINING = {name: list(flags) for name, flags in VARIANTS.items()}
OTHERS = {
    "growing rows": ["--data.sequence_length", "{0: 32, 0.5: 128}"],
    "electra": ["--model.objective", "electra"],
    "rows that are selected": ["--data.select", "{deduplicate: near}", "--methods.selection.strategy", "random"],
}


@pytest.mark.parametrize("variant", [*VARIANTS, *OTHERS])
def test_every_command_is_taken_beside_the_settings_of_its_recipe(tmp_path, variant):
    flags = OTHERS.get(variant) or [
        f"--training.{word}" if place % 2 == 0 else word for place, word in enumerate(OF_TRAINING[variant])
    ]
    recipe = Recipe.load("tiny", flags)
    (tmp_path / "run").mkdir()
    recipe.save(tmp_path / "run" / "recipe.yaml")
    source, resolved = shlex.join(["tiny", *flags]), recipe.resolved()
    planted = [make() for _, make in PLANTED.values()]
    facts = [
        replace(one, recipe=resolved, folder=str(tmp_path / "run")) for one in planted if isinstance(one, RunFacts)
    ]
    facts += [replace(one, recipe=resolved, name=source) for one in planted if isinstance(one, RecipeFacts)]
    told = [finding.fix for one in facts for finding in findings_in([one])]
    commands = [fix[fix.index("effpt pretrain") :] for fix in told if "effpt pretrain" in fix]
    assert len(commands) == len(told) >= 20
    for command in commands:
        words = [word for word in shlex.split(command)[2:] if word != "--resume"]
        Recipe.load(words[0], words[1:])


def test_a_setting_that_no_recipe_takes_is_left_out_and_what_stands_in_the_way_is_reset():
    recipe = Recipe.load("tiny", ["--training.max_steps", "100", "--training.budget", "null"]).resolved()
    asked = ["--training.learning_rate 1e-3", "--training.warmup_steps 500", "--training.budget 10min"]
    assert accepted(recipe, asked) == [asked[0], asked[2], "--training.max_steps -1"]
    assert accepted({"methods": {"of another package": {}}}, asked) == asked


def test_a_run_of_a_script_has_no_recipe_to_run_again():
    fixes = {
        found.check: found.fix for found in findings_in([of_run(RISING, 7.1, recipe={}, clock=of_steps(3200, 5000))])
    }
    assert fixes["divergence"] == "train again with training.learning_rate 0.00033, training.warmup_steps 0.1"
    assert fixes["unfinished"].startswith("train(resume_from_checkpoint=True)")


def test_next_tokens_are_predicted_everywhere_and_cost_more():
    """So that a budget of FLOPs has fewer steps, by the share of the clock that learns them."""
    plain, first = (
        of_recipe("--training.budget", "1e13flops", "--model.objective", objective)
        for objective in ("mlm", "{0: clm, 0.5: mlm}")
    )
    everywhere = of_recipe("--training.budget", "1e13flops", "--data.mlm_probability", "0.999")
    assert first.steps == pytest.approx((plain.steps + everywhere.steps) / 2, rel=0.01)
    assert everywhere.steps < 0.6 * plain.steps


@pytest.mark.parametrize("losses", [LEARNED, FLAT])
def test_noise_of_log_entries_is_no_divergence(losses):
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.15, 64)
        assert course_checks.diverged(of_run(curve(losses, noise=0) + noise)) is None


@pytest.mark.parametrize(("budget", "rows"), [("1000steps", 0.5 * 4 + 0.3 * 16 + 0.2 * 32), ("5e5tokens", None)])
def test_the_mean_of_growing_batches_counts(budget, rows):
    flags = ["--training.batch_ramp", "{0: 4, 0.5: 16, 0.8: 32}", "--training.per_device_train_batch_size", "32"]
    facts = of_recipe(*flags, "--training.budget", budget)
    if rows is None:
        assert facts.steps == pytest.approx(5e5 / 128 * (0.5 / 4 + 0.3 / 16 + 0.2 / 32), rel=0.01)
    else:
        assert facts.step_tokens == round(rows * 128)
        assert facts.passes == pytest.approx(1000 * rows * 128 / 8e6, rel=0.01)


HEALTHY = {
    "learned late": lambda: of_run(LEARNED),
    "learned at once": lambda: of_run(QUICK),
    "a short run, still falling": lambda: of_run(SHORT),
    "many passes, nothing by heart": lambda: of_run(QUICK, held_out=4.75, passes=30.0),
    "grown by a method": lambda: of_run(
        with_jump(1.5), ledger={"methods": {"stacking": {}}, "events": [{"step": 2030, "what": "2 layers"}]}
    ),
    "cut by a method": lambda: of_run(
        np.where(np.arange(64) < 50, curve(QUICK), curve(QUICK) + 0.9),
        ledger={"methods": {"compress": {}}, "events": [{"step": 2500, "what": "2 layers"}]},
    ),
    "few log entries": lambda: of_run(curve(LEARNED)[::16]),
    "a text": lambda: of_text(TEXT, ["A text that is new."]),
    "a tokenizer": lambda: REPORT,
    "a recipe": of_recipe,
    "a range": lambda: RateRange("tiny", rate=3e-3, quickest=3e-3, diverges=5e-3),
}


@pytest.mark.parametrize("facts", HEALTHY.values(), ids=HEALTHY)
def test_healthy_ones_have_no_finding(facts):
    assert findings_in([facts()]) == []


def test_floor_names_chance_too():
    (found,) = findings_in([of_run(held_out=9.2)])
    assert found.severity == "error"
    assert "2.230 above the unigram floor, and above chance, 9.01" in found.seen


def test_advice_on_a_plateau_leaves_out_what_the_run_had():
    recipe = Recipe.load("fast_tiny").resolved()
    (found,) = findings_in([of_run(FLAT, recipe=recipe)])
    assert found.fix == "effpt pretrain out/recipe.yaml --training.budget 240.0seconds --training.output_dir out-2"
