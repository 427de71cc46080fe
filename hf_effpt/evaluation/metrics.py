"""The GLUE metrics, with every case in which one is undefined said rather than passed over."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest

# Predictions are float32: what differs by less than its rounding is one value, whose ranks would be noise.
SAME = 1e-6


@dataclass(frozen=True)
class Score:
    """What a metric came to.

    Args:
        value (`float`, *optional*): a fraction from 0 or -1 to 1, not a percentage; `None` where it is undefined.
        note (`str`, *optional*): why it is undefined, or counted by convention.
    """

    value: float | None
    note: str | None = None


def score(metric: str, predictions: Sequence | np.ndarray, labels: Sequence | np.ndarray) -> Score:
    """Compares predictions with labels.

    Args:
        metric (`str`): `accuracy`, `f1` (of class 1), `mcc`, `pearson` or `spearman`.
        predictions (`Sequence` of shape `(examples,)`): classes, or numbers where the task is a regression.
        labels (`Sequence` of shape `(examples,)`): what they should have been.

    Raises:
        EffptError: for an unknown metric, no examples, labels that are missing or do not suit the metric.
    """
    if metric not in METRICS:
        raise EffptError(f"There is no metric `{metric}`: {nearest(str(metric), list(METRICS))}")
    predicted, wanted = np.asarray(predictions), np.asarray(labels)
    if predicted.shape != wanted.shape or predicted.ndim != 1:
        raise EffptError(
            f"{metric} got predictions of shape {predicted.shape} and labels of shape {wanted.shape}, but needs one "
            "of each an example; of logits take the argmax first."
        )
    if not len(wanted):
        raise EffptError(f"{metric} got no examples, but needs at least one: is the validation split empty?")
    if not np.isfinite(wanted).all():
        raise EffptError(f"{metric} got {(~np.isfinite(wanted)).sum()} labels that are not finite; correct the data.")
    if not np.isfinite(predicted).all():
        return Score(None, "diverged")
    return METRICS[metric](predicted, wanted)


def _accuracy(predicted: np.ndarray, wanted: np.ndarray) -> Score:
    return Score(float(accuracy_score(wanted, predicted)))


def _f1(predicted: np.ndarray, wanted: np.ndarray) -> Score:
    if not np.isin(np.concatenate([predicted, wanted]), (0, 1)).all():
        classes = sorted(set(predicted.tolist()) | set(wanted.tolist()))
        raise EffptError(f"f1 got the classes {classes}, but is that of class 1 of two, 0 and 1; use accuracy.")
    if not predicted.any() and not wanted.any():
        return Score(None, f"no positive label and no positive prediction in {len(wanted)} examples: F1 is undefined")
    return Score(float(f1_score(wanted, predicted)))


def _mcc(predicted: np.ndarray, wanted: np.ndarray) -> Score:
    for values, what in ((predicted, "predicted"), (wanted, "labelled")):
        if (values == values[0]).all():
            return Score(0.0, f"one class {what} for all {len(values)} examples: MCC is undefined, counted 0")
    return Score(float(matthews_corrcoef(wanted, predicted)))


def _pearson(predicted: np.ndarray, wanted: np.ndarray) -> Score:
    return _correlation("Pearson", pearsonr, predicted, wanted)


def _spearman(predicted: np.ndarray, wanted: np.ndarray) -> Score:
    return _correlation("Spearman", spearmanr, predicted, wanted)


def _correlation(name: str, function: Callable, predicted: np.ndarray, wanted: np.ndarray) -> Score:
    predicted, wanted = predicted.astype(np.float64), wanted.astype(np.float64)
    for values, what in ((predicted, "predicted"), (wanted, "labelled")):
        if np.ptp(values) <= SAME * np.abs(values).max():
            return Score(None, f"one value {what} for all {len(values)} examples: {name} is undefined")
    return Score(float(function(predicted, wanted).statistic))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], Score]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "mcc": _mcc,
    "pearson": _pearson,
    "spearman": _spearman,
}
