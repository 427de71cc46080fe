"""The named classes of single methods: the same models with that method switched on."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .bert import EffptBertForMaskedLM, EffptBertForSequenceClassification, EffptBertModel
from .configuration_effpt import EffptBertConfig


@strict
class CompressibleBertConfig(EffptBertConfig):
    """Configuration of a BERT that is trained large and then compressed (Li et al., 2020)."""

    model_type = "compressible_bert"
    default_methods: ClassVar[dict[str, dict]] = {"compress": {}}


class CompressibleBertModel(EffptBertModel):
    """The encoder, trained large and then compressed."""

    config_class = CompressibleBertConfig


class CompressibleBertForMaskedLM(EffptBertForMaskedLM):
    """BERT with a masked-language-modelling head, trained large and then compressed."""

    config_class = CompressibleBertConfig


class CompressibleBertForSequenceClassification(EffptBertForSequenceClassification):
    """BERT with a sequence classification head, trained large and then compressed."""

    config_class = CompressibleBertConfig


@strict
class EarlyBertConfig(EffptBertConfig):
    """Configuration of a BERT of which a ticket is trained (Chen et al., 2021, EarlyBERT)."""

    model_type = "early_bert"
    default_methods: ClassVar[dict[str, dict]] = {"earlybert": {}}


class EarlyBertModel(EffptBertModel):
    """The encoder, of which a ticket is trained."""

    config_class = EarlyBertConfig


class EarlyBertForMaskedLM(EffptBertForMaskedLM):
    """BERT with a masked-language-modelling head, of which a ticket is trained."""

    config_class = EarlyBertConfig


class EarlyBertForSequenceClassification(EffptBertForSequenceClassification):
    """BERT with a sequence classification head, of which a ticket is trained."""

    config_class = EarlyBertConfig


@strict
class LayerDropBertConfig(EffptBertConfig):
    """Configuration of a BERT trained with LayerDrop (Fan et al., 2020)."""

    model_type = "layerdrop_bert"
    default_methods: ClassVar[dict[str, dict]] = {"layerdrop": {}}


class LayerDropBertModel(EffptBertModel):
    """The encoder, trained with LayerDrop."""

    config_class = LayerDropBertConfig


class LayerDropBertForMaskedLM(EffptBertForMaskedLM):
    """BERT with a masked-language-modelling head, trained with LayerDrop."""

    config_class = LayerDropBertConfig


class LayerDropBertForSequenceClassification(EffptBertForSequenceClassification):
    """BERT with a sequence classification head, trained with LayerDrop."""

    config_class = LayerDropBertConfig


@strict
class LayerSkipBertConfig(EffptBertConfig):
    """Configuration of a BERT whose rows skip layers by learned gates (Wang et al., 2019); experimental."""

    model_type = "layerskip_bert"
    default_methods: ClassVar[dict[str, dict]] = {"layerskip": {}}


class LayerSkipBertModel(EffptBertModel):
    """The encoder, trained with learned layer skipping."""

    config_class = LayerSkipBertConfig


class LayerSkipBertForMaskedLM(EffptBertForMaskedLM):
    """BERT with a masked-language-modelling head, trained with learned layer skipping."""

    config_class = LayerSkipBertConfig


class LayerSkipBertForSequenceClassification(EffptBertForSequenceClassification):
    """BERT with a sequence classification head, trained with learned layer skipping."""

    config_class = LayerSkipBertConfig


@strict
class LotteryBertConfig(EffptBertConfig):
    """Configuration of a BERT of which single weights are pruned in rounds (Chen et al., 2020, lottery tickets)."""

    model_type = "lottery_bert"
    default_methods: ClassVar[dict[str, dict]] = {"lottery": {}}


class LotteryBertModel(EffptBertModel):
    """The encoder, of which single weights are pruned."""

    config_class = LotteryBertConfig


class LotteryBertForMaskedLM(EffptBertForMaskedLM):
    """BERT with a masked-language-modelling head, of which single weights are pruned."""

    config_class = LotteryBertConfig


class LotteryBertForSequenceClassification(EffptBertForSequenceClassification):
    """BERT with a sequence classification head, of which single weights are pruned."""

    config_class = LotteryBertConfig


@strict
class SelectionBertConfig(EffptBertConfig):
    """Configuration of a BERT that learns from the rows judged to teach most (Jiang et al., 2019, and others)."""

    model_type = "selection_bert"
    default_methods: ClassVar[dict[str, dict]] = {"selection": {}}


class SelectionBertModel(EffptBertModel):
    """The encoder, trained on selected rows."""

    config_class = SelectionBertConfig


class SelectionBertForMaskedLM(EffptBertForMaskedLM):
    """BERT with a masked-language-modelling head, trained on selected rows."""

    config_class = SelectionBertConfig


class SelectionBertForSequenceClassification(EffptBertForSequenceClassification):
    """BERT with a sequence classification head, trained on selected rows."""

    config_class = SelectionBertConfig


@strict
class StackableBertConfig(EffptBertConfig):
    """Configuration of a BERT that grows by progressive stacking (Gong et al., 2019)."""

    model_type = "stackable_bert"
    default_methods: ClassVar[dict[str, dict]] = {"stacking": {}}


class StackableBertModel(EffptBertModel):
    """The encoder, grown by stacking."""

    config_class = StackableBertConfig


class StackableBertForMaskedLM(EffptBertForMaskedLM):
    """BERT with a masked-language-modelling head, grown by stacking."""

    config_class = StackableBertConfig


class StackableBertForSequenceClassification(EffptBertForSequenceClassification):
    """BERT with a sequence classification head, grown by stacking."""

    config_class = StackableBertConfig


@strict
class TNFBertConfig(EffptBertConfig):
    """Configuration of a BERT that takes notes of rare words (Wu et al., 2021)."""

    model_type = "tnf_bert"
    default_methods: ClassVar[dict[str, dict]] = {"tnf": {}}


class TNFBertModel(EffptBertModel):
    """The encoder, trained with notes."""

    config_class = TNFBertConfig


class TNFBertForMaskedLM(EffptBertForMaskedLM):
    """BERT with a masked-language-modelling head, trained with notes."""

    config_class = TNFBertConfig


class TNFBertForSequenceClassification(EffptBertForSequenceClassification):
    """BERT with a sequence classification head, trained with notes."""

    config_class = TNFBertConfig
