import pytest
import yaml

from hf_effpt.comparison.arms import (
    Arm,
    check_comparable,
    common_budget,
    file_name,
    load_arms,
    swept,
    with_free_methods,
)
from hf_effpt.comparison.run_grid import claim, grid
from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError

BASE = {
    "model": {"size": "tiny"},
    "data": {"dataset": "corpus/"},
    "training": {"output_dir": "out", "budget": "8steps"},
}


def arm(name, **changes):
    return Arm(
        name, {section: {**BASE.get(section, {}), **changes.get(section, {})} for section in {**BASE, **changes}}
    )


def recipes(*arms):
    return {each.name: each.recipe("8steps", 0, "out") for each in arms}


def check(*arms, different_data=False):
    check_comparable(arms, recipes(*arms), different_data)


def test_arms_are_called_by_their_files(tmp_path):
    for name in ("plain", "dropped"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(BASE))
    arms = load_arms(
        [tmp_path / "plain.yaml", tmp_path / "dropped.yaml", "tiny"], ["--training.learning_rate", "1e-4"]
    )
    assert [each.name for each in arms] == ["plain", "dropped", "tiny"]
    assert all(each.recipe("8steps", 0, "x").training.learning_rate == 1e-4 for each in arms)


@pytest.mark.parametrize(("one", "other"), [("tiny", "tiny"), ("drop 0.1", "drop-0.1"), ("Drop", "drop")])
def test_two_arms_never_share_a_folder(one, other):
    with pytest.raises(EffptError, match=f"Two arms are called '{one}' and '{other}'"):
        load_arms([{"name": one, **BASE}, {"name": other, **BASE}])


@pytest.mark.parametrize("name", ["..", ".", "-"])
def test_a_name_that_is_no_folder_is_refused(name):
    with pytest.raises(EffptError, match="needs a letter"):
        load_arms([{"name": name, **BASE}])


@pytest.mark.parametrize("flag", ["--training.seed", "--training.eval_steps=5", "--training.charge_methods"])
def test_what_a_comparison_sets_itself_is_refused_as_a_flag(flag):
    with pytest.raises(EffptError, match="a comparison sets"):
        load_arms(["tiny"], [flag, "3"])


def test_a_sweep_makes_an_arm_of_each_value():
    arms = swept(load_arms([{"name": "a", **BASE}]), ["training.learning_rate=3e-4, 1e-3", "model.dropout=0,0.1"])
    assert [each.name for each in arms][:2] == ["a learning_rate=3e-4 dropout=0", "a learning_rate=3e-4 dropout=0.1"]
    found = [each.recipe("8steps", 0, "x") for each in arms]
    made = [(recipe.training.learning_rate, recipe.model.dropout) for recipe in found]
    assert made == [(3e-4, 0.0), (3e-4, 0.1), (1e-3, 0.0), (1e-3, 0.1)]


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ("learning_rate=1e-3,1e-4", "must be a setting"),
        ("training.learning_rate=1e-3", "two values or more"),
        ("training.learning_rate=1e-3,1e-3", "each once"),
        ("training.learning_rate=1e-3,0.001", "each once"),
        ("training.average={kind: lawa, k: 5}", "two values or more"),
        ("training.average=[a, b],[a,b]", "each once"),
        ("training.seed=1,2", "by --seeds"),
        ("training.eval-steps=1,2", "a comparison sets"),
        ("data.dataset=a/b,a-b", "'a dataset=a/b' and 'a dataset=a-b', whose runs would share a folder"),
    ],
)
def test_what_is_no_sweep(sweep, says):
    with pytest.raises(EffptError, match=says):
        swept(load_arms([{"name": "a", **BASE}]), [sweep])


def test_values_of_a_sweep_may_be_lists_and_mappings():
    averages = ["null", "{kind: lawa, k: 5, every: 0.02}", "{kind: ema, span: 0.1}"]
    sweeps = [f"training.average={', '.join(averages)}", "model.layer_types=[full_attention, sliding_attention],null"]
    arms = swept(load_arms([{"name": "a", **BASE}]), sweeps)
    assert len(arms) == 6
    assert arms[2].name == "a average={kind: lawa, k: 5, every: 0.02} layer_types=[full_attention, sliding_attention]"
    assert arms[2].sections["training"]["average"] == {"kind": "lawa", "k": 5, "every": 0.02}
    assert arms[2].sections["model"]["layer_types"] == ["full_attention", "sliding_attention"]
    assert arms[1].sections["training"]["average"] is None


def test_names_of_a_sweep_tell_settings_apart_and_are_folders():
    base = load_arms([{"name": "a", **BASE}])
    arms = swept(base, ["methods.layerdrop.after=0.1,0.2", "methods.selection.after=0.1,0.2"])
    assert arms[1].name == "a methods.layerdrop.after=0.1 methods.selection.after=0.2"
    with pytest.raises(EffptError, match=r"names `training.weight_decay` twice"):
        swept(base, ["training.weight_decay=0,1", "--training.weight-decay=2,3"])
    one, other = (file_name(each.name) for each in swept(base, [f"model.x=[{'1, ' * 90}1],[{'1, ' * 90}2]"]))
    assert one != other
    assert max(len(one), len(other)) < 100


def test_a_data_seed_would_break_the_pairs():
    with pytest.raises(EffptError, match="data_seed: 7"):
        check(arm("plain"), arm("other", training={"data_seed": 7}))


def test_a_recipe_cannot_free_its_methods_by_itself():
    sneaky = arm("sneaky", training={"charge_methods": False})
    assert sneaky.recipe("8steps", 0, "out").training.charge_methods


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"dataset": "other/"}, "dataset"),
        ({"tokenizer": "tok/"}, "tokenizer"),
        ({"vocab_size": 4096}, "vocab_size"),
        ({"sequence_length": 64}, "sequence_length"),
        ({"validation": "held/"}, "validation"),
    ],
)
def test_arms_with_other_data_are_refused_unless_told_otherwise(data, key):
    with pytest.raises(EffptError, match=rf"`plain` and `other` differ in `data.{key}`.*--different_data"):
        check(arm("plain"), arm("other", data=data))
    check(arm("plain"), arm("other", data=data), different_data=True)


def test_arms_may_differ_in_masking_and_all_else():
    check(arm("plain"), arm("other", data={"mlm_probability": 0.3}, model={"num_hidden_layers": 3}))


@pytest.mark.parametrize("schedule", ["constant", "constant_with_warmup"])
def test_a_learning_rate_that_never_decays_is_refused(schedule):
    with pytest.raises(EffptError, match=r"Arm `hot`.*fully decayed"):
        check(arm("plain"), arm("hot", training={"lr_scheduler_type": schedule}))


def test_a_budget_shorter_than_the_warm_up_is_refused_with_the_arms_name(tmp_path):
    arms = [arm("plain"), arm("slow", training={"warmup_steps": 5})]
    grid(arms, Clock.parse("8steps"), [0], [1.0], tmp_path)
    with pytest.raises(EffptError, match=r"Arm `slow` at 4steps: A warm-up of 5"):  # half the budget is too short
        grid(arms, Clock.parse("8steps"), [0], [0.5, 1.0], tmp_path)


def test_one_budget_for_all():
    assert common_budget([arm("a"), arm("b")], None).budget == 8
    assert common_budget([arm("a"), arm("b")], "2min").unit == "seconds"
    minute = [arm("a", training={"budget": "60s"}), arm("b", training={"budget": "1min"})]
    assert common_budget(minute, None).budget == 60
    with pytest.raises(EffptError, match=r"same budget.*9steps.*--budget"):
        common_budget([arm("a"), arm("b", training={"budget": "9steps"})], None)


def test_arms_with_methods_run_once_more_for_free():
    arms = with_free_methods([arm("plain"), arm("dropped", methods={"layerdrop": {"p": 0.2}})], "seconds")
    assert [each.name for each in arms] == ["plain", "dropped", "dropped (methods free)"]
    charged = [each.recipe("8steps", 0, "x").training.charge_methods for each in arms]
    assert charged == [True, True, False]


def test_of_a_budget_in_flops_those_arms_are_freed_whose_methods_pick_rows(picking):
    picks = arm("picks", methods={"layerdrop": {"p": 0.2}, "picking": {}})
    arms = with_free_methods([arm("plain"), arm("dropped", methods={"layerdrop": {"p": 0.2}}), picks], "flops")
    assert [each.name for each in arms] == ["plain", "dropped", "picks", "picks (methods free)"]
    assert [each.free for each in arms] == [False, False, False, True]
    freed = with_free_methods([arm("plain"), picks], "seconds")
    assert [each.name for each in freed] == ["plain", "picks", "picks (methods free)"]


def test_where_methods_cost_nothing_on_the_clock_none_is_freed(picking):
    dropped, picks = arm("dropped", methods={"layerdrop": {"p": 0.2}}), arm("picks", methods={"picking": {}})
    for unit in ("steps", "tokens"):
        with pytest.raises(EffptError, match=rf"--free.*the budget is {unit}.*give one in seconds"):
            with_free_methods([dropped, picks], unit)
    with pytest.raises(EffptError, match=r"the budget is flops.*pick rows.*no arm has one; give one in seconds"):
        with_free_methods([arm("plain"), dropped], "flops")


def test_arms_take_turns_and_each_seed_begins_with_another(tmp_path):
    runs = grid([arm("a"), arm("b")], Clock.parse("10steps"), [0, 1], [1.0, 0.5], tmp_path)
    assert [(run.arm, run.seed, run.fraction) for run in runs] == [
        ("a", 0, 0.5), ("b", 0, 0.5), ("a", 0, 1.0), ("b", 0, 1.0),
        ("b", 1, 0.5), ("a", 1, 0.5), ("b", 1, 1.0), ("a", 1, 1.0),
    ]  # fmt: skip
    assert [run.recipe.training.budget for run in runs[:4]] == ["5steps", "5steps", "10steps", "10steps"]
    assert {run.recipe.training.seed for run in runs[:4]} == {0}
    assert len({run.folder for run in runs}) == len(runs)


def test_a_comparison_may_grow_but_not_change(tmp_path):
    def plan(arms, seeds=(0,), budget="8steps", fractions=(1.0,)):
        clock = Clock.parse(budget)
        claim(tmp_path, grid(arms, clock, seeds, fractions, tmp_path), clock)

    plan([arm("a")])
    plan([arm("a"), arm("b")], seeds=(0, 1), fractions=(0.5, 1.0))
    plan([arm("a")])
    with pytest.raises(EffptError, match="holds a comparison at 8steps, not 9steps"):
        plan([arm("a")], budget="9steps")
    plan([arm("a"), arm("b", model={"size": "mini"})])  # nothing of `b` has been run yet
    made = tmp_path / "runs" / "b" / "seed-0" / "budget-1"
    made.mkdir(parents=True)
    (made / "run.json").write_text("{}")
    with pytest.raises(EffptError, match=r"arm `b` with another recipe \(model.size changed\)"):
        plan([arm("a"), arm("b")])


def test_seeds_that_are_added_later_are_remembered(tmp_path):
    def plan(seeds):
        clock = Clock.parse("8steps")
        return claim(tmp_path, grid([arm("a")], clock, seeds, [1.0], tmp_path), clock)["seeds"]

    assert plan([0, 1, 2]) == 3
    assert plan([0, 1, 2, 3, 4]) == 3


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    clock = Clock.parse("8steps")
    with pytest.raises(EffptError, match="holds no comparison"):
        claim(tmp_path, grid([arm("a")], clock, [0], [1.0], tmp_path), clock)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_arms_may_differ_in_what_they_learn():
    check(arm("plain"), arm("electra", model={"objective": "electra"}), arm("chooser", model={"objective": "mcbert"}))


def test_the_first_primary_measure_is_remembered(tmp_path):
    clock = Clock.parse("8steps")
    runs = grid([arm("a")], clock, [0], [1.0], tmp_path)
    assert claim(tmp_path, runs, clock, "cola/mcc@default")["primary"] == "cola/mcc@default"
    assert claim(tmp_path, runs, clock)["primary"] == "cola/mcc@default"
