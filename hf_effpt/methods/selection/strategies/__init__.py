"""Strategies by name; a new one is a class in this folder and a line below."""

from hf_effpt.methods.selection.strategy import Strategy

from .core_set import CoreSet
from .discriminative import Discriminative
from .gradient_length import ExpectedGradientLength
from .losses import HighestLoss, InfoBatch, LossRank, Random, Rho, SelectiveBackprop
from .perceptrons import PerceptronEnsemble
from .uncertainty import DeepBayesian, LeastConfidence
from .weighing import AdaptiveMasking, Reweighting, TokenSelection

STRATEGIES: dict[str, type[Strategy]] = {
    "least_confidence": LeastConfidence,
    "deep_bayesian": DeepBayesian,
    "perceptron_ensemble": PerceptronEnsemble,
    "expected_gradient_length": ExpectedGradientLength,
    "core_set": CoreSet,
    "discriminative": Discriminative,
    "random": Random,
    "highest_loss": HighestLoss,
    "selective_backprop": SelectiveBackprop,
    "loss_rank": LossRank,
    "rho": Rho,
    "infobatch": InfoBatch,
    "token_selection": TokenSelection,
    "reweighting": Reweighting,
    "adaptive_masking": AdaptiveMasking,
}
