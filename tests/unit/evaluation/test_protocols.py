import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.evaluation.protocols import PROTOCOLS, Settings, find_protocol
from hf_effpt.evaluation.tasks import KNOWN

PUBLISHED = [name for name in PROTOCOLS if name != "default"]


def values(name, value=0.5):
    return {(task, figure): value for task, figures in PROTOCOLS[name].reported.items() for figure in figures}


def result(seed, notes=(), **scores):
    return {
        "seed": seed,
        "notes": list(notes),
        "scores": {metric: {"value": value, "note": note} for metric, (value, note) in scores.items()},
    }


@pytest.mark.parametrize(("name", "tasks", "figures"), [
    ("glue9_cramming", 8, 9), ("glue8_mosaic", 8, 8), ("glue8_electra_small", 8, 8), ("glue8_electra_base", 8, 8),
    ("glue8_electra_large", 8, 8),
])  # fmt: skip
def test_averages_have_the_published_number_of_figures(name, tasks, figures):
    protocol = PROTOCOLS[name]
    assert len(protocol.reported) == tasks
    assert len(values(name)) == figures
    assert "wnli" not in protocol.reported
    for task in protocol.reported:
        given = {f"{metric}{part}" for metric in KNOWN[task].metrics for part in ("", "_mm")}
        assert {metric for figure in protocol.reported[task] for metric in figure.split("+")} <= given


def test_published_rows_average_to_the_published_numbers():
    rows = {("mnli", "accuracy"): 83.9, ("mnli", "accuracy_mm"): 84.1, ("qqp", "f1"): 87.3, ("qnli", "accuracy"): 89.5,
            ("sst2", "accuracy"): 92.2, ("cola", "mcc"): 44.5, ("stsb", "pearson"): 84.6, ("mrpc", "f1"): 87.5,
            ("rte", "accuracy"): 53.8}  # Crammed BERT (Geiping and Goldstein, 2022)  # fmt: skip
    value, note = PROTOCOLS["glue9_cramming"].average(rows)
    assert value == pytest.approx(78.6, abs=0.05)
    assert "9 figures" in note


def test_mosaic_decay_shrinks_by_as_much_a_step_as_theirs():
    theirs = {"mnli": 5e-6, "rte": 1e-5, "qqp": 3e-6, "cola": 5e-6, "mrpc": 8e-6, "qnli": 1e-6, "sst2": 3e-6}
    for task, decay in theirs.items():
        settings = PROTOCOLS["glue8_mosaic"].settings_of(task)
        assert settings.learning_rate * settings.weight_decay == pytest.approx(decay)
    assert PROTOCOLS["glue8_mosaic"].settings_of("mnli").weight_decay == pytest.approx(0.1)
    assert PROTOCOLS["glue8_mosaic"].settings_of("rte").weight_decay == pytest.approx(1.0)


def test_settings_are_the_published_ones():
    cramming = PROTOCOLS["glue9_cramming"].settings
    assert (cramming.learning_rate, cramming.epochs, cramming.batch_size) == (4e-5, 5, 16)
    assert (cramming.scheduler, cramming.warmup, cramming.max_length) == ("cosine", 0.1, 128)
    assert (cramming.betas, cramming.eps, cramming.weight_decay, cramming.max_grad_norm) == ((0.9, 0.98), 1e-6, 0, 0)
    mosaic = PROTOCOLS["glue8_mosaic"]
    theirs = {"mnli": (5e-5, 3, 48), "rte": (1e-5, 3, 16), "qqp": (3e-5, 5, 16), "cola": (5e-5, 10, 32),
              "mrpc": (8e-5, 10, 32), "qnli": (1e-5, 10, 16), "sst2": (3e-5, 3, 16),
              "stsb": (3e-5, 10, 32)}  # fmt: skip
    assert set(mosaic.reported) == set(mosaic.task_settings) == set(theirs)
    for task, expected in theirs.items():
        settings = mosaic.settings_of(task)
        assert (settings.learning_rate, settings.epochs, settings.batch_size) == expected
        assert (settings.max_length, settings.warmup, settings.scheduler) == (256, 0.06, "linear")
        assert (settings.betas, settings.eps, settings.max_grad_norm) == ((0.9, 0.98), 1e-6, 0)
    for size, rate, layer_decay in (("small", 3e-4, 0.8), ("base", 1e-4, 0.8), ("large", 5e-5, 0.9)):
        for settings in map(PROTOCOLS[f"glue8_electra_{size}"].settings_of, ("cola", "rte")):
            assert (settings.learning_rate, settings.layer_decay) == (rate, layer_decay)
            assert (settings.batch_size, settings.max_length, settings.scheduler) == (32, 128, "linear")
            assert (settings.eps, settings.betas, settings.weight_decay) == (1e-6, (0.9, 0.999), 0)
            assert (settings.warmup, settings.max_grad_norm) == (0.1, 1.0)
    for name in PUBLISHED:
        of = PROTOCOLS[name]
        assert {of.settings_of(task).dropout for task in of.reported} == {0.1}
    assert PROTOCOLS["default"].settings.dropout is None


@pytest.mark.parametrize(
    ("hidden", "size"),
    [(128, "small"), (256, "small"), (512, "small"), (768, "base"), (1024, "large"), (2048, "large")],
)
def test_electra_protocol_goes_by_the_size_of_the_model(hidden, size):
    found = find_protocol("glue8_electra", hidden)
    assert found is find_protocol(f"glue8_electra_{size}", 8)
    assert found.score_name("cola", "mcc") == f"cola/mcc@glue8_electra_{size}"


def test_electra_protocol_without_a_size_names_the_three():
    with pytest.raises(EffptError, match="name one of glue8_electra_small, glue8_electra_base, glue8_electra_large"):
        find_protocol("glue8_electra")


def test_settings_differ_by_task_where_the_source_has_them_so():
    electra = PROTOCOLS["glue8_electra_base"]
    assert [electra.settings_of(task).epochs for task in ("rte", "stsb", "cola")] == [10, 10, 3]
    assert [PROTOCOLS["glue8_mosaic"].seeds_of(task) for task in ("rte", "cola", "sst2", "mnli")] == [5, 4, 3, 1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_incomplete_average_is_none_and_names_what_is_missing(name):
    protocol = PROTOCOLS[name]
    assert protocol.average(values(name))[0] == pytest.approx(0.5)
    for task, figure in values(name):
        partial = {key: 0.5 for key in values(name) if key != (task, figure)}
        value, note = protocol.average(partial)
        assert value is None
        assert f"({task}/{figure})" in note
        value, note = protocol.average({**partial, (task, figure): None})
        assert (value, note) == (None, f"no average: undefined are {task}/{figure}")


def test_part_of_a_task_does_not_stand_in_for_it():
    given = {(task if task != "mnli" else "mnli_subset", figure): 0.5 for task, figure in values("glue8_electra_base")}
    value, note = PROTOCOLS["glue8_electra_base"].average(given)
    assert value is None
    assert "mnli_subset cannot stand in" in note


def test_wnli_is_in_no_average():
    default = PROTOCOLS["default"]
    assert default.average({("rte", "accuracy"): 0.6, ("wnli", "accuracy"): 0.0})[0] == 0.6
    assert default.average({("wnli", "accuracy"): 0.5})[0] is None
    for name in PUBLISHED:
        assert PROTOCOLS[name].average({**values(name), ("wnli", "accuracy"): 0.0})[0] == pytest.approx(0.5)


def test_default_counts_each_task_once():
    given = {("stsb", "pearson"): 0.9, ("stsb", "spearman"): 0.7, ("cola", "mcc"): 0.2}
    value, note = PROTOCOLS["default"].average(given)
    assert value == pytest.approx((0.8 + 0.2) / 2)
    assert "stsb, cola" in note
    assert PROTOCOLS["default"].average({**given, ("cola", "mcc"): None})[0] is None


def test_statistic_over_seeds():
    results = [result(seed, mcc=(value, None)) for seed, value in enumerate([0.1, 0.2, 0.9])]
    assert PROTOCOLS["glue9_cramming"].over_seeds("mcc", results, [])["value"] == pytest.approx(0.2)
    mean = PROTOCOLS["default"].over_seeds("mcc", results, [])
    assert mean["value"] == pytest.approx(0.4)
    assert mean["standard_deviation"] == pytest.approx(0.43589, abs=1e-5)
    assert PROTOCOLS["default"].over_seeds("mcc", results[:1], [])["standard_deviation"] is None


def test_a_seed_without_a_score_leaves_the_task_without():
    results = [result(0, f1=(0.5, None)), result(1, f1=(None, "diverged")), result(2, f1=(0.7, None))]
    score = PROTOCOLS["default"].over_seeds("f1", results, ["a note"])
    assert (score["value"], score["standard_deviation"]) == (None, None)
    assert score["notes"] == ["a note", "undefined for 1 of 3 seeds: diverged"]


def test_a_figure_of_two_metrics_is_their_mean_and_keeps_notes():
    score = PROTOCOLS["glue8_mosaic"].over_seeds(
        "accuracy+f1", [result(3, ["cut"], accuracy=(0.6, None), f1=(0.8, "odd"))], []
    )
    assert score["value"] == pytest.approx(0.7)
    assert score["notes"] == ["cut", "seed 3: odd"]
    lacking = PROTOCOLS["glue8_mosaic"].over_seeds("accuracy+accuracy_mm", [result(0, accuracy=(0.6, None))], [])
    assert lacking["value"] is None
    assert "no validation examples" in lacking["notes"][0]


def test_names_and_mistakes():
    assert find_protocol("glue9_cramming").score_name("cola", "mcc") == "cola/mcc@glue9_cramming"
    with pytest.raises(EffptError, match="did you mean `glue9_cramming`"):
        find_protocol("glue9_craming")
    with pytest.raises(EffptError, match="no settings for the task `wnli`"):
        PROTOCOLS["glue8_mosaic"].settings_of("wnli")
    for seeds in (0, [], [1, 1]):
        with pytest.raises(EffptError, match="`seeds`"):
            PROTOCOLS["default"].choose_seeds("cola", seeds)
    assert PROTOCOLS["default"].choose_seeds("cola", None) == [0, 1, 2]
    assert PROTOCOLS["default"].choose_seeds("cola", [7]) == [7]
    for wrong in ({"epochs": 0}, {"learning_rate": 0}, {"warmup": 1}, {"layer_decay": 0}, {"dropout": 1.0},
                  {"max_length": 2}, {"batch_size": 8, "gradient_accumulation_steps": 3}):  # fmt: skip
        with pytest.raises(EffptError, match=next(iter(wrong))):
            Settings(**wrong)
