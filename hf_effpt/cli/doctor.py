"""`effpt doctor`: finds what is wrong with a run, a recipe or a dataset."""

import argparse

HELP = "Find what is wrong with a run, a recipe or a dataset, and say what mends it."
EXAMPLE = "effpt doctor out/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "effpt doctor RUN|RECIPE|DATASET [--section.key VALUE ...] [--range_test] [--json]"
    parser.add_argument(
        "target", metavar="RUN|RECIPE|DATASET",
        help="the folder of a run, a recipe's file or name, or a dataset as `data.dataset` takes it",
    )  # fmt: skip
    parser.add_argument(
        "--range_test", action="store_true",
        help="of a recipe: train for 100 steps at growing learning rates, and report which suit it",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print figures and findings as JSON")
    parser.add_argument_group(
        "exit code", "  0 if nothing is wrong, or warnings only; 1 if a finding is an error; 2 for bad input."
    )


def run(args: argparse.Namespace) -> int:
    import dataclasses
    import json

    from hf_effpt.diagnosis.doctor import diagnose

    found = diagnose(args.target, args.settings, range_test=args.range_test)
    print(json.dumps(dataclasses.asdict(found), indent=2) if args.json else found.text())
    return 0 if found.is_healthy else 1
