"""`effpt plot`: draws the loss curves of runs."""

import argparse
from pathlib import Path

HELP = "Draw the losses of one or several runs against tokens, time and FLOPs, with the floor."
EXAMPLE = "effpt plot out/ other/ --out losses.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run, finished or with a checkpoint")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the picture to write: png, svg, pdf, jpg or webp (default: loss.png, of one run in its folder)",
    )


def run(args: argparse.Namespace) -> None:
    from hf_effpt.diagnosis.loss_plot import draw_losses

    folder = Path(args.runs[0]) if len(args.runs) == 1 else Path()
    print(f"Loss curves in {draw_losses(args.runs, args.out or folder / 'loss.png')}")
