"""Code as users write it, which a type checker accepts; it is checked, and never run."""

from hf_effpt import (
    EffptBertModel,
    EffptRobertaConfig,
    EffptTrainingArguments,
    LayerDrop,
    LayerDropBertConfig,
    LayerDropBertForMaskedLM,
    LayerDropTrainer,
    Recipe,
    pretrain,
)
from hf_effpt.models import LayerDropBertModel as Encoder

args = EffptTrainingArguments(output_dir="out", budget="90s", learning_rate=1e-3)
config = LayerDropBertConfig(num_hidden_layers=4, methods={"layerdrop": {"p": 0.1}})
trainer = LayerDropTrainer(model=LayerDropBertForMaskedLM(config), args=args)
words: list[str | None] = [args.budget, trainer.clock.unit, LayerDrop(p=0.2).name]
encoder: EffptBertModel = Encoder(config)
kin = EffptRobertaConfig(num_hidden_layers=4)
loss: float | None = pretrain(Recipe.load("tiny")).held_out_loss
