"""Draws the losses of one or several runs against tokens, time and FLOPs, with their floor: `effpt plot` in Python.

python examples/05_plot_loss.py out --png out/loss.png
"""

import argparse
from pathlib import Path

from hf_effpt.diagnosis.loss_plot import draw_losses

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
parser.add_argument("--png", type=Path, help="the picture to write (default: loss.png in the folder of the first run)")
args = parser.parse_args()
print(f"Loss curves in {draw_losses(args.runs, args.png or args.runs[0] / 'loss.png')}")
