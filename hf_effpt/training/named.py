"""The named trainers: `EffptTrainer` with one method switched on, with its defaults, where the model lacks it."""

from .trainer import EffptTrainer


class LayerDropTrainer(EffptTrainer):
    """Trains with LayerDrop (Fan et al., 2020)."""

    method = "layerdrop"


class StackingTrainer(EffptTrainer):
    """Trains by progressive stacking (Gong et al., 2019)."""

    method = "stacking"
