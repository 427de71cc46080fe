"""`effpt push`: uploads a run's exported model to the Hub."""

import argparse

HELP = "Upload an exported model, with its tokenizer and model card, to the Hugging Face Hub."
EXAMPLE = "effpt push out/ my-org/my-bert --private"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="OUT", help="the folder of a run, or of an export")
    add("repo_id", metavar="ORG/NAME", help="the model repository; created if needed")
    add("--private", action="store_true", default=None, help="make a new repository private")
    add("--revision", metavar="BRANCH", help="branch to push to (default: main)")


def run(args: argparse.Namespace) -> None:
    from hf_effpt.hub.push import push

    print(push(args.folder, args.repo_id, private=args.private, revision=args.revision))
