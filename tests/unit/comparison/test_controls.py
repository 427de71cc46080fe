"""An arm that picks rows is measured against rows at random, or no gain of it is given."""

import json

import pytest

from hf_effpt.comparison.markdown import markdown
from hf_effpt.comparison.report_tables import DASH
from hf_effpt.comparison.summary import summarized
from hf_effpt.core.clock import Clock
from tests.unit.comparison.records import BUDGET, at, entry, runs
from tests.unit.comparison.test_markdown import row

pytestmark = pytest.mark.usefixtures("picking")

BASE = {0.5: [6.6, 6.7, 6.8], 1.0: [6.0, 6.1, 6.2]}
GOOD = {0.5: [6.1, 6.2, 6.3], 1.0: [5.9, 6.01, 6.09]}
RANDOM = {0.5: [6.3, 6.4, 6.5], 1.0: [5.96, 6.05, 6.14]}
CONTROL = {"strategy": "random", "keep": 0.5}
MISSING = "no arm picks rows at random: add one with `picking: {strategy: random, keep: 0.5}`"


def summarize(settings=None, methods=None, model=None, **arms):
    """A report of arms whose settings of `picking` are given by name; the baseline has none."""
    recipes = {
        name: {"model": (model or {}).get(name, {}), "methods": {"picking": methods[name]} if name in methods else {}}
        for name in arms
    }
    report = summarized(arms, recipes, Clock("seconds", BUDGET), **(settings or {}))
    json.dumps(report, allow_nan=False)
    return report, {arm["name"]: arm for arm in report["arms"]}


def test_without_a_control_there_is_no_speed_up_and_the_reason_names_what_to_add():
    report, arms = summarize(methods={"good": {"strategy": "best"}}, base=at(BASE), good=at(GOOD))
    good = arms["good"]
    assert good["summary"]["speed_up"] is good["summary"]["budget_to_baseline_loss"] is None
    assert good["summary"]["speed_up_note"] == f"not given: {MISSING}"
    assert good["control"] == {"arm": None, "reason": MISSING}
    assert good["control_difference"] is None
    assert good["verdict"]["label"] == "better"  # the difference and the verdict are given all the same
    assert good["difference"]["mean"] == pytest.approx(-0.1)
    assert good["verdict"]["text"].endswith(f"No speed-up is given, since {MISSING}.")
    text = markdown(report)
    assert row(text, "Speed-up")[1] == f"{DASH} (not given: {MISSING})".replace("`", r"\`")
    assert row(text, "Paired difference against random rows, nats") == [
        f"{DASH} (the baseline)",
        f"{DASH} ({MISSING})".replace("`", r"\`"),
    ]


def test_with_a_control_the_speed_up_stands_and_the_difference_to_it_is_given():
    methods = {"good": {"strategy": "best"}, "random": CONTROL}
    report, arms = summarize(methods=methods, base=at(BASE), good=at(GOOD), random=at(RANDOM))
    good, random = arms["good"], arms["random"]
    assert good["control"] == {"arm": "random", "reason": None}
    assert good["control_difference"]["mean"] == pytest.approx(-0.05)
    assert good["control_difference"]["n"] == 3
    assert good["control_difference"]["p_holm"] is None
    assert good["summary"]["speed_up"]["value"] > 1
    assert (
        "Against random rows (`random`) its loss is 0.0500 nats lower (95 % interval -0.0" in good["verdict"]["text"]
    )
    assert "not corrected, 3 paired seeds)" in good["verdict"]["text"]
    assert random["control"] is random["control_difference"] is arms["base"]["control"] is None
    assert random["summary"]["speed_up"]["value"] > 1  # the control itself needs none
    cells = row(markdown(report), "Paired difference against random rows, nats")
    assert cells[1].startswith("\N{MINUS SIGN}0.0500 (")
    assert cells[1].endswith("n = 3; not corrected)")
    assert cells[2] == f"{DASH} (it needs no such control)"


def test_the_difference_to_the_control_is_none_of_holms_family():
    methods = {"good": {"strategy": "best"}, "random": CONTROL}
    _, arms = summarize(methods=methods, base=at(BASE), good=at(GOOD), random=at(RANDOM))
    _, plain = summarize(methods={"random": CONTROL}, base=at(BASE), good=at(GOOD), random=at(RANDOM))
    assert arms["good"]["difference"] == plain["good"]["difference"]
    assert arms["random"]["difference"] == plain["random"]["difference"]
    assert plain["good"]["control"] is None
    assert "random rows" not in plain["good"]["verdict"]["text"]


@pytest.mark.parametrize(
    ("own", "of_control"),
    [
        ({}, {"keep": 0.25}),
        ({"keep": 0.25}, {"keep": 0.5}),
        ({"start": 0.0}, {}),
        ({}, {"start": 0.0}),
        ({"start": 0.0, "end": 1.0}, {"start": 0.0, "end": 0.9}),
        ({"interrupt": 0}, {"interrupt": 2}),
        ({}, {"strategy": "best"}),
    ],
)
def test_a_control_keeps_as_many_rows_at_the_same_time(own, of_control):
    methods = {"good": {"strategy": "best", **own}, "random": CONTROL | of_control}
    _, arms = summarize(methods=methods, base=at(BASE), good=at(GOOD), random=at(RANDOM))
    assert arms["good"]["summary"]["speed_up"] is None
    assert "no arm picks rows at random" in arms["good"]["control"]["reason"]


@pytest.mark.parametrize(
    ("own", "of_control"),
    [
        ({}, {"strategy": "random"}),
        ({"start": 0.5, "interrupt": 2}, {"strategy": "random", "keep": 0.5}),
        ({"strategy": "early"}, {"strategy": "random", "keep": 0.75, "start": 0.0}),
    ],
)
def test_what_a_recipe_leaves_open_is_what_the_method_makes_of_it(own, of_control):
    methods = {"good": {"strategy": "best", **own}, "random": of_control}
    arms = {"base": at(BASE), "good": at(GOOD), "random": at(RANDOM)}
    assert summarize(methods=methods, **arms)[1]["good"]["control"]["arm"] == "random"


def test_where_strategies_settle_differently_the_reason_says_so():
    methods = {"good": {"strategy": "early"}, "random": {"strategy": "random"}}
    _, arms = summarize(methods=methods, base=at(BASE), good=at(GOOD), random=at(RANDOM))
    asked = "`picking: {strategy: random, keep: 0.75, start: 0.0}`"
    assert arms["good"]["control"]["reason"] == f"no arm picks rows at random: add one with {asked}"


def test_what_says_how_rows_are_judged_may_differ_and_the_reason_has_the_rest():
    when = {"start": 0.0, "end": 1.0, "interrupt": 0}
    methods: dict = {"good": {"strategy": "best", "keep": 0.25, "warmup": 50, **when}}
    arms = {"base": at(BASE), "good": at(GOOD), "random": at(RANDOM)}
    _, lacking = summarize(methods=methods, **arms)
    asked = "{strategy: random, keep: 0.25, start: 0.0, end: 1.0, interrupt: 0}"
    assert lacking["good"]["control"]["reason"].endswith(f"add one with `picking: {asked}`")
    methods["random"] = {"strategy": "random", "keep": 0.25, **when}
    assert summarize(methods=methods, **arms)[1]["good"]["control"]["arm"] == "random"


def test_a_control_has_the_same_recipe_otherwise():
    methods = {"good": {"strategy": "best"}, "random": CONTROL}
    arms = {"base": at(BASE), "good": at(GOOD), "random": at(RANDOM)}
    _, found = summarize(methods=methods, model={"random": {"num_hidden_layers": 2}}, **arms)
    assert "no arm picks rows at random" in found["good"]["control"]["reason"]
    both = {"good": {"num_hidden_layers": 2}, "random": {"num_hidden_layers": 2}}
    assert summarize(methods=methods, model=both, **arms)[1]["good"]["control"]["arm"] == "random"


def test_the_baseline_may_be_the_control():
    _, arms = summarize(methods={"random": CONTROL, "good": {"strategy": "best"}}, random=at(BASE), good=at(GOOD))
    assert arms["good"]["control"]["arm"] == "random"
    assert arms["good"]["control_difference"]["mean"] == arms["good"]["difference"]["mean"]


@pytest.mark.parametrize(
    ("of_control", "says"),
    [
        ([*at({1.0: RANDOM[1.0][:2]}), entry(2, None, state="failed")], "seed 2 has not finished"),
        (at({0.5: RANDOM[0.5]}), "seed 0, 1, 2 has not finished"),
        (at(RANDOM, final_learning_rate=9e-4), "of seed 0 in `random` had not decayed"),
        (at(RANDOM, data=["beef", 128, 999]), "other text or tokens than `random`"),
    ],
)
def test_a_control_counts_if_its_full_runs_can_be_compared_with(of_control, says):
    methods = {"good": {"strategy": "best"}, "random": CONTROL}
    _, arms = summarize(methods=methods, base=at(BASE), good=at(GOOD), random=of_control)
    good = arms["good"]
    assert says in good["control"]["reason"]
    assert says in good["summary"]["speed_up_note"]
    assert good["summary"]["speed_up"] is good["control_difference"] is None
    assert good["verdict"]["label"] == "better"


def test_of_two_controls_the_sound_one_counts():
    methods = {"good": {"strategy": "best"}, "broken": CONTROL, "random": CONTROL}
    broken = at(RANDOM, final_learning_rate=9e-4)
    _, arms = summarize(methods=methods, base=at(BASE), good=at(GOOD), broken=broken, random=at(RANDOM))
    assert arms["good"]["control"]["arm"] == "random"


def test_a_free_control_is_none_for_an_arm_that_pays():
    methods = {"good": {"strategy": "best"}, "free": CONTROL}
    _, arms = summarize({"free": ["free"]}, methods=methods, base=at(BASE), good=at(GOOD), free=at(RANDOM))
    assert "no arm picks rows at random" in arms["good"]["control"]["reason"]


def test_where_there_is_no_verdict_there_is_no_difference_to_the_control_either():
    methods = {"good": {"strategy": "best"}, "random": CONTROL}
    hot = at(GOOD, final_learning_rate=9e-4)
    report, arms = summarize(methods=methods, base=at(BASE), good=hot, random=at(RANDOM))
    assert arms["good"]["control_difference"] is None
    assert "random rows" not in arms["good"]["verdict"]["text"]
    cell = row(markdown(report), "Paired difference against random rows, nats")[1]
    assert cell == f"{DASH} (the learning rate of seed 0 had not decayed at the end of its budget)"


def test_two_seeds_give_no_difference_to_the_control():
    methods = {"good": {"strategy": "best"}, "random": CONTROL}
    arms = {name: at({b: losses[:2] for b, losses in of.items()})
            for name, of in (("base", BASE), ("good", GOOD), ("random", RANDOM))}  # fmt: skip
    report, found = summarize(methods=methods, **arms)
    assert found["good"]["control_difference"] is None
    cell = row(markdown(report), "Paired difference against random rows, nats")[1]
    assert cell == f"{DASH} (too few seeds with which both finished)"
    assert found["good"]["summary"]["speed_up"]["value"] > 1


def test_a_method_that_keeps_all_rows_needs_no_control():
    _, arms = summarize(methods={"all": {"strategy": "best", "keep": 1.0}}, base=at(BASE), all=at(GOOD))
    assert arms["all"]["control"] is None
    assert arms["all"]["summary"]["speed_up"]["value"] > 1


def test_a_verdict_on_a_score_names_the_score_against_the_control():
    def scored(losses, values):
        scores = [{"cola/mcc@default": value} for value in values]
        return [entry(seed, loss, scores=s) for seed, (loss, s) in enumerate(zip(losses, scores, strict=True))]

    methods = {"good": {"strategy": "best"}, "random": CONTROL}
    _, arms = summarize(
        {"primary": "cola/mcc@default"},
        methods=methods,
        base=scored(BASE[1.0], [0.10, 0.11, 0.12]),
        good=scored(GOOD[1.0], [0.20, 0.215, 0.22]),
        random=scored(RANDOM[1.0], [0.15, 0.16, 0.172]),
    )
    text = arms["good"]["verdict"]["text"]
    assert "Against random rows (`random`) its cola/mcc@default is 0.0510 higher" in text
    assert arms["good"]["control_difference"]["mean"] == pytest.approx(-0.05)  # that of the loss


def test_of_another_objective_the_control_is_still_one():
    evaluation = {"objective": "electra", "floor": 0.4254, "unigram_floor": 6.2, "generator_loss": 5.8}
    electra = {"objective": "electra", "evaluation": evaluation}
    _, arms = summarize(
        methods={"good": {"strategy": "best"}, "random": CONTROL},
        base=runs(BASE[1.0]),
        good=runs([0.411, 0.4112, 0.4113], **electra),
        random=runs([0.415, 0.4153, 0.4155], **electra),
    )
    assert arms["good"]["verdict"]["label"] == "another objective"
    assert arms["good"]["control_difference"]["mean"] == pytest.approx(-0.0041)
    assert "Against random rows (`random`) its loss is 0.0041 nats lower" in arms["good"]["verdict"]["text"]
