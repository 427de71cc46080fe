"""Compares models that go on with the text of a domain with the same models as they were.

    python examples/compare_adapted.py BASE [BASE ...] --domain DOMAIN/ --general HELD_OUT --task TASK/ \\
        --budget 4e6tokens --add_tokens 1000 --out DIR/

`BASE` are finished runs, one a seed. Each is measured as it is, after `--budget` on the text of the domain, and after
the same budget with new words of the domain in its vocabulary; and a model of its shape and its vocabulary is trained
on that text from scratch. All are measured by their loss on held-out text of the domain and of the text that they come
from, and by fine-tuning on the task. Losses are in nats a byte of text (loss a masked token by tokens a byte), since a
token is longer where words are new. Finished runs and measurements are not repeated. Other flags change the recipe.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from kept_runs import is_kept
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_effpt import Recipe, evaluate, pack, pretrain
from hf_effpt.comparison.statistics import interval, paired
from hf_effpt.data.corpus import open_corpus
from hf_effpt.data.packing import facts
from hf_effpt.evaluation.held_out_loss import fixed_mask_batches, held_out_loss

UNCHANGED = "unchanged"


def train(base: Path, out: Path, args: argparse.Namespace, *flags: str) -> Path:
    """Trains one model on the domain's text, unless `out` holds it already, and returns `out`."""
    fixed = ["--training.output_dir", str(out), "--training.save_strategy", "no", "--training.report_to", "none"]
    words = ["--data.dataset", args.domain, "--data.validation", args.domain, "--training.budget", args.budget]
    recipe = Recipe.load({}, [*words, *flags, *args.flags, *fixed])
    if not is_kept(out, recipe):
        pretrain(recipe)
    return out


def nats_a_byte(model: AutoModelForMaskedLM, tokenizer: AutoTokenizer, text: str) -> float:
    """Held-out loss with fixed masks on a text, by its masked token, times the tokens that the text has a byte."""
    rows = pack(open_corpus(text, split="validation"), tokenizer, validation=None)["train"]
    found, known = held_out_loss(model, fixed_mask_batches(rows, tokenizer, 64)), facts(rows)
    return found.total / found.masked * known["tokens"] / known["bytes"]


def measure(folder: Path, out: Path, args: argparse.Namespace) -> dict[str, float]:
    """Measures one model and keeps the scores in the file `out`."""
    if not out.is_file():
        model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        scores = {
            "domain": nats_a_byte(model, tokenizer, args.domain),
            "general": nats_a_byte(model, tokenizer, args.general),
        }
        found = evaluate(folder, args.task, seeds=args.task_seeds)["scores"]
        scores |= {name: score["value"] for name, score in found.items()}
        out.write_text(json.dumps(scores, indent=2))
    return json.loads(out.read_text())


def arms(base: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Trains and measures the models of one base, with its seed."""
    known = json.loads((base / "run.json").read_text()).get("recipe")
    if known is None:
        raise SystemExit(f"{base} is no run of a recipe; make it by `effpt pretrain`")
    shape, seed = known["model"], str(known["training"]["seed"])
    out = args.out / f"seed-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    going_on = ["--model", json.dumps({"from": str(base)}), "--training.seed", seed]
    again = ["--model", json.dumps(shape), "--data.tokenizer", str(base), "--training.seed", seed]
    models = {
        UNCHANGED: base,
        "from scratch": train(base, out / "scratch", args, *again),
        "adapted": train(base, out / "adapted", args, *going_on),
    }
    if args.add_tokens:
        words = ["--data.add_tokens", str(args.add_tokens)]
        models["adapted, new words"] = train(base, out / "words", args, *going_on, *words)
    return {name: measure(folder, out / f"{name}.json", args) for name, folder in models.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="+", type=Path, help="folders of finished runs, one a seed")
    parser.add_argument("--domain", required=True, help="text of the domain with a validation split")
    parser.add_argument("--general", required=True, help="held-out text like that of the bases")
    parser.add_argument("--task", required=True, help="a task of the domain, as `effpt evaluate --tasks` takes it")
    parser.add_argument("--task_seeds", type=int, default=3, help="of fine-tuning, for each model (default 3)")
    parser.add_argument("--budget", default="4e6tokens", help="of each run on the domain (default 4e6tokens)")
    parser.add_argument("--add_tokens", type=int, help="number of new words of the domain")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and `adapted.json`")
    args, args.flags = parser.parse_known_args()
    by_base = {index: arms(base, args) for index, base in enumerate(args.bases)}
    results: dict[str, dict[str, dict]] = {}
    for name, found in by_base[0].items():
        for score in found:
            values = {index: models[name][score] for index, models in by_base.items()}
            against = {index: models[UNCHANGED][score] for index, models in by_base.items()}
            mean, difference = interval(list(values.values())), paired(values, against)
            known = results.setdefault(name, {})[score] = {
                "value": mean and asdict(mean),
                "difference": (difference and name != UNCHANGED and asdict(difference)) or None,
            }
            gap = known["difference"]
            print(f"{name:20} {score:28} {mean.mean:.4f}"
                  + (f"  {gap['mean']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f})" if gap else ""))  # fmt: skip
    command = shlex.join(["python", "examples/compare_adapted.py", *sys.argv[1:]])
    (args.out / "adapted.json").write_text(json.dumps({"command": command, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
