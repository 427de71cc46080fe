"""Progressive stacking: starts with one layer and grows to four by stacking copies of what is trained.

python examples/03_stacking.py corpus/ --out out_stacking
"""

import argparse

from hf_effpt import (
    EffptTrainingArguments,
    StackableBertConfig,
    StackableBertForMaskedLM,
    StackingTrainer,
    pack,
    train_tokenizer,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", nargs="?", default="builtin:pydoc", help="a file, folder, Hub id or builtin:pydoc")
parser.add_argument(
    "--depth", type=int, nargs="+", default=1, help="layers at the start, or in each stage but the last"
)
parser.add_argument("--at", type=float, nargs="+", help="fractions of the budget at which it grows")
parser.add_argument("--operator", default="stack", help="stack, interpolate, midas, append_top or ligo_depth")
parser.add_argument("--budget", default="2min", help="40steps, 1e7tokens, 3e13flops, 10min, ...")
parser.add_argument("--vocab_size", type=int, default=8192)
parser.add_argument("--out", default="out_stacking")
args = parser.parse_args()

tokenizer = train_tokenizer(args.dataset, vocab_size=args.vocab_size)
rows = pack(args.dataset, tokenizer, sequence_length=128)
config = StackableBertConfig(
    vocab_size=len(tokenizer), num_hidden_layers=4, hidden_size=128, num_attention_heads=2, intermediate_size=512,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    methods={"stacking": {"depth": args.depth, "at": args.at, "operator": args.operator}},
)  # fmt: skip
trainer = StackingTrainer(
    model=StackableBertForMaskedLM(config),
    args=EffptTrainingArguments(output_dir=args.out, budget=args.budget, learning_rate=3e-3),
    train_dataset=rows["train"],
    eval_dataset=rows["validation"],
    processing_class=tokenizer,
)
trainer.train()
trainer.evaluate()
trainer.save_model()
for event in trainer.model.config.events or []:
    print(f"after step {event['step']}: {event['what']}")
print(f"Held-out loss {trainer.evaluation['held_out_loss']:.3f}")
