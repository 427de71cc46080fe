"""MC-BERT: chooses the original of every token among candidates of a meta controller, and exports as a BERT.

python examples/10_mcbert.py corpus/ --out out_mcbert
"""

import argparse

from hf_effpt import (
    EffptTrainingArguments,
    McBertConfig,
    McBertForPreTraining,
    McBertTrainer,
    pack,
    train_tokenizer,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", nargs="?", default="builtin:pydoc", help="a file, folder, Hub id or builtin:pydoc")
parser.add_argument("--candidates", type=int, default=10, help="per token, none of the above included")
parser.add_argument("--candidates_at", default="all", choices=("all", "masked"), help="masked: as in TEAMS")
parser.add_argument("--budget", default="2min", help="40steps, 1e7tokens, 3e13flops, 10min, ...")
parser.add_argument("--vocab_size", type=int, default=8192)
parser.add_argument("--out", default="out_mcbert")
args = parser.parse_args()

tokenizer = train_tokenizer(args.dataset, vocab_size=args.vocab_size)
rows = pack(args.dataset, tokenizer, sequence_length=128)
config = McBertConfig(
    vocab_size=len(tokenizer) + 64,  # the last row, which no token has, stands for none of the above
    special_token_ids=tokenizer.all_special_ids, candidates=args.candidates, candidates_at=args.candidates_at,
    num_hidden_layers=4, hidden_size=128, num_attention_heads=2, intermediate_size=512,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
trainer = McBertTrainer(
    model=McBertForPreTraining(config),
    args=EffptTrainingArguments(output_dir=args.out, budget=args.budget, learning_rate=3e-3, logging_steps=10),
    train_dataset=rows["train"],
    eval_dataset=rows["validation"],
    processing_class=tokenizer,
)
trainer.train()
trainer.evaluate()
trainer.save_model()
found = trainer.evaluation
print(f"The meta controller: {found['generator_loss']:.3f} nats, {found['replaced_rate']:.1%} of the tokens replaced")
print(f"Held-out loss {found['held_out_loss']:.3f}, to get below {found['floor']:.3f}")
