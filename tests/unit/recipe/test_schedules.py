"""Lengths of rows and rotary bases that follow the clock."""

import pytest

from hf_effpt.core.clock import scheduled
from hf_effpt.core.errors import EffptError
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.phases import phases_in

MODERN = {"backbone": "modernbert", "size": "tiny", "max_position_embeddings": 1024}


def recipe(lengths, model=None, overrides=(), **training):
    training = {"output_dir": "out", "budget": "90s", **training}
    data = {"dataset": "corpus/", "sequence_length": lengths}
    return Recipe.load({"model": model or MODERN, "data": data, "training": training}, overrides)


def test_a_length_is_one_from_the_beginning():
    for lengths in (128, "128", {0: 128}, {"0.0": "128"}):
        found = recipe(lengths)
        assert found.data.lengths == {0.0: 128}
        assert found.resolved()["data"]["sequence_length"] == 128


@pytest.mark.parametrize("lengths", [{0: 128, 0.9: 1024}, {"0": "128", "0.9": 1024.0}])
def test_a_schedule_survives_a_file(tmp_path, lengths):
    model = {**MODERN, "rotary_base": {0: 1e4, 0.9: "16e4"}, "local_attention": 256}
    found = recipe(lengths, model)
    assert found.data.lengths == {0.0: 128, 0.9: 1024}
    assert found.model.rotary_bases == {0.0: 10_000.0, 0.9: 160_000.0}
    assert found.model.config().rope_parameters["full_attention"]["rope_theta"] == 10_000.0
    found.save(tmp_path / "recipe.yaml")
    again = Recipe.load(tmp_path / "recipe.yaml")
    assert again == found == Recipe.load(found.resolved())
    assert again.resolved() == found.resolved()


def test_a_file_has_a_schedule_as_it_is_written(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "data: {dataset: corpus/, sequence_length: {0: 128, 0.9: 512}}\ntraining: {}\n"
    )
    assert Recipe.load(tmp_path / "recipe.yaml").data.lengths == {0.0: 128, 0.9: 512}
    (tmp_path / "recipe.yaml").write_text(
        "data: {dataset: corpus/, sequence_length: {0: 128, 0: 512}}\ntraining: {}\n"
    )
    with pytest.raises(EffptError, match="the key 0 is given twice"):
        Recipe.load(tmp_path / "recipe.yaml")


def test_a_flag_makes_a_schedule():
    found = recipe(128, overrides=["--data.sequence_length", "{0: 128, 0.5: 256, 0.9: 1024}"])
    assert list(found.data.lengths.values()) == [128, 256, 1024]
    assert recipe({0: 128, 0.9: 1024}, overrides=["--data.sequence_length", "64"]).data.lengths == {0.0: 64}


def test_a_rotary_base_of_the_whole_run_is_that_of_its_beginning():
    assert recipe({0: 128, 0.9: 1024}, {**MODERN, "rotary_base": 500}).model.rotary_bases == {0.0: 500.0}
    assert recipe({0: 128, 0.9: 1024}).model.rotary_bases == {}


@pytest.mark.parametrize("fractions", [[], [0.1], [0, 1], [0, 0.5, 0.4], ["a"], [None], [0, "nan"]])
def test_a_schedule_has_rising_fractions_from_0_on(fractions):
    with pytest.raises(EffptError, match=r"`data\.x` is .* by rising fractions of the clock, from 0 to below 1"):
        scheduled(dict.fromkeys(fractions, 1), "data.x")


REFUSED = [
    ({0: 128, 0.9: 128}, {}, r"`data.sequence_length` is .* must be longer in each phase than before"),
    ({0: 1024, 0.9: 128}, {}, "must be longer in each phase than before"),
    ({0: 4, 0.9: 128}, {}, "must be at least 8"),
    ({0.5: 128}, {}, "has values by rising fractions"),
    ({0: 128, 0.9: 2048}, {}, "is 2048, but must be at most 1024, the positions of the model"),
    ({0: 128, 0.9: 128.5}, {}, "must be whole numbers"),
    ({0: 128, 0.9: "long"}, {}, "must be whole numbers"),
    ({0: 128, 0.9: True}, {}, "must be whole numbers"),
    ([128, 1024], {}, "must be a single value"),
    (
        {0: 128, 0.9: 1024},
        {"rotary_base": {0: 1e4, 0.8: 2e4}},
        "fractions of the clock at which `data.sequence_length`",
    ),
    (128, {"rotary_base": {0: 1e4, 0.9: 2e4}}, "fractions of the clock at which `data.sequence_length` changes"),
    ({0: 128, 0.9: 1024}, {"rotary_base": {0: 1e4, 0.9: -1}}, "`model.rotary_base` is -1.0, but must be above 0"),
    ({0: 128, 0.9: 1024}, {"rotary_base": {0: 1e4, 0.9: "high"}}, "`model.rotary_base` is .* must be numbers"),
    ({0: 128, 0.9: 256}, {"local_attention": 512}, "`model.local_attention` is 512, but must be at most .* 256"),
    (
        {0: 128, 0.9: 1024},
        {"backbone": "bert", "rotary_base": {0: 1e4, 0.9: 2e4}},
        "`model.rotary_base` is .* has an effect only with `backbone` `modernbert`",
    ),
]


@pytest.mark.parametrize(("lengths", "model", "message"), REFUSED)
def test_impossible_schedules_are_refused(lengths, model, message):
    with pytest.raises(EffptError, match=message):
        recipe(lengths, {**MODERN, **model})


def test_a_batch_that_has_not_as_many_tokens_in_longer_rows_is_refused():
    with pytest.raises(EffptError, match="_train_batch_size` is 12, but must be a multiple of 8, for as many"):
        recipe({0: 128, 0.9: 1024}, per_device_train_batch_size=12)
    recipe({0: 96, 0.9: 256}, per_device_train_batch_size=8)


def with_rates(rates, **model):
    data = {"dataset": "corpus/", "mlm_probability": rates}
    return Recipe.load({"model": model, "data": data, "training": {"output_dir": "out", "budget": "90s"}})


def test_the_share_of_masked_tokens_follows_the_clock():
    assert with_rates(0.2).data.rates == {0.0: 0.2}
    assert with_rates({0: 0.2}).resolved()["data"]["mlm_probability"] == 0.2
    found = with_rates({0: 0.3, "0.5": "0.15"})
    assert found.data.rates == {0.0: 0.3, 0.5: 0.15}
    assert Recipe.load(found.resolved()) == found


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({0: 0.3, 0.5: 1.5}, "`data.mlm_probability` is .* must be between 0 and 1"),
        ({0: 0.3, 0.5: 0.3}, "must be another in each phase than before"),
        ({0.5: 0.3}, "has values by rising fractions"),
        ({0: "many"}, "must be numbers"),
        ([0.3], "a list has two numbers, the first and the last"),
        (["many", 0.15], "a list has two numbers, the first and the last"),
        ([0.4, 1.5], "must be between 0 and 1"),
    ],
)
def test_impossible_shares_are_refused(rates, message):
    with pytest.raises(EffptError, match=message):
        with_rates(rates)


def test_phases_are_where_the_length_or_the_share_changes():
    splits = {"train": "short", "train_256": "long"}
    found = phases_in(splits, {0.0: 128, 0.75: 256}, {0.75: 2e4}, {0.0: 0.3, 0.5: 0.15}, {0.0: "mlm"})
    told = [(one.since, one.rows, one.rotary_base, one.mlm_probability) for one in found]
    assert told == [(0.0, "short", None, 0.3), (0.5, "short", None, 0.15), (0.75, "long", 2e4, 0.15)]
    plain = phases_in(splits, {0.0: 128}, {}, {0.0: 0.3}, {0.0: "mlm"})[0]
    assert (plain.mlm_probability, plain.objective) == (None, None)  # the collator and the model have them
    found = phases_in(splits, {0.0: 128}, {}, {0.0: 0.3, 0.5: 0.15}, {0.0: "clm", 0.25: "mlm"})
    told = [(one.since, one.mlm_probability, one.objective) for one in found]
    assert told == [(0.0, 0.3, "clm"), (0.25, 0.3, "mlm"), (0.5, 0.15, "mlm")]


def test_the_share_of_masked_tokens_may_be_given_by_its_ends():
    rates = with_rates([0.4, 0.15]).data.rates
    assert list(rates) == [step / 10 for step in range(10)]
    assert list(rates.values())[:2] == [0.4, 0.372222]
    assert rates[0.9] == 0.15
    flags = ["--data.mlm_probability", "[0.4, 0.15]"]
    assert (
        recipe(128, overrides=flags).data.rates == rates == with_rates(with_rates([0.4, 0.15]).data.rates).data.rates
    )


def with_objective(objective, **model):
    data = {"dataset": "corpus/"}
    sections = {"model": {"objective": objective, **model}, "data": data, "training": {"output_dir": "out"}}
    return Recipe.load(sections)


def test_next_tokens_may_come_before_masked_ones(tmp_path):
    found = with_objective({0: "clm", "0.5": "mlm"})
    assert found.model.objectives == {0.0: "clm", 0.5: "mlm"}
    assert found.model.exported == "mlm"
    found.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == found
    assert with_objective({0: "mlm"}).resolved()["model"]["objective"] == "mlm"
    flags = ["--model.objective", "{0: clm, 0.25: mlm}"]
    assert recipe(128, overrides=flags).model.objectives == {0.0: "clm", 0.25: "mlm"}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            "clm",
            "`model.objective` is 'clm', but must be one of .* or a schedule that ends with `mlm`, such as {0: clm",
        ),
        ({0: "clm"}, "or a schedule that ends with `mlm`"),
        ({0: "mlm", 0.5: "clm"}, "or a schedule that ends with `mlm`"),
        ({0: "clm", 0.5: "electra"}, "or a schedule that ends with `mlm`"),
        ({0: "electra", 0.5: "mlm"}, "or a schedule that ends with `mlm`"),
        ({0: "next", 0.5: "mlm"}, "or a schedule that ends with `mlm`"),
        ({0: "clm", 0.2: "mlm", 0.5: "mlm"}, "must be another in each phase than before"),
        ({0.5: "mlm"}, "has values by rising fractions"),
        ({0: 1, 0.5: "mlm"}, "must be of names"),
    ],
)
def test_impossible_objectives_are_refused(objective, message):
    with pytest.raises(EffptError, match=message):
        with_objective(objective)


def test_what_does_not_go_with_next_tokens_is_refused_before_any_work():
    sections = {"model": {"objective": {0: "clm", 0.5: "mlm"}}, "data": {"dataset": "corpus/"}, "training": {}}
    for more, message in (
        ({"methods": {"tnf": {}}}, "`tnf` gives each token of a word the note of the whole word"),
        ({"training": {"branches": [0.5], "lr_scheduler_type": "warmup_stable_decay"}}, "The branch at 0.5"),
    ):
        with pytest.raises(EffptError, match=message):
            Recipe.load({**sections, **more})


def test_a_schedule_of_objectives_has_no_generator():
    with pytest.raises(
        EffptError, match=r"`model\.generator_size` is 0\.5, which has an effect only with `objective`"
    ):
        with_objective({0: "clm", 0.5: "mlm"}, generator_size=0.5)
