import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from hf_effpt.core.errors import EffptError
from hf_effpt.evaluation.glue_metrics import METRICS, score

CLASSIC = {"accuracy": accuracy_score, "f1": f1_score, "mcc": matthews_corrcoef}


@pytest.mark.parametrize("metric", CLASSIC)
def test_classification_equals_scikit_learn(metric):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200)
    predictions = np.where(generator.random(200) < 0.8, labels, 1 - labels)
    assert score(metric, predictions, labels).value == pytest.approx(CLASSIC[metric](labels, predictions))
    assert score(metric, predictions, labels).note is None


@pytest.mark.parametrize(("metric", "reference"), [("pearson", pearsonr), ("spearman", spearmanr)])
def test_correlation_equals_scipy(metric, reference):
    generator = np.random.default_rng(0)
    labels = generator.random(100)
    predictions = (labels + generator.random(100)).astype(np.float32)
    assert score(metric, predictions, labels).value == pytest.approx(reference(predictions, labels).statistic)


def test_cases_worked_by_hand():
    predictions, labels = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]  # 2 true, 1 false positive; 1 true, 1 false negative
    assert score("accuracy", predictions, labels).value == pytest.approx(3 / 5)
    assert score("f1", predictions, labels).value == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert score("mcc", predictions, labels).value == pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)
    assert score("pearson", [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]).value == pytest.approx(-1)
    assert score("spearman", [1.0, 10.0, 100.0], [0.1, 0.2, 0.3]).value == pytest.approx(1)


def test_the_positive_class_of_f1_is_1():
    assert score("f1", [0, 0, 0, 1], [0, 0, 1, 1]).value == pytest.approx(2 / 3)
    assert score("f1", [1, 1, 1, 0], [1, 1, 0, 0]).value == pytest.approx(4 / 5)


def test_mcc_of_one_class_counts_zero_and_says_so():
    result = score("mcc", [1, 1, 1, 1], [1, 0, 1, 1])
    assert result.value == 0
    assert result.note == "one class predicted for all 4 examples: MCC is undefined, counted 0"
    assert "one class labelled for all 4" in score("mcc", [1, 0, 1, 1], [1, 1, 1, 1]).note
    assert score("mcc", [1, 1], [1, 1]).value == 0  # where scikit-learn would warn


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_correlation_of_a_constant_is_undefined(metric):
    for predictions in (np.full(5, 2.5), 2.5 + np.array([0, 1, 0, 1, 1], np.float32) * 2e-7, np.zeros(5)):
        result = score(metric, predictions, np.arange(5.0))
        assert result.value is None
        assert "one value predicted for all 5 examples" in result.note
    assert "labelled" in score(metric, np.arange(5.0), np.ones(5)).note


def test_f1_without_positives():
    assert score("f1", [0, 0, 0], [0, 0, 0]).value is None
    assert "no positive label" in score("f1", [0, 0, 0], [0, 0, 0]).note
    assert score("f1", [0, 0, 0], [0, 1, 0]).value == 0
    assert score("f1", [1, 0, 0], [0, 0, 0]).value == 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_has_diverged(metric, value):
    result = score(metric, [1.0, value, 0.0], [1.0, 0.0, 0.0])
    assert (result.value, result.note) == (None, "diverged")


@pytest.mark.parametrize(
    ("metric", "predictions", "labels", "message"),
    [
        ("acuracy", [1], [1], "did you mean `accuracy`"),
        ("accuracy", [], [], "at least one"),
        ("accuracy", [1, 0], [1], "shape"),
        ("accuracy", [[0.1, 0.9]], [[1, 0]], "argmax"),
        ("f1", [0, 2], [0, 1], r"\[0, 1, 2\]"),
        ("pearson", [0.0, 1.0], [0.0, np.nan], "1 labels that are not finite"),
    ],
)
def test_bad_input(metric, predictions, labels, message):
    with pytest.raises(EffptError, match=message):
        score(metric, predictions, labels)
