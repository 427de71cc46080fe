"""Scores by the gradient of a row in the last linear layer, in closed form.

B batch, M positions a row, F size of the features, V classes. For a row with m labelled positions, the gradient is
G = 1/m sum_t d_t [h_t; 1]^T, with the features h_t, the residual d_t = p_t - onehot(y_t), and the 1 if there is a
bias. Labels drawn from p have E d_t = 0, so no product of two positions is left in E |G|^2. With a single logit, of
class yes, p_t is its probability, d_t = p_t - y_t, E d_t^2 = p_t (1 - p_t) and E |d_t| = 2 p_t (1 - p_t).
"""

from typing import ClassVar

import torch
from torch import Tensor

from hf_effpt.core.head_inputs import HeadInputs
from hf_effpt.core.precision import without_autocast
from hf_effpt.methods.selection.strategy import Scorer

from .uncertainty import LogitStrategy, exact, mean_asked


def expected_sq(logits_BMV: Tensor, features_BMF: Tensor, labels_BM: Tensor, bias: bool = True) -> Tensor:
    """E |G|^2 over labels drawn from the model, of shape `(batch_size,)`: 1/m^2 sum_t E |d_t|^2 (|h_t|^2 + 1).

    Logits and features are outputs and inputs of the last layer, which has a `bias` or not. Labels are -100 at
    positions to ignore, else any.
    """
    p_BMV, labelled_BM = _probabilities(logits_BMV), labels_BM != -100
    squares_BM = (p_BMV * (1.0 - p_BMV))[..., 0] if p_BMV.shape[-1] == 1 else 1.0 - _norms(p_BMV).square()
    mean_B = mean_asked(squares_BM * _lengths(features_BMF, bias).square(), labelled_BM)
    return mean_B / labelled_BM.sum(dim=1).clamp(min=1)


def expected_norm(logits_BMV: Tensor, features_BMF: Tensor, labels_BM: Tensor, bias: bool = True) -> Tensor:
    """Mean over positions of E |d_t [h_t; 1]^T|, of shape `(batch_size,)` (Settles et al., 2008).

    Label v, of probability p_v, has the residual |p - onehot(v)| = sqrt(|p|^2 - 2 p_v + 1). Arguments are those of
    [`expected_sq`].
    """
    p_BMV = _probabilities(logits_BMV)
    if p_BMV.shape[-1] == 1:
        norms_BM = (2.0 * p_BMV * (1.0 - p_BMV))[..., 0]
    else:
        squares_BMV = torch.sub(_norms(p_BMV).square()[..., None] + 1.0, p_BMV, alpha=2.0)
        norms_BM = squares_BMV.clamp_(min=0.0).sqrt_().mul_(p_BMV).sum(dim=-1)
    return mean_asked(norms_BM * _lengths(features_BMF, bias), labels_BM != -100)


def observed(logits_BMV: Tensor, features_BMF: Tensor, labels_BM: Tensor, bias: bool = True) -> Tensor:
    """|G|^2 for the true labels, of shape `(batch_size,)`: 1/m^2 times the sum of DD^T o (HH^T + 1).

    The gradient itself is never stored. Arguments are those of [`expected_sq`].
    """
    labelled_BM = labels_BM != -100
    residuals_BMV = _residuals(logits_BMV, labels_BM)
    features_BMF = exact(features_BMF).masked_fill(~labelled_BM[..., None], 0.0)
    # Rows are scored under the run's autocast, which would multiply these matrices in half precision.
    with without_autocast(logits_BMV):
        grams_BMM = (residuals_BMV @ residuals_BMV.mT) * (features_BMF @ features_BMF.mT + float(bias))
    return grams_BMM.sum(dim=(1, 2)).clamp(min=0.0) / labelled_BM.sum(dim=1).clamp(min=1).square()


def el2n(logits_BMV: Tensor, labels_BM: Tensor) -> Tensor:
    """Mean over positions of |d_t| for the true labels, of shape `(batch_size,)` (Paul et al., 2021)."""
    return mean_asked(_norms(_residuals(logits_BMV, labels_BM)), labels_BM != -100)


def _probabilities(logits_BMV: Tensor) -> Tensor:
    """Probabilities of the classes, or of yes, in full precision and in new memory."""
    logits_BMV = exact(logits_BMV)
    return logits_BMV.sigmoid() if logits_BMV.shape[-1] == 1 else logits_BMV.softmax(dim=-1)


def _residuals(logits_BMV: Tensor, labels_BM: Tensor) -> Tensor:
    """Probabilities minus the one-hot true labels; zero at positions to ignore."""
    p_BMV, labels_BM1 = _probabilities(logits_BMV), labels_BM[..., None]
    if p_BMV.shape[-1] == 1:
        p_BMV.sub_(labels_BM1)
    else:
        right_BM1 = labels_BM1.clamp(min=0)
        p_BMV.scatter_(-1, right_BM1, p_BMV.gather(-1, right_BM1) - 1.0)
    return p_BMV.masked_fill_(labels_BM1 == -100, 0.0)


def _norms(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1)


def _lengths(features_BMF: Tensor, bias: bool) -> Tensor:
    """|[h; 1]|, or |h| without a bias."""
    return (_norms(exact(features_BMF)).square() + float(bias)).sqrt()


_GRADIENTS = {"expected_sq": expected_sq, "expected_norm": expected_norm, "observed": observed}


class ExpectedGradientLength(LogitStrategy):
    """Prefers rows whose gradient in the last linear layer is expected to be long.

    Labels are drawn from the model's probabilities (Settles et al., 2008, in the form of Braasch, section 4.2); the
    rules `observed` and `el2n` use the true ones. Features grow in training, so that only scores of the same step
    compare.
    """

    rules: ClassVar[tuple[str, ...]] = (*_GRADIENTS, "el2n")

    @classmethod
    def settings_with(cls, scorer: Scorer | None, rule: str | None) -> set[str]:
        # The observed gradient is that of all positions together.
        return super().settings_with(scorer, rule) - ({"num_score_positions"} if rule == "observed" else set())

    @torch.no_grad()
    def rate(self, reading: HeadInputs) -> Tensor:
        features_BMF, logits_BMV = reading.head(reading.hidden_BMD)
        if self.rule == "el2n":
            return el2n(logits_BMV, reading.labels_BM)
        scores_B = _GRADIENTS[self.rule](logits_BMV, features_BMF, reading.labels_BM)
        if self.rule == "expected_sq" and reading.num_labels_B is not None:
            # The score falls with the number of labelled positions: that of the row, not of those judged.
            scores_B = scores_B * reading.labelled_BM.sum(dim=1) / reading.num_labels_B.clamp(min=1)
        return scores_B
