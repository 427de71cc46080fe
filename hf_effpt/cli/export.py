"""`effpt export`: turns a training checkpoint into a stock one."""

import argparse

from .words import refuse

HELP = "Export a training checkpoint as a stock Transformers checkpoint, with its tokenizer and model card."
EXAMPLE = "effpt export out/checkpoint-900 --out exported/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint-N folder of a run")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the stock checkpoint")
    parser.add_argument("--as_bert", action="store_true", help="write the encoder of an ELECTRA as a BertModel")


def run(args: argparse.Namespace, extra: list[str]) -> None:
    refuse("export", extra)
    from hf_effpt.hub.export import export

    export(args.checkpoint, args.out, as_bert=args.as_bert)
    print(f"Exported {args.checkpoint} to {args.out}.")
