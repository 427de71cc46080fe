"""Taking notes on the fly: rare words carry a note of the contexts they were seen in, in training only.

python examples/08_tnf.py corpus/ --out out_tnf
"""

import argparse

from hf_effpt import EffptTrainingArguments, TNFBertConfig, TNFBertForMaskedLM, TNFTrainer, pack, train_tokenizer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", nargs="?", default="builtin:pydoc", help="a file, folder, Hub id or builtin:pydoc")
parser.add_argument("--min_count", type=int, help="least count of a word with a note (default by size of text)")
parser.add_argument("--max_count", type=int, help="largest count of a word with a note")
parser.add_argument("--budget", default="2min", help="40steps, 1e7tokens, 3e13flops, 10min, ...")
parser.add_argument("--vocab_size", type=int, default=8192)
parser.add_argument("--out", default="out_tnf")
args = parser.parse_args()

tokenizer = train_tokenizer(args.dataset, vocab_size=args.vocab_size)
rows = pack(args.dataset, tokenizer, sequence_length=128)
config = TNFBertConfig(
    vocab_size=len(tokenizer), num_hidden_layers=4, hidden_size=128, num_attention_heads=2, intermediate_size=512,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    methods={"tnf": {"min_count": args.min_count, "max_count": args.max_count}},
)  # fmt: skip
trainer = TNFTrainer(
    model=TNFBertForMaskedLM(config),
    args=EffptTrainingArguments(output_dir=args.out, budget=args.budget, learning_rate=3e-3, logging_steps=10),
    train_dataset=rows["train"],
    eval_dataset=rows["validation"],
    processing_class=tokenizer,
)
trainer.train()
trainer.evaluate()
trainer.save_model()
print(f"Notes of {len(trainer.model.backbone.notes.keys):,} words")
for entry in trainer.state.log_history:
    if "tnf_hits" in entry:
        print(f"step {entry['step']}: {entry['tnf_hits']:.2%} of words have a note, ratio {entry['tnf_ratio']:.1f}")
print(f"Held-out loss {trainer.evaluation['held_out_loss']:.3f}")
