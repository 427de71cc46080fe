"""LayerDrop: skips layers at random in training, so that a step costs less, and exports a model of full depth.

python examples/02_layerdrop.py corpus/ --p 0.2 --out out_layerdrop
"""

import argparse

from hf_effpt import (
    EffptTrainingArguments,
    LayerDropBertConfig,
    LayerDropBertForMaskedLM,
    LayerDropTrainer,
    pack,
    train_tokenizer,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", nargs="?", default="builtin:pydoc", help="a file, folder, Hub id or builtin:pydoc")
parser.add_argument("--p", type=float, default=0.2, help="probability that a layer is skipped in a step")
parser.add_argument("--budget", default="2min", help="40steps, 1e7tokens, 3e13flops, 10min, ...")
parser.add_argument("--vocab_size", type=int, default=8192)
parser.add_argument("--out", default="out_layerdrop")
args = parser.parse_args()

tokenizer = train_tokenizer(args.dataset, vocab_size=args.vocab_size)
rows = pack(args.dataset, tokenizer, sequence_length=128)
config = LayerDropBertConfig(
    vocab_size=len(tokenizer), num_hidden_layers=4, hidden_size=128, num_attention_heads=2, intermediate_size=512,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, methods={"layerdrop": {"p": args.p}},
)  # fmt: skip
trainer = LayerDropTrainer(
    model=LayerDropBertForMaskedLM(config),
    args=EffptTrainingArguments(output_dir=args.out, budget=args.budget, learning_rate=3e-3),
    train_dataset=rows["train"],
    eval_dataset=rows["validation"],
    processing_class=tokenizer,
)
trainer.train()
trainer.evaluate()
trainer.save_model()
per_token = trainer.clock.flops / trainer.clock.tokens
print(f"Held-out loss {trainer.evaluation['held_out_loss']:.3f} at {per_token / 1e6:.2f} MFLOP a token")
