"""`effpt push`: uploads a run's exported model to the Hub."""

import argparse
from pathlib import Path

from hf_effpt.core.errors import EffptError

from .shared import words

HELP = "Upload an exported model, with its tokenizer and model card, to the Hugging Face Hub."
EXAMPLE = "effpt push out/ my-org/my-bert --private"
CARD = ("license", "language", "datasets", "base_model", "widget")  # flags for the card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="OUT", help="the folder of a run, or of an export")
    add("repo_id", metavar="ORG/NAME", help="the model repository; created if needed")
    add("--private", action="store_true", default=None, help="make a new repository private")
    add("--license", metavar="NAME", help="license for the card, such as apache-2.0")
    add("--language", type=words, metavar="LIST", help="languages of its text for the card, such as en,de")
    add("--datasets", type=words, metavar="LIST", help="datasets on the Hub that it learned from")
    add("--base_model", metavar="ORG/NAME", help="model on the Hub that it went on from")
    add("--widget", metavar="TEXT", action="append", help="example for the Hub's page; may be repeated")
    add("--yes", action="store_true", help="upload without asking")
    add("--revision", metavar="BRANCH", help="branch to push to (default: main)")


def run(args: argparse.Namespace) -> None:
    from hf_effpt.hub.push import files_to_push, push

    folder = Path(args.folder)
    card = {key: value for key in CARD if (value := getattr(args, key)) is not None}
    names = [*files_to_push(folder), "README.md"]
    print(f"To {args.repo_id}: {', '.join(names)}")
    if not args.yes and not _agreed():
        raise EffptError("Nothing was uploaded; answer `y`, or give --yes.")
    print(push(folder, args.repo_id, private=args.private, revision=args.revision, card=card))


def _agreed() -> bool:
    try:
        return input("Upload these files? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # nobody can answer
        print()
        return False
