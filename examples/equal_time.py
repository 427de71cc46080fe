"""Compares recipes with the stock way at equal times of one core: held-out loss, and scores of tasks at the longest.

    python examples/equal_time.py fast_tiny.yaml --stock tiny.yaml --tokens 4.42e6 --minutes 10,30 --out equal/

The stock side has the size and optimizer of one recipe, as in `against_stock.py`. Times are counted in tokens, so that
a busy machine does no side harm: `--tokens` is what stock sees in the longest. Short runs of all sides take turns and
say how many tokens each of the others sees meanwhile, after its start. Stock trains at each learning rate on the
shortest time, and at the best on all. Finished runs are not repeated.
"""

import argparse
import os
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from against_stock import Sides, stock_arm
from time_to_stock import facts

from hf_effpt.comparison.arms import Arm, load_arms
from hf_effpt.comparison.run_grid import Run, grid
from hf_effpt.comparison.statistics import interval, paired
from hf_effpt.core.clock import Clock
from hf_effpt.core.files import write_json

SPEED_SECONDS = 15  # of a run that only measures speed


def made(arm: Arm, budget: str, seeds: Iterable[int], out: Path, evaluation: Mapping[str, Any]) -> list[dict]:
    """Makes the runs of an arm on one budget; returns their facts and the scores that `evaluation` asks for."""
    runs = grid([arm], Clock.parse(budget), list(seeds), [1.0], out)
    exit_if(Sides(evaluation).make(runs))
    return [facts(run) | {"scores": scores_of(run) if evaluation else {}} for run in runs]


def scores_of(run: Run) -> dict[str, float]:
    return {name: score["value"] for name, score in ((run.scores() or {}).get("scores") or {}).items()}


def exit_if(failed: Mapping[Run, str]) -> None:
    if failed:
        sys.exit("\n".join(f"{run.arm}, seed {run.seed}: {fault}" for run, fault in failed.items()))


def speeds(arms: Sequence[Arm], rounds: int, out: Path) -> dict[str, dict[str, float]]:
    """Tokens a second after the start, and seconds of the start, of each arm: medians of runs that take turns."""
    runs = grid(arms, Clock.parse(f"{SPEED_SECONDS}s"), range(rounds), [1.0], out)
    exit_if(Sides({}).make(runs))
    found: dict[str, dict[str, float]] = {}
    for arm in arms:
        records = [run.record() or {} for run in runs if run.arm == arm.name]
        starts = [float((record.get("costs") or {}).get("start", 0.0)) for record in records]
        rates = [
            record["clock"]["tokens"] / (record["clock"]["seconds"] - start)
            for record, start in zip(records, starts, strict=True)
        ]
        found[arm.name] = {"tokens_per_second": statistics.median(rates), "start_seconds": statistics.median(starts)}
    return found


def summary(runs: Sequence[Mapping[str, Any]], stock: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means with intervals of loss and scores of some runs, and differences to stock's, paired by seed."""
    found: dict[str, Any] = {"runs": list(runs), "means": {}, "differences": {}}
    for name in ["held_out_loss", *runs[0]["scores"]]:
        mine, theirs = ({one["seed"]: (one | one["scores"])[name] for one in side} for side in (runs, stock))
        found["means"][name] = asdict(interval(list(mine.values())))
        if runs is not stock and (difference := paired(mine, theirs)):
            found["differences"][name] = asdict(difference)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="recipes to compare with stock")
    parser.add_argument("--stock", required=True, help="recipe of a BERT, which the stock side follows")
    parser.add_argument("--tokens", type=float, required=True, help="of the stock side in the longest time")
    parser.add_argument("--minutes", default="10,30", help="times (default 10,30)")
    parser.add_argument("--rates", default="5e-4,1e-3,2e-3", help="learning rates of the stock side")
    parser.add_argument("--rounds", type=int, default=5, help="short runs of each side that measure its speed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", help="a folder with BLiMP and tasks; by default only losses are compared")
    parser.add_argument("--tasks", default="blimp,sst2,cola", help="with --data (default blimp,sst2,cola)")
    parser.add_argument("--pairs_per_paradigm", type=int, help="of BLiMP")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of `equal_time.json`")
    args, overrides = parser.parse_known_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ours, followed = load_arms(args.recipes, overrides), load_arms([args.stock], overrides)[0]
    stock = {rate: stock_arm(followed, rate) for rate in map(float, args.rates.split(","))}
    minutes = sorted(map(float, args.minutes.split(",")))
    tasks = {"tasks": args.tasks.split(","), "data": args.data, "pairs_per_paradigm": args.pairs_per_paradigm}

    speed = speeds([next(iter(stock.values())), *ours], args.rounds, args.out / "speed")
    minute = args.tokens / speed["stock"]["tokens_per_second"] / minutes[-1]  # in seconds of this machine

    def runs(arm: Arm, time: float, name: str, seeds: Iterable[int]) -> list[dict]:
        mine = speed[arm.name]
        tokens = round(mine["tokens_per_second"] * (time * minute - mine["start_seconds"]))
        asked = tasks if args.data and time == minutes[-1] else {}
        return made(arm, f"{tokens}tokens", seeds, args.out / f"{time:g}min" / name, asked)

    tried = {rate: runs(arm, minutes[0], f"stock-{rate:g}", [0])[0]["held_out_loss"] for rate, arm in stock.items()}
    best = min(tried, key=tried.__getitem__)
    arms = {f"stock-{best:g}": stock[best], **{arm.name: arm for arm in ours}}
    times = {}
    for time in minutes:
        found = {arm.name: runs(arm, time, name, range(args.seeds)) for name, arm in arms.items()}
        times[f"{time:g}"] = {name: summary(one, found["stock"]) for name, one in found.items()}
    command = shlex.join(["python", "examples/equal_time.py", *sys.argv[1:]])
    result = {"command": command, "tokens": args.tokens, "seconds_a_minute": minute, "speeds": speed}
    result |= {"stock_rates": {f"{rate:g}": loss for rate, loss in tried.items()}, "minutes": times}
    write_json(args.out / "equal_time.json", result)
    print(f"{args.out / 'equal_time.json'}: {len(times)} times, {len(arms)} sides")


if __name__ == "__main__":
    main()
