"""Depth on demand: prunes a model that was trained with LayerDrop to a stock model with fewer layers.

python examples/02_layerdrop.py corpus/ --p 0.5 --out out_layerdrop
python examples/12_prune.py out_layerdrop corpus/ --depth 2 --out out_pruned
"""

import argparse

from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_effpt import pack
from hf_effpt.evaluation.held_out_loss import fixed_mask_batches, held_out_loss
from hf_effpt.evaluation.pruning import STRATEGIES, choose_layers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="the folder of a finished run")
parser.add_argument("dataset", nargs="?", default="builtin:pydoc", help="its training text")
parser.add_argument("--depth", type=int, default=2, help="layers to keep")
parser.add_argument("--out", default="out_pruned")
args = parser.parse_args()

model = AutoModelForMaskedLM.from_pretrained(args.model)
tokenizer = AutoTokenizer.from_pretrained(args.model)
rows = pack(args.dataset, tokenizer, sequence_length=128)
# One half of the held-out text chooses layers, the other measures the loss.
held_out = rows["validation"].train_test_split(test_size=0.5, seed=0)
chosen_by = {"every_other": None, "search": held_out["train"], "data_driven": rows["train"]}


def loss_of(measured):
    found = held_out_loss(measured, fixed_mask_batches(held_out["test"], tokenizer, 32))
    return found.total / found.masked


print(f"all {model.config.num_hidden_layers} layers: loss {loss_of(model):.3f}")
losses = {}
for strategy in STRATEGIES:
    pruning = choose_layers(model, args.depth, strategy, rows=chosen_by[strategy], tokenizer=tokenizer)
    pruned = pruning.apply(model)
    losses[strategy] = loss_of(pruned)
    print(f"{strategy}: layers {list(pruning.kept)}, loss {losses[strategy]:.3f}")
    if losses[strategy] == min(losses.values()):
        pruned.save_pretrained(args.out)
tokenizer.save_pretrained(args.out)
print(
    f"{type(pruned).__name__} of {args.depth} layers in {args.out}: AutoModel.from_pretrained({args.out!r}) loads it"
)
