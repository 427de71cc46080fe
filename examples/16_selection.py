"""Online data selection: trains on a part of the rows that it looks at, and reports the cost of choosing them.

python examples/16_selection.py corpus/ --strategy least_confidence --out out_selection
python examples/16_selection.py corpus/ --strategy random --out out_random       # the control: is it any better?
"""

import argparse
import json
from pathlib import Path

from hf_effpt import (
    EffptTrainingArguments,
    SelectionBertConfig,
    SelectionBertForMaskedLM,
    SelectionTrainer,
    pack,
    train_tokenizer,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", nargs="?", default="builtin:pydoc", help="a file, folder, Hub id or builtin:pydoc")
parser.add_argument("--strategy", default="perceptron_ensemble", help="`effpt methods selection` lists them")
parser.add_argument("--keep", type=float, default=0.5, help="share of the rows looked at that are trained on")
parser.add_argument("--budget", default="2min", help="40steps, 1e7tokens, 3e13flops, 10min, ...")
parser.add_argument("--vocab_size", type=int, default=8192)
parser.add_argument("--out", default="out_selection")
args = parser.parse_args()

tokenizer = train_tokenizer(args.dataset, vocab_size=args.vocab_size)
rows = pack(args.dataset, tokenizer, sequence_length=128)
config = SelectionBertConfig(
    vocab_size=len(tokenizer), num_hidden_layers=4, hidden_size=128, num_attention_heads=2, intermediate_size=512,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    methods={"selection": {"strategy": args.strategy, "keep": args.keep}},
)  # fmt: skip
trainer = SelectionTrainer(
    model=SelectionBertForMaskedLM(config),
    args=EffptTrainingArguments(output_dir=args.out, budget=args.budget, learning_rate=3e-3, logging_steps=10),
    train_dataset=rows["train"],
    eval_dataset=rows["validation"],
    processing_class=tokenizer,
)
trainer.train()
trainer.evaluate()
trainer.save_model()  # a stock BertForMaskedLM and run.json
print(json.loads((Path(args.out) / "run.json").read_text(encoding="utf-8"))["accounts"]["selection"]["text"])
print(f"Held-out loss {trainer.evaluation['held_out_loss']:.3f}")
