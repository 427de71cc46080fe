"""ELECTRA: a generator replaces tokens and the model learns to tell which; what comes out is a stock discriminator.

python examples/09_electra.py corpus/ --out out_electra
"""

import argparse

from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

from hf_effpt import (
    EffptElectraConfig,
    EffptTrainingArguments,
    ElectraForJointPreTraining,
    ElectraTrainer,
    pack,
    train_tokenizer,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", nargs="?", default="builtin:pydoc", help="a file, folder, Hub id or builtin:pydoc")
parser.add_argument("--generator_size", type=float, default=0.25, help="width of the generator over that of the model")
parser.add_argument("--budget", default="2min", help="40steps, 1e7tokens, 3e13flops, 10min, ...")
parser.add_argument("--vocab_size", type=int, default=8192)
parser.add_argument("--out", default="out_electra")
args = parser.parse_args()

tokenizer = train_tokenizer(args.dataset, vocab_size=args.vocab_size)
rows = pack(args.dataset, tokenizer, sequence_length=128)
config = EffptElectraConfig(
    vocab_size=len(tokenizer), num_hidden_layers=4, hidden_size=128, num_attention_heads=2, intermediate_size=512,
    embedding_size=128, generator_size=args.generator_size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
trainer = ElectraTrainer(
    model=ElectraForJointPreTraining(config),
    args=EffptTrainingArguments(output_dir=args.out, budget=args.budget, learning_rate=3e-3, logging_steps=10),
    train_dataset=rows["train"],
    eval_dataset=rows["validation"],
    processing_class=tokenizer,
)
trainer.train()
trainer.evaluate()
trainer.save_model()
found = trainer.evaluation
print(f"The generator: {found['generator_loss']:.3f} nats, {found['replaced_rate']:.1%} of the tokens replaced")
print(f"Held-out loss {found['held_out_loss']:.3f}, to get below {found['floor']:.3f}")
print(type(AutoModelForPreTraining.from_pretrained(args.out)).__name__, "in", args.out)
print(type(AutoModelForMaskedLM.from_pretrained(f"{args.out}/generator")).__name__, "in", f"{args.out}/generator")
