"""Evaluation: the held-out loss of a finished run against the unigram floor, and its score on a task of yours.

python examples/make_task.py task.jsonl && python examples/06_evaluate.py out task.jsonl --seeds 3
"""

import argparse
from pathlib import Path

from hf_effpt import evaluate
from hf_effpt.evaluation.results_file import Record
from hf_effpt.evaluation.suite import table

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="the folder of a finished run")
parser.add_argument("tasks", nargs="*", help="a file or folder with texts and labels, or cola, sst2, blimp, ...")
parser.add_argument("--data", help="the folder with BLiMP and known tasks such as cola")
parser.add_argument("--text", help="held-out text, by default that of the run")
parser.add_argument("--seeds", type=int, default=3, help="seeds of fine-tuning")
args = parser.parse_args()

result = evaluate(args.model, ["loss", *args.tasks], data=args.data, text=args.text, seeds=args.seeds)
print(table(result))
out = Path(args.model) / "evaluation.json"
Record(out, Path(args.model)).save(result)
print(f"\nAll of it, each seed too, is in {out}.")
