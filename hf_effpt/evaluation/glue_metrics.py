"""GLUE metrics; undefined ones have no value and a note with the reason."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest

SAME = 1e-6  # relative difference up to which float32 predictions are one value, since their ranks would be noise


@dataclass(frozen=True)
class Score:
    """Value of a metric.

    `value` is from 0 or -1 to 1, not in per cent, and `None` if it is undefined; `note` is the reason, also of a
    conventional value.
    """

    value: float | None
    note: str | None = None


def score(metric: str, predictions: Sequence | np.ndarray, labels: Sequence | np.ndarray) -> Score:
    """Computes the metric `accuracy`, `f1` (of class 1), `mcc`, `pearson` or `spearman`.

    Predictions and labels are classes, or numbers of a regression, both of shape `(examples,)`. Raises an `EffptError`
    if the metric is unknown, or examples or labels are missing or do not suit it.
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


def _correlation(name: str, function: Callable, predicted: np.ndarray, wanted: np.ndarray) -> Score:
    predicted, wanted = predicted.astype(np.float64), wanted.astype(np.float64)
    for values, what in ((predicted, "predicted"), (wanted, "labelled")):
        if np.ptp(values) <= SAME * np.abs(values).max():
            return Score(None, f"one value {what} for all {len(values)} examples: {name} is undefined")
    return Score(float(function(predicted, wanted).statistic))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], Score]] = {
    "accuracy": lambda predicted, wanted: Score(float(accuracy_score(wanted, predicted))),
    "f1": _f1,
    "mcc": _mcc,
    "pearson": partial(_correlation, "Pearson", pearsonr),
    "spearman": partial(_correlation, "Spearman", spearmanr),
}
