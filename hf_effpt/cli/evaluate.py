"""`effpt evaluate`: what a model is worth."""

import argparse
import logging
import sys
from pathlib import Path

from .words import refuse, words

HELP = "Measure a stock checkpoint: held-out loss, BLiMP, and fine-tuning tasks."
EXAMPLE = "effpt evaluate out/ --tasks loss,blimp,cola,sst2 --data glue_and_blimp/ --seeds 3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="OUT", help="the folder of a run, or of any stock checkpoint with its tokenizer"
    )
    parser.add_argument(
        "--tasks", metavar="TASK,...",
        help="loss, blimp, cola, sst2, mrpc, rte, stsb, qnli, qqp, mnli, wnli, ag_news, a file or folder of your own, "
        "or ORG/NAME on the Hub (default: loss, or the tasks of a named protocol)",
    )  # fmt: skip
    parser.add_argument("--data", metavar="DIR", help="folder of BLiMP and known tasks, or hub to download them")
    parser.add_argument("--text", metavar="TEXT", help="held-out text for the loss (default: what the run held out)")
    parser.add_argument(
        "--protocol", default="default",
        help="how tasks are fine-tuned: default, glue9_cramming, glue8_mosaic or glue8_electra (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, help="seeds of fine-tuning (default: the protocol's)")
    parser.add_argument("--lora", type=int, metavar="RANK", help="fine-tune LoRA adapters in place of all weights")
    parser.add_argument("--pairs_per_paradigm", type=int, metavar="N", help="only N pairs of each paradigm of BLiMP")
    parser.add_argument("--out", metavar="FILE", help="where the results go (default: evaluation.json in the folder)")


def run(args: argparse.Namespace, extra: list[str]) -> None:
    refuse("evaluate", extra)
    from hf_effpt.evaluation.suite import evaluate, table
    from hf_effpt.hub.folders import write_json
    from hf_effpt.hub.scores import add_scores

    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("hf_effpt").setLevel(logging.INFO)
    result = evaluate(
        args.model,
        None if args.tasks is None else words(args.tasks),
        data=args.data,
        text=args.text,
        protocol=args.protocol,
        seeds=args.seeds,
        lora=args.lora,
        pairs_per_paradigm=args.pairs_per_paradigm,
    )
    out = Path(args.out) if args.out else Path(args.model) / "evaluation.json"
    write_json(out, result)
    added = add_scores(args.model, result["scores"])
    print(f"\n{table(result)}\n\nWritten to {out}{' and into the model card' if added else ''}.")
