"""`effpt export`: turns a training checkpoint into a stock one, with all layers or fewer."""

import argparse
from functools import partial

from hf_effpt.core.errors import EffptError

from .shared import show_messages

HELP = "Export a training checkpoint as a stock Transformers checkpoint, with its tokenizer and model card."
EXAMPLE = "effpt export out/checkpoint-900 --out exported/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a checkpoint-N folder of a run, or a finished run")
    add("--out", required=True, metavar="DIR", help="folder for the stock checkpoint")
    add("--as_bert", action="store_true", help="write the encoder of an ELECTRA as a BertModel")
    add("--dense", action="store_true", help="write narrower layers at full width, as a stock model")
    add("--depth", type=int, metavar="LAYERS", help="number of layers to keep (default: all)")
    add(
        "--strategy", metavar="NAME",
        help="how layers are chosen: every_other, search (by held-out loss) or data_driven (default: every_other)",
    )  # fmt: skip
    add(
        "--dataset", "--text", metavar="TEXT",
        help="text for search and data_driven (default: the run's held-out or training text)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    if args.depth is None and (args.strategy or args.dataset):
        raise EffptError("`--strategy` and `--dataset` choose the layers of a shallower model; give `--depth`, too.")
    from hf_effpt.hub.export import export

    pruning = {}
    if args.depth is not None:
        from hf_effpt.evaluation.pruning import pruner_of

        show_messages()
        strategy = args.strategy or "every_other"
        pruning["pruner_of"] = partial(pruner_of, depth=args.depth, strategy=strategy, text=args.dataset)
    export(args.checkpoint, args.out, as_bert=args.as_bert, dense=args.dense, **pruning)
    print(f"Exported {args.checkpoint} to {args.out}.")
