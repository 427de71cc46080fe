"""`effpt pretrain`: runs a recipe and leaves a stock checkpoint."""

import argparse

from hf_effpt.core.errors import EffptError

from .shared import show_messages

HELP = "Pre-train a model from a recipe; the output folder holds a stock Transformers checkpoint."
EXAMPLE = "effpt pretrain tiny --training.budget 10min --training.output_dir out --methods.layerdrop.p 0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "effpt pretrain RECIPE [--section.key VALUE ...] [--resume [CHECKPOINT] | --dry_run]"
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a built-in recipe such as tiny")
    parser.add_argument(
        "--resume", nargs="?", const=True, default=False, metavar="CHECKPOINT",
        help="continue from the last checkpoint of the run, or from CHECKPOINT",
    )  # fmt: skip
    parser.add_argument(
        "--dry_run", action="store_true",
        help="train nothing: check recipe and text, and say what to expect, after half a minute of measuring",
    )  # fmt: skip
    parser.add_argument_group(
        "settings",
        "  --section.key VALUE changes any setting of the recipe: --model.size, --data.dataset, --training.budget,\n"
        "  --methods.layerdrop.p and so on; `--methods {}` switches all methods off.\n"
        "  `effpt settings` explains each.",
    )


def run(args: argparse.Namespace) -> None:
    from hf_effpt.core.processes import is_first
    from hf_effpt.pretraining import pretrain
    from hf_effpt.recipe.recipe import Recipe

    if is_first():
        show_messages()
    recipe = Recipe.load(args.recipe, args.settings)
    if args.dry_run:
        from hf_effpt.planning.plan import dry_run

        if args.resume:
            raise EffptError("`--dry_run` forecasts a new run; leave `--resume` out.")
        print(dry_run(recipe))
        return
    result = pretrain(recipe, resume=args.resume)
    if is_first():
        print(result.summary())
