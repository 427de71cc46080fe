"""Train large, then compress: half of the layers, heads and neurons are cut away at 70 % of the budget.

python examples/15_compress.py corpus/ --importance michel --out out_compress
"""

import argparse

from hf_effpt import (
    CompressibleBertConfig,
    CompressibleBertForMaskedLM,
    CompressTrainer,
    EffptTrainingArguments,
    pack,
    train_tokenizer,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", nargs="?", default="builtin:pydoc", help="a file, folder, Hub id or builtin:pydoc")
parser.add_argument("--importance", default="michel", help="michel, gates, magnitude, or random as the control")
parser.add_argument("--budget", default="2min", help="40steps, 1e7tokens, 3e13flops, 10min, ...")
parser.add_argument("--vocab_size", type=int, default=8192)
parser.add_argument("--out", default="out_compress")
args = parser.parse_args()

tokenizer = train_tokenizer(args.dataset, vocab_size=args.vocab_size)
rows = pack(args.dataset, tokenizer, sequence_length=128)
cut = {"depth": 3, "head_keep": 0.5, "ffn_keep": 0.5, "importance": args.importance}
config = CompressibleBertConfig(
    vocab_size=len(tokenizer), num_hidden_layers=6, hidden_size=128, num_attention_heads=4, intermediate_size=512,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, methods={"compress": cut},
)  # fmt: skip
trainer = CompressTrainer(
    model=CompressibleBertForMaskedLM(config),
    args=EffptTrainingArguments(output_dir=args.out, budget=args.budget, learning_rate=3e-3, logging_steps=10),
    train_dataset=rows["train"],
    eval_dataset=rows["validation"],
    processing_class=tokenizer,
)
large = trainer.model.export().num_parameters()
trainer.train()
trainer.evaluate()
trainer.save_model()  # with its own code, since no stock class has so few heads; trainer.model.export(dense=True) has
for event in trainer.model.config.events:
    print(f"step {event['step']}: {event['what']}")
print(f"{large:,} parameters, now {trainer.model.export().num_parameters():,}")
print(f"Held-out loss {trainer.evaluation['held_out_loss']:.3f}")
