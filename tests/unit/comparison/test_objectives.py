"""Arms of several objectives: what is compared of them, and what never is."""

import random

import pytest

from hf_effpt.comparison.summary import summarized
from hf_effpt.core.clock import Clock
from tests.unit.comparison.records import BUDGET, at, entry

LOSSES = {"mlm": [5.7, 5.75, 5.81], "electra": [0.416, 0.4155, 0.4163], "mcbert": [0.74, 0.741, 0.745]}
FLOORS = {"mlm": 6.2, "electra": 0.4254, "mcbert": 0.77}


def evaluation(objective, **changes):
    found = {"objective": objective, "floor": FLOORS[objective], "unigram_floor": 6.2, **changes}
    return found if objective == "mlm" else {"generator_loss": 5.8, "replaced_rate": 0.1515, **found}


def runs(objective, losses=None, scores=None, **changes):
    """Three whole runs, with a score that differs from seed to seed."""
    return [
        entry(
            seed,
            loss,
            objective=objective,
            evaluation=evaluation(objective, **changes),
            scores={"cola/mcc@default": None if scores is None else scores[seed]} if scores else {},
        )
        for seed, loss in enumerate(losses or LOSSES[objective])
    ]


def summarize(arms, recipes=None, **settings):
    recipes = {name: {"methods": {}, "model": {}, **(recipes or {}).get(name, {})} for name in arms}
    report = summarized(arms, recipes, Clock("seconds", BUDGET), **settings)
    return report, {arm["name"]: arm for arm in report["arms"]}


def test_losses_of_other_objectives_are_shown_and_never_compared():
    shorter = at({0.5: [0.42, 0.421, 0.42]}, objective="electra", evaluation=evaluation("electra"))
    _, arms = summarize({"mlm": runs("mlm"), "electra": [*runs("electra"), *shorter]})
    electra = arms["electra"]
    assert electra["verdict"]["label"] == "another objective"
    assert electra["difference"] is None
    assert electra["summary"]["speed_up"] is electra["summary"]["budget_to_baseline_loss"] is None
    assert electra["summary"]["speed_up_note"] == "not given: another objective"
    assert electra["summary"]["final_loss"]["mean"] == pytest.approx(0.41593, abs=1e-5)
    assert electra["summary"]["floor"]["mean"] == pytest.approx(0.4254)
    assert electra["summary"]["margin"]["mean"] == pytest.approx(0.00947, abs=1e-5)
    assert electra["summary"]["generator_loss"]["mean"] == pytest.approx(5.8)
    assert (arms["mlm"]["loss_of"], electra["loss_of"]) == ("mlm, per masked token", "electra, per token")
    assert arms["mlm"]["summary"]["generator_loss"] is None


def test_scores_of_all_objectives_are_compared():
    _, arms = summarize(
        {"mlm": runs("mlm", scores=[0.10, 0.12, 0.11]), "electra": runs("electra", scores=[0.21, 0.22, 0.24])}
    )
    gap = arms["electra"]["score_differences"]["cola/mcc@default"]
    assert gap["mean"] == pytest.approx(0.11333, abs=1e-5)
    assert gap["low"] < gap["mean"] < gap["high"]
    assert gap["p_holm"] is None


def test_a_score_as_the_primary_measure_judges_arms_of_all_objectives():
    arms = {
        "mlm": runs("mlm", scores=[0.10, 0.12, 0.11]),
        "electra": runs("electra", scores=[0.21, 0.22, 0.24]),
        "mcbert": runs("mcbert", scores=[0.02, 0.03, 0.01]),
        "plain": runs("mlm", [5.9, 5.955, 6.0], scores=[0.11, 0.11, 0.12]),
    }
    report, found = summarize(arms, primary="cola/mcc@default")
    assert report["primary"] == "cola/mcc@default"
    assert found["electra"]["verdict"]["label"] == "better"  # higher is
    assert "its cola/mcc@default is 0.1133 higher than the baseline's" in found["electra"]["verdict"]["text"]
    assert found["mcbert"]["verdict"]["label"] == "worse"
    assert found["plain"]["verdict"]["label"] == "no difference shown"
    assert "But its loss is higher by 0.198" in found["plain"]["verdict"]["text"]  # the loss is told, and not judged
    assert found["plain"]["difference"]["p_holm"] is None
    for name in ("electra", "mcbert", "plain"):
        gap = found[name]["score_differences"]["cola/mcc@default"]
        assert gap["p_holm"] >= gap["p"]
    alone, _ = summarize({name: arms[name] for name in ("mlm", "electra")}, primary="cola/mcc@default")
    first = alone["arms"][1]["score_differences"]["cola/mcc@default"]
    assert found["electra"]["score_differences"]["cola/mcc@default"]["p_holm"] > first["p_holm"]  # three arms, not one


def test_a_primary_score_that_a_run_lacks_gives_no_verdict():
    scores = {"mlm": [0.10, 0.12, 0.11, 0.1], "electra": [0.21, 0.22, 0.24, 0.2]}
    losses = {name: [*values, values[0]] for name, values in LOSSES.items()}
    for lacking, where in (("mlm", "for seed 1 of the baseline"), ("electra", "for seed 1.")):
        given = {
            name: [None if name == lacking and i == 1 else v for i, v in enumerate(of)] for name, of in scores.items()
        }
        arms = {name: runs(name, losses[name], given[name]) for name in scores}
        _, found = summarize(arms, primary="cola/mcc@default")
        assert found["electra"]["verdict"]["label"] == "no verdict"
        assert where in found["electra"]["verdict"]["text"]


@pytest.mark.parametrize(
    ("objective", "losses", "void"),
    [
        ("electra", [0.4164, 0.4165, 0.4166], None),  # what a void masked-language model would be far from
        ("electra", [0.4234, 0.4235, 0.4236], "only 0.0019 nats below the prior entropy (0.005 below it are needed)"),
        ("electra", [0.4264, 0.4265, 0.4266], "0.0011 nats above the prior entropy"),
        ("mlm", [6.0, 6.0, 6.0], "only 0.200 nats below the unigram floor (0.25 below it are needed)"),
        ("mlm", [5.9, 5.9, 5.9], None),
    ],
)
def test_a_baseline_has_learned_too_little_by_the_measure_of_its_own_objective(objective, losses, void):
    report, _ = summarize({"base": runs(objective, losses)})
    assert report["void"] is None if void is None else void in report["void"]


def test_a_discriminator_of_a_generator_that_has_learned_nothing_has_not_either():
    """Such a generator's tokens are rare ones, by which the loss gets below its floor at once."""
    report, _ = summarize({"base": runs("electra", [0.40, 0.401, 0.402], generator_loss=6.7)})
    assert "ends with a generator 0.500 nats above the unigram floor" in report["void"]


def test_an_arm_of_another_objective_that_has_learned_nothing_is_noted():
    report, _ = summarize({"mlm": runs("mlm"), "electra": runs("electra", [0.4253, 0.4252, 0.4254])})
    assert any("electra: it ends only 0.0001 nats below the prior entropy" in note for note in report["notes"])
    learned, _ = summarize({"mlm": runs("mlm"), "electra": runs("electra")})
    assert not any("it ends" in note for note in learned["notes"])


def test_equal_objectives_with_unequal_generators_are_compared_with_a_caveat():
    equal, wide = runs("electra"), runs("electra", [0.412, 0.4117, 0.4121], replaced_rate=0.1490, floor=0.4212)
    report, arms = summarize({"base": runs("electra"), "equal": equal, "wide": wide})
    assert arms["wide"]["verdict"]["label"] == "better"
    (note,) = report["notes"]
    assert note.startswith("wide: its generator replaces 14.90% of the tokens judged and the baseline's 15.15%")


def test_a_choice_among_another_number_of_candidates_is_another_loss():
    recipes = {"more": {"model": {"candidates": 20}}, "same": {"model": {"candidates": 10}}}
    given = {"base": runs("mcbert"), "more": runs("mcbert"), "same": runs("mcbert", [0.73, 0.732, 0.737])}
    _, arms = summarize(given, recipes)
    assert arms["more"]["verdict"]["label"] == "another objective"
    assert arms["same"]["verdict"]["label"] == "better"  # 10 is the default
    _, arms = summarize({"base": runs("mcbert"), "chosen": runs("mcbert", detection_loss=0.42)})
    assert arms["chosen"]["loss_of"].endswith("per masked token")
    assert not arms["chosen"]["comparable"]


def test_a_run_that_never_began_has_the_objective_of_its_recipe():
    missing = [entry(0, None, state="missing", objective="electra", evaluation={})]
    _, arms = summarize({"mlm": runs("mlm"), "electra": missing})
    assert arms["electra"]["loss_of"] == "electra, per token"
    assert arms["electra"]["summary"]["margin"] is None


def test_a_measure_that_was_chosen_after_a_look_is_said():
    generator = random.Random(0)
    arms = {name: runs(name, scores=[generator.random() for _ in range(3)]) for name in ("mlm", "electra")}
    for before, said in (("held_out_loss", True), ("cola/mcc@default", False)):
        report, _ = summarize(arms, primary="cola/mcc@default", planned={"seeds": 3, "primary": before})
        assert any("began with held_out_loss" in note for note in report["notes"]) == said
