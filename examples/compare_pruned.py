"""Compares a model that is trained with LayerDrop and then pruned with one of the small depth from scratch.

    python examples/compare_pruned.py RECIPE.yaml --depth 6 --p 0.5 --budget 90s --seeds 0 1 2 --out pruned/

Three runs per seed on one budget, each with a fully decayed learning rate: the recipe's model as it is, the same with
LayerDrop, and one of `--depth` layers. The deep models are then pruned to that depth by every strategy, and all are
measured on held-out text with fixed masks. Finished runs are not repeated, so seeds may be run in parallel and
summarized by a last call.
"""

import argparse
import json
import shlex
from dataclasses import asdict
from pathlib import Path

from kept_runs import is_kept
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_effpt import Recipe, pretrain
from hf_effpt.comparison.statistics import interval, paired
from hf_effpt.evaluation.held_out_loss import fixed_mask_batches, held_out_loss
from hf_effpt.evaluation.pruning import STRATEGIES, choose_layers
from hf_effpt.preparation import prepare_data


def train(recipe: str, out: Path, overrides: list[str]) -> None:
    fixed = ["--training.output_dir", str(out), "--training.save_strategy", "no", "--training.report_to", "none"]
    wanted = Recipe.load(recipe, [*overrides, *fixed])
    if not is_kept(out, wanted):
        pretrain(wanted)


def measure(args: argparse.Namespace, seed: int, given: list[str]) -> dict[str, float]:
    """Trains the models of one seed and returns the held-out loss of each, whole and pruned."""
    found = args.out / f"seed-{seed}" / "losses.json"
    common = [*given, "--training.budget", args.budget, "--training.seed", str(seed)]
    arms = {
        "layerdrop": [*common, "--methods.layerdrop.p", str(args.p)],
        "plain": common,
        "small": [*common, "--model.num_hidden_layers", str(args.depth)],
    }
    losses: dict[str, float] = {}
    for name, overrides in arms.items():
        train(args.recipe, args.out / f"seed-{seed}" / name, overrides)
    if found.is_file():
        return json.loads(found.read_text())
    for name, overrides in arms.items():
        folder = args.out / f"seed-{seed}" / name
        model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        _, _, rows = prepare_data(Recipe.load(args.recipe, overrides))
        held_out = list(fixed_mask_batches(rows["validation"], tokenizer, 64))

        def loss(model, held_out=held_out) -> float:
            found = held_out_loss(model, held_out)
            return found.total / found.masked

        losses[name] = loss(model)
        for strategy in STRATEGIES if name != "small" else ():
            # layers are chosen on training text, so that the held-out text only measures them
            kept = choose_layers(model, args.depth, strategy, rows=rows["train"], tokenizer=tokenizer)
            losses[f"{name}, {strategy}"] = loss(kept.apply(model))
            print(
                f"seed {seed}: {name} keeps {kept.kept} by {strategy}: {losses[f'{name}, {strategy}']:.3f}", flush=True
            )
    found.write_text(json.dumps(losses, indent=2))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="of the deep model, without methods")
    parser.add_argument("--depth", type=int, default=6, help="layers to keep (default 6)")
    parser.add_argument("--p", type=float, default=0.5, help="of LayerDrop; best is 1 - depth / layers (default 0.5)")
    parser.add_argument("--budget", default="90s", help="of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and `pruned.json`")
    args, given = parser.parse_known_args()
    by_seed = {seed: measure(args, seed, given) for seed in args.seeds}
    results = {}
    for name in next(iter(by_seed.values())):
        values = {seed: losses[name] for seed, losses in by_seed.items()}
        against = {seed: losses["small"] for seed, losses in by_seed.items()}
        mean, difference = interval(list(values.values())), paired(values, against)
        results[name] = {
            "held_out_loss": mean and asdict(mean),
            "difference_to_small": (difference and name != "small" and asdict(difference)) or None,
        }
        gap = results[name]["difference_to_small"]
        print(
            f"{name:28} {mean.mean:.4f}"
            + (f"  {gap['mean']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f})" if gap else "")
        )
    words = ["--depth", str(args.depth), "--p", str(args.p), "--budget", args.budget]
    words += ["--seeds", *map(str, args.seeds), "--out", args.out.name, *given]
    command = shlex.join(["python", "examples/compare_pruned.py", Path(args.recipe).name, *words])
    (args.out / "pruned.json").write_text(json.dumps({"command": command, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
