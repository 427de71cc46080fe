"""EarlyBERT: searches for a ticket, cuts the model down to it, and trains that; `--ticket random` is the control.

python examples/13_earlybert.py corpus/ --head_keep 0.75 --ffn_keep 0.6 --out out_earlybert
"""

import argparse

from hf_effpt import (
    EarlyBertConfig,
    EarlyBertForMaskedLM,
    EarlyBertTrainer,
    EffptTrainingArguments,
    pack,
    train_tokenizer,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", nargs="?", default="builtin:pydoc", help="a file, folder, Hub id or builtin:pydoc")
parser.add_argument("--head_keep", type=float, default=0.75, help="share of the heads of each layer")
parser.add_argument("--ffn_keep", type=float, default=0.6, help="share of the neurons of all layers")
parser.add_argument("--ticket", default="earlybert", help="earlybert, random, bad, magnitude, michel, or a saved one")
parser.add_argument("--budget", default="2min", help="40steps, 1e7tokens, 3e13flops, 10min, ...")
parser.add_argument("--vocab_size", type=int, default=8192)
parser.add_argument("--out", default="out_earlybert")
args = parser.parse_args()

tokenizer = train_tokenizer(args.dataset, vocab_size=args.vocab_size)
rows = pack(args.dataset, tokenizer, sequence_length=128)
search = {"head_keep": args.head_keep, "ffn_keep": args.ffn_keep, "max_search_steps": 0.2}
search = {"ticket": args.ticket} if args.ticket.endswith(".json") else search | {"ticket": args.ticket}
config = EarlyBertConfig(
    vocab_size=len(tokenizer), num_hidden_layers=4, hidden_size=128, num_attention_heads=4, intermediate_size=512,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, methods={"earlybert": search},
)  # fmt: skip
trainer = EarlyBertTrainer(
    model=EarlyBertForMaskedLM(config),
    args=EffptTrainingArguments(output_dir=args.out, budget=args.budget, learning_rate=3e-3, logging_steps=10),
    train_dataset=rows["train"],
    eval_dataset=rows["validation"],
    processing_class=tokenizer,
)
ticket = trainer.search()
print(f"Step {trainer.state.global_step}: heads and neurons of the layers are {ticket.widths}")
trainer.train()
trainer.evaluate()
trainer.save_model()
print(f"Held-out loss {trainer.evaluation['held_out_loss']:.3f}; the ticket is in {args.out}/ticket.json")
