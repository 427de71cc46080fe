"""The named trainers: `EffptTrainer` for one objective, or with one method switched on where the model lacks it."""

from .trainer import EffptTrainer


class CompressTrainer(EffptTrainer):
    """Trains a large model and compresses it on the way (Li et al., 2020)."""

    method = "compress"


class LayerDropTrainer(EffptTrainer):
    """Trains with LayerDrop (Fan et al., 2020)."""

    method = "layerdrop"


class LayerSkipTrainer(EffptTrainer):
    """Trains with learned layer skipping (Wang et al., 2019); experimental."""

    method = "layerskip"


class LotteryTrainer(EffptTrainer):
    """Prunes single weights in rounds and rewinds the others (Frankle and Carbin, 2019); for research."""

    method = "lottery"


class SelectionTrainer(EffptTrainer):
    """Trains on the rows that are judged to teach most, out of more than a step holds (Jiang et al., 2019)."""

    method = "selection"


class StackingTrainer(EffptTrainer):
    """Trains by progressive stacking (Gong et al., 2019)."""

    method = "stacking"


class ElectraTrainer(EffptTrainer):
    """Trains generator and discriminator of ELECTRA together (Clark et al., 2020)."""

    objectives = ("electra", "electra_15", "replace_mlm", "all_tokens_mlm")


class McBertTrainer(EffptTrainer):
    """Trains MC-BERT with its meta controller (Xu et al., 2020)."""

    objectives = ("mcbert",)


class TNFTrainer(EffptTrainer):
    """Trains with notes of rare words, taken on the fly (Wu et al., 2021)."""

    method = "tnf"
