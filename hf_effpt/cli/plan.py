"""`effpt plan`: proposes a recipe for a text and a budget, and says what to expect of it."""

import argparse
import shlex
import sys

from .shared import show_messages

HELP = "Measure this machine for a minute, propose a recipe for your text and time, and say what to expect."
EXAMPLE = "effpt plan corpus/ --hours 6 --out mine.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="RECIPE|CORPUS", help="your text, or a recipe whose section data is kept")
    add("--hours", type=float, metavar="H", help="time that the run may take")
    add("--kwh", type=float, metavar="E", help="energy that the run may take, in kWh")
    add("--out", required=True, metavar="FILE", help="new file for the recipe")
    add("--device", metavar="DEVICE", help="cpu, cuda, or one GPU such as cuda:1 (default: a GPU if there is one)")


def run(args: argparse.Namespace) -> None:
    from hf_effpt.core.gpus import names_of_gpus
    from hf_effpt.planning.plan import plan

    show_messages()
    command = shlex.join(["effpt", *sys.argv[1:]])
    told = plan(args.source, args.out, hours=args.hours, kwh=args.kwh, device=args.device, command=command)
    number = (args.device or "").partition(":")[2]
    gpu = f"CUDA_VISIBLE_DEVICES={names_of_gpus([number])[0]} " if number else ""
    print(f"\n{told}\n\nThe recipe is in {args.out}, with a reason for each setting. Next:")
    print(f"  {gpu}effpt pretrain {shlex.quote(args.out)}")
