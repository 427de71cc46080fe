"""Learned layer skipping, experimental: for each row a gate decides whether a layer runs; the export keeps all layers.

python examples/11_layerskip.py corpus/ --target 0.6 --out out_layerskip
"""

import argparse

from hf_effpt import (
    EffptTrainingArguments,
    LayerSkipBertConfig,
    LayerSkipBertForMaskedLM,
    LayerSkipTrainer,
    pack,
    train_tokenizer,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", nargs="?", default="builtin:pydoc", help="a file, folder, Hub id or builtin:pydoc")
parser.add_argument("--target", type=float, default=0.6, help="share of pairs of a row and a gated layer that run")
parser.add_argument("--budget", default="2min", help="40steps, 1e7tokens, 3e13flops, 10min, ...")
parser.add_argument("--vocab_size", type=int, default=8192)
parser.add_argument("--out", default="out_layerskip")
args = parser.parse_args()

tokenizer = train_tokenizer(args.dataset, vocab_size=args.vocab_size)
rows = pack(args.dataset, tokenizer, sequence_length=128)
config = LayerSkipBertConfig(
    vocab_size=len(tokenizer), num_hidden_layers=6, hidden_size=128, num_attention_heads=2, intermediate_size=512,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, methods={"layerskip": {"target": args.target}},
)  # fmt: skip
trainer = LayerSkipTrainer(
    model=LayerSkipBertForMaskedLM(config),
    args=EffptTrainingArguments(output_dir=args.out, budget=args.budget, learning_rate=3e-3, logging_steps=10),
    train_dataset=rows["train"],
    eval_dataset=rows["validation"],
    processing_class=tokenizer,
)
trainer.train()
trainer.evaluate()
trainer.save_model()
for entry in trainer.state.log_history:
    if "layerskip_executed" in entry:
        print(f"step {entry['step']}: {entry['layerskip_executed']:.0%} of rows and gated layers ran")
found = trainer.evaluation
print(f"Held-out loss {found['held_out_loss']:.3f} with all layers, {found['held_out_loss_threshold']:.3f} as gated")
