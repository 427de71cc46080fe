"""Measures in how little time a recipe has the loss that the stock way has after half an hour of one core.

    python examples/time_to_stock.py tiny.yaml fast_tiny.yaml --tokens 4.4e6 --out half_hour/

The first recipe gives the stock side its size and optimizer, as in `against_stock.py`; the other is measured. Stock's
budget is counted in tokens, so that a busy machine does it no harm: as many as it sees in half an hour (`--speed`
measures it). It trains at each learning rate on a third of them, and at the best on all, with every seed. The recipe
then trains for some seconds, a run for each budget and seed, in turn with as many seconds of stock, which say how fast
stock is at that moment: these need an idle machine. Finished runs are not repeated.
"""

import argparse
import os
import shlex
import statistics
import sys
from pathlib import Path

from against_stock import Sides, stock_arm

from hf_effpt.comparison.arms import Arm, load_arms
from hf_effpt.comparison.run_grid import Run, grid
from hf_effpt.core.clock import Clock
from hf_effpt.core.files import write_json


def made(arms: list[Arm], budget: str, seeds: list[int], out: Path) -> list[Run]:
    """Makes the runs of some arms on one budget; exits if one fails."""
    runs = grid(arms, Clock.parse(budget), seeds, [1.0], out)
    if failed := Sides({}).make(runs):
        sys.exit("\n".join(f"{run.arm}, seed {run.seed}: {fault}" for run, fault in failed.items()))
    return runs


def facts(run: Run) -> dict:
    """Seed, loss, and what a run has spent."""
    record = run.record() or {}
    loss = record["evaluation"]
    return {
        "seed": run.seed,
        "learning_rate": record["recipe"]["training"]["learning_rate"],
        "held_out_loss": loss["held_out_loss"],
        "unigram_floor": loss["unigram_floor"],
        "clock": record["clock"],
        "curve": [[one["tokens"], one["eval_loss"]] for one in record["history"] if "eval_loss" in one],
    }


def best_stock(recipe: Arm, rates: list[float], seeds: list[int], tokens: float, out: Path) -> tuple[Arm, list[dict]]:
    """Trains the stock side at each rate on a third of the tokens, and at the best on all; returns arm and runs."""
    arms = {rate: stock_arm(recipe, rate) for rate in rates}
    if len(rates) == 1:  # chosen before
        return arms[rates[0]], [
            facts(run) for run in made([*arms.values()], f"{tokens:g}tokens", seeds, out / "whole")
        ]
    third = f"{tokens / 3:g}tokens"
    tried = {rate: facts(*made([arm], third, seeds[:1], out / f"third-{rate:g}")) for rate, arm in arms.items()}
    best = min(rates, key=lambda rate: tried[rate]["held_out_loss"])
    return arms[best], [*tried.values(), *map(facts, made([arms[best]], f"{tokens:g}tokens", seeds, out / "whole"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs=2, help="a BERT's, which stock follows, and the one that is measured")
    parser.add_argument("--tokens", type=float, help="of the stock side: what it sees in half an hour")
    parser.add_argument("--speed", action="store_true", help="only print how many those are on this machine")
    parser.add_argument("--rates", default="5e-4,1e-3,2e-3", help="learning rates of the stock side")
    parser.add_argument("--seconds", default="30,45,60,90", help="budgets of the recipe")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of `time_to_stock.json`")
    args, overrides = parser.parse_known_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    follows, ours = load_arms(args.recipes, overrides)
    if args.speed:
        (run,) = made([stock_arm(follows)], "60s", [0], args.out / "speed")
        spent = facts(run)["clock"]
        sys.exit(print(f"{1800 * spent['tokens'] / spent['seconds']:.3g} tokens in half an hour"))
    if not args.tokens:
        parser.error("--tokens is needed; --speed says how many")
    seeds = list(range(args.seeds))
    rates = [float(rate) for rate in args.rates.split(",")]
    stock, trained = best_stock(follows, rates, seeds, args.tokens, args.out / "stock")
    timed = []
    for budget in map(float, args.seconds.split(",")):
        runs = made([stock, ours], f"{budget:g}s", seeds, args.out / "timed" / f"{budget:g}")
        timed.append(
            {"seconds": budget} | {arm.name: [facts(r) for r in runs if r.arm == arm.name] for arm in (stock, ours)}
        )
    speeds = [run["clock"]["tokens"] / run["clock"]["seconds"] for one in timed for run in one[stock.name]]
    result = {
        "command": shlex.join(["python", "examples/time_to_stock.py", *sys.argv[1:]]),
        "tokens": args.tokens,
        "stock_seconds": args.tokens / statistics.median(speeds),
        "stock": trained,
        "timed": timed,
    }
    write_json(args.out / "time_to_stock.json", result)
    print(f"{args.out / 'time_to_stock.json'}: stock takes {result['stock_seconds']:.0f} s")


if __name__ == "__main__":
    main()
