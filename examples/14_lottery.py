"""Lottery tickets, for research: prunes single weights in rounds, saves the ticket, and trains another model with it.

python examples/14_lottery.py corpus/ --sparsity 0.5 --rounds 2 --out out_lottery
"""

import argparse

from transformers import set_seed

from hf_effpt import (
    EffptTrainingArguments,
    LotteryBertConfig,
    LotteryBertForMaskedLM,
    LotteryTrainer,
    SparseTicket,
    pack,
    train_tokenizer,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", nargs="?", default="builtin:pydoc", help="a file, folder, Hub id or builtin:pydoc")
parser.add_argument("--sparsity", type=float, default=0.5, help="share of the weights that are pruned in the end")
parser.add_argument("--rounds", type=int, default=2, help="number of prunings")
parser.add_argument("--budget", default="2min", help="of each run: 40steps, 1e7tokens, 3e13flops, 10min, ...")
parser.add_argument("--vocab_size", type=int, default=8192)
parser.add_argument("--out", default="out_lottery")
args = parser.parse_args()

tokenizer = train_tokenizer(args.dataset, vocab_size=args.vocab_size)
rows = pack(args.dataset, tokenizer, sequence_length=128)


def trained(out, seed, **lottery):
    """Trains a model with these settings from the initial weights of the seed and returns its trainer."""
    set_seed(seed)
    config = LotteryBertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=2, hidden_size=128, num_attention_heads=2, intermediate_size=512,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, methods={"lottery": lottery},
    )  # fmt: skip
    settings = EffptTrainingArguments(output_dir=out, budget=args.budget, learning_rate=3e-3, logging_steps=10)
    data = {"train_dataset": rows["train"], "eval_dataset": rows["validation"], "processing_class": tokenizer}
    trainer = LotteryTrainer(LotteryBertForMaskedLM(config), settings, **data)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return trainer


first = trained(args.out, 1, sparsity=args.sparsity, rounds=args.rounds)
ticket = SparseTicket.of(first.model)
path = ticket.save(f"{args.out}/ticket.safetensors")
second = trained(f"{args.out}/retrained", 2, ticket=str(path))
print(f"{ticket.sparsity:.0%} of the weights are zero: no step is faster and no file smaller for it")
print(f"Held-out loss {first.evaluation['held_out_loss']:.3f} where the ticket was drawn, "
      f"{second.evaluation['held_out_loss']:.3f} from other first weights with the same zeros")  # fmt: skip
