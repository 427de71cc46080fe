"""Pre-trains a small encoder from raw text, step by step in Python.

python examples/01_pretrain.py corpus/ --budget 10min --out out
"""

import argparse

from hf_effpt import (
    EffptBertConfig,
    EffptBertForMaskedLM,
    EffptTrainer,
    EffptTrainingArguments,
    pack,
    train_tokenizer,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", nargs="?", default="builtin:pydoc", help="a file, folder, Hub id or builtin:pydoc")
parser.add_argument("--budget", default="2min", help="40steps, 1e7tokens, 3e13flops, 10min, ...")
parser.add_argument("--vocab_size", type=int, default=8192)
parser.add_argument("--out", default="out")
args = parser.parse_args()

tokenizer = train_tokenizer(args.dataset, vocab_size=args.vocab_size)
rows = pack(args.dataset, tokenizer, sequence_length=128)
model = EffptBertForMaskedLM(
    EffptBertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=2, hidden_size=128, num_attention_heads=2, intermediate_size=512,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )
)  # fmt: skip
trainer = EffptTrainer(
    model=model,
    args=EffptTrainingArguments(output_dir=args.out, budget=args.budget, learning_rate=3e-3),
    train_dataset=rows["train"],
    eval_dataset=rows["validation"],
    processing_class=tokenizer,
)
trainer.train()
trainer.evaluate()
trainer.save_model()  # a stock BertForMaskedLM, its tokenizer, a model card and run.json
print(
    f"Held-out loss {trainer.evaluation['held_out_loss']:.3f}, unigram floor {trainer.evaluation['unigram_floor']:.3f}"
)
