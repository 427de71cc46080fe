"""Compares a large model that is compressed in mid-run with the small shape from scratch and with a random cut.

    python examples/compare_compressed.py RECIPE.yaml --depth 3 --ffn_keep 0.75 --budget 90s --seeds 0 1 2 --out DIR/

Four runs per seed on one budget, each with a fully decayed learning rate: the recipe's model compressed by importance;
the same cut at random; a model of exactly the compressed shape from scratch; and the recipe's model left whole. The
last is also measured with less memory: with its smallest weights set to zero, as many as the compression removes, and
with int8 weights. All losses are on held-out text with fixed masks; latency is measured in turns for the four.
Finished runs are not repeated, so seeds may be run in parallel (`--only_train`) and summarized by a last call. Other
flags change the recipe.
"""

import argparse
import json
import shlex
from pathlib import Path

from frontier import COMPRESSED, LARGE, RANDOM, SMALL, frontier, plot, table
from kept_runs import is_kept
from latency import latency
from memory_baselines import in_int8, sparse_bytes, stored_bytes, with_zeros
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_effpt import Recipe, pretrain
from hf_effpt.comparison.plots import require_plotting
from hf_effpt.core.width import resize, widths_of
from hf_effpt.evaluation.held_out_loss import fixed_mask_batches, held_out_loss
from hf_effpt.preparation import prepare_data
from hf_effpt.pretraining import build_trainer

CUT = ("depth", "head_keep", "ffn_keep", "at", "rounds", "importance")


def train(args: argparse.Namespace, folder: Path, flags: list[str], widths: list | None = None) -> None:
    """Trains one model; if `widths` is given, its layers have these numbers of heads and neurons from the start."""
    fixed = ["--training.output_dir", str(folder), "--training.save_strategy", "no", "--training.report_to", "none"]
    recipe = Recipe.load(args.recipe, [*flags, *fixed])
    if is_kept(folder, recipe):
        return
    if widths is None:
        pretrain(recipe)
        return
    _, tokenizer, rows = prepare_data(recipe)
    trainer = build_trainer(recipe, tokenizer, rows)
    trainer.facts = {"recipe": recipe.resolved()}
    resize(trainer.model.backbone, widths)  # there is no optimizer yet
    trainer.train()
    trainer.evaluate()
    trainer.save_model()


def measure(args: argparse.Namespace, seed: int, given: list[str]) -> None:
    """Trains the models of one seed and measures all but their latency."""
    folder = args.out / f"seed-{seed}"
    common = [*given, "--training.budget", args.budget, "--training.seed", str(seed)]
    cut = [word for key in CUT if (value := getattr(args, key)) is not None
           for word in (f"--methods.compress.{key}", str(value))]  # fmt: skip
    train(args, folder / COMPRESSED, [*common, *cut])
    train(args, folder / RANDOM, [*common, *cut, "--methods.compress.importance", "random"])
    train(args, folder / LARGE, common)
    widths = widths_of(load(folder / COMPRESSED).base_model)
    train(args, folder / SMALL, [*common, "--model.num_hidden_layers", str(len(widths))], widths)
    if (folder / "points.json").is_file():
        return
    models = {name: load(folder / name) for name in (COMPRESSED, RANDOM, SMALL, LARGE)}
    points = {name: {"bytes": stored_bytes(model)} for name, model in models.items()}
    zeros = with_zeros(models[LARGE], models[COMPRESSED].num_parameters())
    models |= {"large, with zeros": zeros, "large, int8": in_int8(models[LARGE])}
    points |= {"large, with zeros": {"bytes": sparse_bytes(zeros)}}
    points |= {"large, int8": {"bytes": stored_bytes(models["large, int8"])}}
    recipe, tokenizer = Recipe.load(args.recipe, common), AutoTokenizer.from_pretrained(folder / LARGE)
    held_out = list(fixed_mask_batches(prepare_data(recipe)[2]["validation"], tokenizer, 64))
    for name, model in models.items():
        found = held_out_loss(model, held_out)
        of = COMPRESSED if name == "large, with zeros" else LARGE if name == "large, int8" else name
        points[name] |= {"held_out_loss": found.total / found.masked, "parameters": models[of].num_parameters()}
        print(f"seed {seed}: {name} {points[name]}", flush=True)
    (folder / "points.json").write_text(json.dumps(points, indent=2))


def load(folder: Path):
    return AutoModelForMaskedLM.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="of the large model, without methods")
    parser.add_argument("--depth", type=int, help="layers to keep")
    parser.add_argument("--head_keep", type=float, help="share of heads to keep")
    parser.add_argument("--ffn_keep", type=float, help="share of neurons to keep")
    parser.add_argument("--at", type=float, help="fraction of the budget at which the model is cut (default 0.7)")
    parser.add_argument("--rounds", type=int, help="number of cuts (default 1)")
    parser.add_argument("--importance", choices=("michel", "gates", "magnitude"), help="default michel")
    parser.add_argument("--budget", default="90s", help="of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only_train", action="store_true", help="do not measure latency nor write the summary")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the runs, `frontier.json` and `frontier.png`"
    )
    args, given = parser.parse_known_args()
    require_plotting()
    if cutting := {"compress", "earlybert", "lottery"} & set(Recipe.load(args.recipe, given).methods):
        parser.error(f"the recipe is that of the large model, without {', '.join(cutting)}")
    for seed in args.seeds:
        measure(args, seed, given)
    if args.only_train:
        return
    folders = {seed: args.out / f"seed-{seed}" for seed in args.seeds}
    points = {seed: json.loads((folder / "points.json").read_text()) for seed, folder in folders.items()}
    timed = {
        (name, seed): load(folders[seed] / name) for seed in args.seeds for name in (COMPRESSED, RANDOM, SMALL, LARGE)
    }
    length = Recipe.load(args.recipe, given).data.sequence_length
    for (name, seed), found in latency(timed, length).items():
        points[seed][name] |= {f"latency_{size}": each.median for size, each in found.items()}
    names = list(points[args.seeds[0]])
    found = frontier({name: {seed: points[seed][name] for seed in args.seeds} for name in names})
    words = [word for key in (*CUT, "budget") if (value := getattr(args, key)) is not None
             for word in (f"--{key}", str(value))]  # fmt: skip
    words += ["--seeds", *map(str, args.seeds), "--out", args.out.name, *given]
    command = shlex.join(["python", "examples/compare_compressed.py", Path(args.recipe).name, *words])
    (args.out / "frontier.json").write_text(json.dumps({"command": command, **found}, indent=2) + "\n")
    plot(found, args.out / "frontier.png")
    print(table(found))


if __name__ == "__main__":
    main()
