"""`effpt tokenizer`: trains a tokenizer on a corpus."""

import argparse
from pathlib import Path

from hf_effpt.core.errors import EffptError
from hf_effpt.core.targets import check_folder

HELP = "Train a tokenizer on a corpus and save it as a stock fast tokenizer."
EXAMPLE = "effpt tokenizer corpus/ --vocab_size 30528 --out tok/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("corpus", metavar="CORPUS", help="file or folder of text, a Hub dataset, or builtin:pydoc")
    add("--out", required=True, metavar="DIR", help="folder to save the tokenizer in")
    add("--vocab_size", type=int, default=8192, help="a multiple of 64 (default: %(default)s)")
    add("--kind", choices=("wordpiece", "bpe"), default="wordpiece", help="its algorithm (default: %(default)s)")
    add("--text_column", default="text", help="column of the text (default: %(default)s)")
    add("--cased", action="store_true", help="keep upper case; by default text is lowercased")
    add(
        "--strip_accents", action=argparse.BooleanOptionalAction,
        help="take accents from letters, or keep them; by default they are taken from English text, lowercased, only",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    from hf_effpt.data.corpus import open_corpus
    from hf_effpt.data.text_sample import sample_of
    from hf_effpt.data.tokenizer_report import tokenizer_report
    from hf_effpt.data.tokenizer_training import train_tokenizer
    from hf_effpt.hub.folders import TOKENIZER_FILES, others_in

    check_folder(args.out)
    if held := [name for name in others_in(Path(args.out)) if name not in TOKENIZER_FILES]:
        raise EffptError(
            f"{args.out} holds {', '.join(held)}, whose tokenizer this would replace; name another --out."
        )
    corpus = open_corpus(args.corpus, text_column=args.text_column)
    tokenizer = train_tokenizer(
        corpus,
        vocab_size=args.vocab_size,
        kind=args.kind,
        lowercase=not args.cased,
        strip_accents=args.strip_accents,
        out=args.out,
    )
    report = tokenizer_report(tokenizer, sample_of(corpus, 4 * 2**20))
    print(
        f"Saved a {args.kind} tokenizer of {len(tokenizer)} tokens in {args.out}: {report.fertility:.2f} tokens a "
        f"word, {report.unknown_rate:.3%} of the text unknown, accents "
        f"{'stripped' if report.strip_accents else 'kept'}."
    )
