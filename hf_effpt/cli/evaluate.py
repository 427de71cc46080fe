"""`effpt evaluate`: measures a model."""

import argparse
import os
from pathlib import Path

from hf_effpt.core.errors import EffptError

from .shared import show_messages, words

HELP = "Measure a stock checkpoint: held-out loss, BLiMP, and fine-tuning tasks."
EXAMPLE = "effpt evaluate out/ --tasks loss,blimp,cola,sst2 --data glue_and_blimp/ --seeds 3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="OUT", help="the folder of a run, or of any stock checkpoint with its tokenizer")
    add(
        "--tasks", metavar="TASK,...",
        help="loss, blimp, cola, sst2, mrpc, rte, stsb, qnli, qqp, mnli, wnli, ag_news, your own file or folder, "
        "or ORG/NAME on the Hub (default: loss, or the tasks of a named protocol)",
    )  # fmt: skip
    add("--data", metavar="DIR", help="folder of BLiMP and known tasks, or hub to download them")
    add("--text", metavar="TEXT", help="held-out text for the loss (default: that of the run)")
    add(
        "--protocol", default="default",
        help="how tasks are fine-tuned: default, glue9_cramming, glue8_mosaic, or glue8_electra, which is one of "
        "glue8_electra_small, _base and _large by the model's size (default: %(default)s)",
    )  # fmt: skip
    add("--seeds", type=int, help="seeds of fine-tuning (default: the protocol's)")
    add("--lora", type=int, metavar="RANK", help="fine-tune LoRA adapters in place of all weights")
    add("--pairs_per_paradigm", type=int, metavar="N", help="only N pairs of each paradigm of BLiMP")
    add("--out", metavar="FILE", help="file of the results (default: evaluation.json in the folder)")


def run(args: argparse.Namespace) -> None:
    from hf_effpt.evaluation.results_file import Record
    from hf_effpt.evaluation.suite import evaluate, table
    from hf_effpt.hub.card import add_scores

    show_messages()
    out = Path(args.out) if args.out else Path(args.model) / "evaluation.json"
    _check_target(out)
    record = Record(out, Path(args.model))
    result = evaluate(
        args.model,
        None if args.tasks is None else words(args.tasks),
        data=args.data,
        text=args.text,
        protocol=args.protocol,
        seeds=args.seeds,
        lora=args.lora,
        pairs_per_paradigm=args.pairs_per_paradigm,
        record=record,
    )
    print(f"\n{table(result)}\n", flush=True)
    record.save(result)
    added = add_scores(args.model, result["scores"])
    print(f"Written to {out}{' and into the model card' if added else ''}.")


def _check_target(out: Path) -> None:
    """Raises an `EffptError` unless the file can be written, after its folder is created if needed."""
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if out.is_dir():
        raise EffptError(f"`--out` is {str(out)!r}, which is a folder; name a file in it.")
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise EffptError(f"{str(out)!r} cannot be written, since {above} is not a writable folder; name another file.")
