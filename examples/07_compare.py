"""Comparison: does LayerDrop or stacking pay, at one budget, on this text and this machine?

python examples/07_compare.py corpus/ --budget 10min --out comparison   # 3 arms, 3 seeds, 15 minutes each
"""

import argparse

from hf_effpt import compare

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", nargs="?", default="builtin:pydoc", help="a file, folder, Hub id or builtin:pydoc")
parser.add_argument(
    "--budget", default="2min", help="of each run: 40steps, 1e7tokens, 3e13flops, 10min, 10min_rst, ..."
)
parser.add_argument("--seeds", type=int, default=3, help="a verdict needs three")
parser.add_argument("--fractions", type=float, nargs="+", default=[0.5, 1.0], help="shares of the budget")
parser.add_argument("--vocab_size", type=int, default=2048)
parser.add_argument("--out", default="comparison")
args = parser.parse_args()

# The arms differ in their methods alone; the first is the baseline.
base = {
    "model": {"size": "tiny", "num_hidden_layers": 4},
    "data": {"dataset": args.dataset, "sequence_length": 64, "vocab_size": args.vocab_size, "validation": 0.05},
    "training": {"learning_rate": 1e-3, "per_device_train_batch_size": 32, "report_to": "none"},
}
arms = [
    {"name": "plain", **base},
    {"name": "stacking", **base, "methods": {"stacking": {"depth": 1, "at": [0.125, 0.3]}}},
    {"name": "layerdrop", **base, "methods": {"layerdrop": {"p": 0.2}}},
]
report = compare(arms, args.out, budget=args.budget, seeds=args.seeds, fractions=args.fractions)
for arm in report["arms"]:
    print(f"{arm['name']}: {arm['verdict']['text']}")
print(f"Open {args.out}/report.html; call this again to continue after an interruption, or to add seeds.")
