"""`effpt compare`: compares recipes at one budget."""

import argparse
import shlex
import sys
from collections import Counter

from hf_effpt.hub.private import words_without_secrets

from .shared import numbers, show_messages, words

HELP = "Train several recipes on one budget, with paired seeds, and report which one is better."
EXAMPLE = (
    "effpt compare tiny stacking_tiny layerdrop_tiny --budget 10min --seeds 3 --out report/ "
    "--data.dataset corpus/ --model.num_hidden_layers 4"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.usage = "effpt compare RECIPE RECIPE ... --out DIR [--budget BUDGET] [--seeds N] [--section.key VALUE ...]"
    add("recipes", nargs="+", metavar="RECIPE", help="recipe files or built-in names; the first is the baseline")
    add("--out", required=True, metavar="DIR", help="folder of the runs and the report; a second call continues")
    add("--budget", help="budget of each run, such as 10min or 1e9tokens (default: the recipes' own)")
    add("--seeds", type=int, default=3, help="seeds of each arm; a verdict needs 3 (default: %(default)s)")
    add(
        "--fractions", default="0.5,0.7,1", metavar="F,F,...",
        help="shares of the budget with separate runs, for the time to the baseline's loss (default: %(default)s)",
    )  # fmt: skip
    add(
        "--sweep", action="append", default=[], metavar="SECTION.KEY=VALUE,...",
        help="run each recipe with each of these values, such as training.learning_rate=3e-4,1e-3, of which some may "
        "be lists or mappings in brackets; may be repeated",
    )  # fmt: skip
    add("--tasks", default="", metavar="TASK,...", help="also measure blimp, sst2, cola ... (see evaluate)")
    add("--data", metavar="DIR", help="folder of BLiMP and the tasks, or hub to download them")
    add("--protocol", default="default", help="how tasks are fine-tuned (default: %(default)s)")
    add("--pairs_per_paradigm", type=int, metavar="N", help="only N pairs of each paradigm of BLiMP")
    add(
        "--primary", metavar="SCORE",
        help="metric of the verdicts: a score such as cola/mcc@default, or average, of the fine-tuned tasks (default: "
        "the held-out loss, which only judges arms of the baseline's objective)",
    )  # fmt: skip
    add("--gpus", metavar="N,...", help="GPUs, each with one run at a time (default: one run in all)")
    add(
        "--free", action="store_true",
        help="also run arms whose clock is not charged for their methods (with a FLOPs budget: for row selection)",
    )  # fmt: skip
    add("--different_data", action="store_true", help="let arms differ in data; then there is no verdict")
    parser.add_argument_group(
        "settings", "  --section.key VALUE changes a setting of every recipe, as in `effpt pretrain`."
    )


def run(args: argparse.Namespace) -> None:
    from hf_effpt.comparison.experiment import compare

    show_messages()
    report = compare(
        args.recipes,
        args.out,
        budget=args.budget,
        seeds=args.seeds,
        fractions=numbers("--fractions", args.fractions),
        overrides=args.settings,
        sweep=args.sweep,
        tasks=words(args.tasks),
        data=args.data,
        protocol=args.protocol,
        pairs_per_paradigm=args.pairs_per_paradigm,
        primary=args.primary,
        gpus=args.gpus,
        free=args.free,
        different_data=args.different_data,
        command=shlex.join(["effpt", *words_without_secrets(sys.argv[1:])]),
    )
    print(f"\n{report['title']}")
    if report["void"]:
        print(f"VOID: {report['void']}")
    for arm in report["arms"]:
        loss = arm["summary"]["final_loss"]
        states = Counter(run["state"] for run in arm["runs"] if run["fraction"] == 1.0)
        unfinished = ", ".join(f"{number} {state}" for state, number in states.items())
        shown = f"no finished run ({unfinished})" if loss is None else f"{loss['mean']:.4f}"
        print(f"  {arm['name']}: {shown}. {arm['verdict']['text']}")
    for note in report["notes"]:
        print(f"  note: {note}")
    print(f"The report is in {args.out}: report.html, report.md, report.json.")
