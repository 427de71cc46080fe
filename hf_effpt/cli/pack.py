"""`effpt pack`: packs text into shards of rows, by many processes or machines."""

import argparse

from .shared import show_messages

HELP = "Pack text beyond one process or machine into shards of rows, which a run reads by `data.dataset: ROWS`."
EXAMPLE = "effpt pack corpus/ --out rows/ --sequence_length 128 --workers 8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("corpus", metavar="CORPUS", help="file, folder or pattern of text, a saved dataset, or a Hub dataset")
    add("--out", required=True, metavar="ROWS", help="folder for the rows; the same command goes on with one begun")
    add("--sequence_length", type=int, default=128, metavar="N", help="tokens of a row (default: %(default)s)")
    add("--isolate_documents", action="store_true", help="keep the documents of a row apart")
    add("--validation", type=float, default=0.01, metavar="SHARE",
        help="share of the text to hold out, in whole documents; 0 for none (default: %(default)s)")  # fmt: skip
    add("--text_column", default="text", help="column of the text (default: %(default)s)")
    add("--split", default="train", help="split to pack, of a source with splits (default: %(default)s)")
    add("--streaming", action="store_true", help="read a Hub dataset during its download, each task its own files")
    add("--documents", choices=("blank_lines", "lines", "file"), help="cut of .txt files (default: guessed)")
    add("--tokenizer", metavar="DIR", help="folder or Hub id (default: one is trained on the text)")
    add("--vocab_size", type=int, default=8192, help="of a trained tokenizer (default: %(default)s)")
    add("--kind", choices=("wordpiece", "bpe"), default="wordpiece", help="of a trained one (default: %(default)s)")
    add("--cased", action="store_true", help="a trained one keeps upper case")
    add("--strip_accents", action=argparse.BooleanOptionalAction, help="a trained one takes accents, or keeps them")
    add("--tasks", type=int, metavar="N",
        help="shards, at most (default: one for every 128 MiB of text, up to 1,000; a file is never cut)")  # fmt: skip
    add("--workers", type=int, metavar="N", help="processes at a time on this machine (default: one a core)")
    add("--executor", choices=("local", "slurm", "ray"), default="local",
        help="where tasks run: processes here, or a cluster that shares ROWS (default: %(default)s)")  # fmt: skip
    add("--executor_options", nargs="+", default=[], metavar="KEY=VALUE",
        help="settings of the cluster's executor of datatrove: partition=cpu time=10:00:00")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    from hf_effpt.data.shards.packing import pack_shards, summary

    show_messages()
    own = ("sequence_length", "isolate_documents", "text_column", "split", "streaming", "documents", "tokenizer",
           "vocab_size", "kind", "strip_accents", "tasks", "workers", "executor", "executor_options")  # fmt: skip
    rows = pack_shards(
        args.corpus,
        args.out,
        validation=args.validation or None,
        lowercase=not args.cased,
        **{key: getattr(args, key) for key in own},
    )
    if rows is None:
        print(f"Submitted. Once its last job is done, train with: effpt pretrain RECIPE --data.dataset {args.out}")
        return
    print(f"{summary(args.out, rows)}\nTrain with: effpt pretrain RECIPE --data.dataset {args.out}")
