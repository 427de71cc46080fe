"""Speedrun: the lowest held-out loss in a fixed time on a fixed text, as a record in `model_cards/speedrun`.

    python examples/speedrun.py RECIPE.yaml --track cpu --text FOLDER --name NAME    # `--name stock`: the stock way
    python examples/speedrun.py --table                                             # only writes the table

The rules are those of `model_cards/speedrun/README.md`. The recipe has `model`, `methods` and `training`; of `data` it
may only say how tokens are masked. Finished runs in `--out` are not repeated.
"""

import argparse
import hashlib
import os
import platform
import re
import shlex
import sys
from pathlib import Path

from against_stock import Sides

from hf_effpt.comparison.arms import Arm, load_arms
from hf_effpt.comparison.run_grid import claim, grid
from hf_effpt.comparison.summary import report
from hf_effpt.core.clock import Clock
from hf_effpt.core.files import read_json, write_json

HOME = Path(__file__).parents[1] / "model_cards" / "speedrun"
BUDGETS = {"cpu": "5min", "gpu": "1h"}
FREE = {"mlm_probability", "whole_word"}
SEEDS = 3


def text_of(folder: Path) -> dict[str, list[str]]:
    """Files of the text, `train` and `validation`, in a fixed order; exits if one is missing or another."""
    found: dict[str, list[str]] = {}
    for split, files in read_json(HOME / "text.json")["files"].items():
        for name, digest in files.items():
            path = folder / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                sys.exit(f"{path} is missing, or not the file of the rules, whose SHA-256 is {digest}")
            found.setdefault(split, []).append(str(path))
    return found


def entry(recipe: str, name: str, text: dict[str, list[str]], overrides: list[str]) -> Arm:
    """The arm of a recipe on the text of the rules."""
    (arm,) = load_arms([recipe], overrides)
    sections = {key: dict(values or {}) for key, values in arm.sections.items()}
    fixed = read_json(HOME / "text.json")["data"]
    given = {key: value for key, value in sections.get("data", {}).items() if key not in ("dataset", "validation")}
    for key, value in given.items():
        if key not in (*FREE, "cache_dir") and value != fixed.get(key):
            sys.exit(f"The rules fix the text and its tokens; leave `data.{key}` out of the recipe")
    sections["data"] = given | {"dataset": text["train"], "validation": text["validation"]} | fixed
    sections["training"] = {**sections.get("training", {}), "report_to": "none"}
    if name == "stock":  # with the dropout of BERT
        sections["model"] = {**sections.get("model", {}), "dropout": 0.1}
    return Arm(name, sections)


def machine() -> dict[str, str | None]:
    """Processor and, if there is one, GPU."""
    import torch

    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu[1] if cpu else platform.processor(), "gpu": gpu}


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Makes the runs of an entry and writes its record."""
    if args.track == "cpu":
        os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core, for the runs, too
    arms = [entry(args.recipe, args.name, text_of(args.text), overrides)]
    clock = Clock.parse(args.budget or BUDGETS[args.track])
    out = args.out / args.track / args.name
    runs = grid(arms, clock, range(SEEDS), [1.0], out)
    claim(out, runs, clock)
    failed = Sides({}).make(runs)
    command = shlex.join(["python", "examples/speedrun.py", *sys.argv[1:]])
    found = report(arms, runs, clock, failed=failed, command=command)
    (arm,) = found["arms"]
    if args.budget:
        print(f"Loss of the trial: {arm['summary']['final_loss']}")
        return
    record = {"name": args.name, "track": args.track, "command": command, "machine": machine()}
    record |= {key: found[key] for key in ("clock", "environment")}
    record |= {"recipe": arm["recipe"], "loss": arm["summary"]["final_loss"], "tokens": arm["summary"]["tokens"]}
    record["runs"] = [
        {key: one[key] for key in ("seed", "held_out_loss", "clock", "costs", "curve")} for one in arm["runs"]
    ]
    file = HOME / args.track / f"{args.name}.json"
    file.parent.mkdir(exist_ok=True)
    write_json(file, record)


def table(track: str) -> list[str]:
    """Rows of the records of a track, the lowest loss first."""
    records = sorted(map(read_json, (HOME / track).glob("*.json")), key=lambda record: record["loss"]["mean"])
    rows = []
    for one in records:
        loss, device = one["loss"], one["machine"]["gpu"] or one["machine"]["cpu"]
        shown = f"{loss['mean']:.3f}" + (f" ({loss['low']:.3f} to {loss['high']:.3f})" if loss["n"] > 1 else "")
        rows.append(
            f"| [{one['name']}]({track}/{one['name']}.json) | {shown} | {one['tokens'] / 1e6:.2f} M | {device} |"
        )
    return rows


def write_tables() -> None:
    """Writes the tables of the rules' page."""
    page = HOME / "README.md"
    text = page.read_text(encoding="utf-8")
    for track in BUDGETS:
        rows = "".join(row + "\n" for row in table(track))
        marked = rf"(<!-- {track} -->\n\|[^\n]*\n\|[^\n]*\n)(?:\|[^\n]*\n)*(<!-- end -->)"
        text = re.sub(marked, lambda match, rows=rows: match[1] + rows + match[2], text)
    page.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", help="a recipe file or the name of a built-in recipe")
    parser.add_argument(
        "--track", choices=list(BUDGETS), default="cpu", help="one CPU core for 5 minutes, or a GPU for 1 h"
    )
    parser.add_argument("--text", type=Path, help="folder of the files of the rules")
    parser.add_argument("--name", help="of the record; `stock` is trained by the stock Trainer")
    parser.add_argument("--out", type=Path, default=Path("speedrun"), help="folder of the runs (default speedrun)")
    parser.add_argument("--budget", help="another budget, for a trial; its record is none")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    args, overrides = parser.parse_known_args()
    if not args.table:
        if not (args.recipe and args.text and args.name):
            parser.error("a recipe, --text and --name are needed")
        run(args, overrides)
    write_tables()


if __name__ == "__main__":
    main()
