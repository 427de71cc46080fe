"""Injects faults into runs of `effpt pretrain`, goes on with each, and counts what was survived and what was lost.

    python -m tests.by_faults --out model_cards/results/faults.json

Disks that fill up are small ones in memory; mounting them needs root.
"""

import argparse
import json
import platform
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.processes import preload

SEED = 0
NUMBERS = {
    "SIGKILL at a random time": 30,
    "SIGKILL while a checkpoint or the export is written": 24,
    "SIGTERM or SIGINT": 6,
    "damage": 48,
    "disk full": 20,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    parser.add_argument(
        "--only", nargs="+", choices=NUMBERS, default=list(NUMBERS), help="kinds of fault; results of others stay"
    )
    parser.add_argument("--number", type=int, help="faults of each kind")
    args = parser.parse_args()
    preload("tests.faults.kinds", "hf_effpt.pretraining", "transformers.models.bert.modeling_bert")
    from tests.faults.kinds import KINDS
    from tests.faults.runs import EVERY, STEPS, World, counts

    facts = {"command": "python -m tests.by_faults --out model_cards/results/faults.json", "seed": SEED}
    facts |= {"steps": STEPS, "save_steps": EVERY, "torch": torch.__version__, "system": platform.system()}
    before = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    results, said = before.get("results", {}), before.get("said", {})
    with TemporaryDirectory(prefix="faults-") as folder:
        world = World(Path(folder).resolve())
        world.measure()
        for name in args.only:
            begun = time.monotonic()
            outcomes = KINDS[name](world, random.Random(f"{SEED} {name}"), args.number or NUMBERS[name])
            results[name] = counts(outcomes, time.monotonic() - begun)
            said[name] = [vars(one) for one in outcomes]
            print(name, json.dumps(results[name], indent=2), flush=True)
            report = facts | {"run_seconds": round(world.seconds, 2), "results": results, "said": said}
            args.out.write_text(json.dumps(report, indent=2).replace(folder, "RUNS") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
