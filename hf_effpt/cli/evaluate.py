"""`effpt evaluate`: measures a model."""

import argparse
from pathlib import Path

from hf_effpt.core.errors import EffptError
from hf_effpt.core.targets import check_file

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


def _check_flags(args: argparse.Namespace) -> None:
    """Raises an `EffptError` for a flag that none of the tasks reads."""
    if args.tasks is None and args.protocol != "default":
        return  # the tasks of a protocol
    names = {*words(args.tasks or "loss")}
    finetuned = bool(names - {"loss", "blimp"})
    for flag, read, by in (
        ("seeds", finetuned, "a task to fine-tune on"),
        ("lora", finetuned, "a task to fine-tune on"),
        ("data", finetuned or "blimp" in names, "BLiMP or a task"),
        ("pairs_per_paradigm", "blimp" in names, "blimp"),
        ("text", "loss" in names, "loss"),
    ):
        if getattr(args, flag) is not None and not read:
            raise EffptError(f"`--{flag}` does nothing here; name {by} in `--tasks`, or leave the flag out.")


def run(args: argparse.Namespace) -> None:
    from hf_effpt.evaluation.results_file import Record
    from hf_effpt.evaluation.suite import evaluate, table
    from hf_effpt.hub.card import add_scores

    _check_flags(args)
    show_messages()
    out = check_file(args.out or Path(args.model) / "evaluation.json")
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
