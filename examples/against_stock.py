"""Compares this package's masked-LM pre-training with the stock one at equal wall-clock: loss, BLiMP, time to a loss.

    python examples/against_stock.py RECIPE.yaml [RECIPE.yaml ...] --budget 2min --out stock/ --data FOLDER_WITH_BLIMP

The stock side trains as `run_mlm.py` does (`Trainer`, `BertForMaskedLM` with its dropout of 0.1,
`DataCollatorForLanguageModeling`), with the optimizer settings of the first recipe and a learning rate that decays on
the same clock, so that it is at its best too; `--stock_learning_rate` gives it one of its own. The sides take turns.
Each run on a share of the budget decays on that share.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_effpt.comparison.arms import POINTS, Arm, common_budget, load_arms
from hf_effpt.comparison.experiment import write_report
from hf_effpt.comparison.run_grid import RECORD, SCORES, Run, claim, grid
from hf_effpt.comparison.run_launcher import Runner
from hf_effpt.comparison.run_worker import BUSY
from hf_effpt.comparison.summary import report
from hf_effpt.core.files import write_json
from hf_effpt.data.packing import PackedRows, facts
from hf_effpt.evaluation.held_out_loss import fixed_mask_batches, held_out_loss, unigram_floor
from hf_effpt.evaluation.suite import evaluate
from hf_effpt.preparation import prepare_data
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.energy import energy_entry
from hf_effpt.training.record import environment
from hf_effpt.training.timekeeping import Timekeeper

# Recipe settings that the stock side follows, or has nothing like, as `start`. Any other setting would make the sides
# differ in more than the trainer.
FOLLOWED = {
    "model": {"size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
              "max_position_embeddings", "attn_implementation", "objective", "dropout", "start"},
    "data": {"dataset", "text_column", "split", "streaming", "documents", "validation", "sequence_length",
             "mlm_probability", "tokenizer", "vocab_size", "tokenizer_kind", "lowercase", "strip_accents", "num_proc",
             "cache_dir"},
    "training": {"output_dir", "budget", "learning_rate", "per_device_train_batch_size", "adam_beta2", "adam_epsilon",
                 "weight_decay", "max_grad_norm", "bf16", "logging_steps", "report_to", "use_cpu", "disable_tqdm"},
}  # fmt: skip


class Sides(Runner):
    """Launches the stock side with this script and the other side as any comparison does."""

    def command(self, run: Run, request: Path) -> list[str]:
        own = [sys.executable, __file__, "--stock", str(request)]
        return own if run.arm == "stock" else super().command(run, request)


class Budget(TrainerCallback):
    """Ends a stock run when its budget is spent. Evaluations are not charged, as on the other side."""

    def __init__(self, timekeeper, tokens, flops, evaluate):
        self.timekeeper, self.tokens, self.flops, self.evaluate = timekeeper, tokens, flops, evaluate
        self.clock, self.history = timekeeper.clock, []

    def on_train_begin(self, *_, **__):
        self.timekeeper.start()

    def on_optimizer_step(self, *_, **__):
        """Advances the clock before the learning rate of the next step is set, as on the other side."""
        self.before = self.clock.fraction
        self.timekeeper.step(tokens=self.tokens, flops=self.flops)

    def on_step_end(self, _, state, control, **__):
        if self.clock.finished:
            control.should_training_stop = True
        elif int(self.clock.fraction * POINTS) > int(self.before * POINTS):
            self.note()

    def note(self):
        with self.timekeeper.paused():
            found = self.evaluate()
        totals = self.clock.as_dict() | {"clock": self.clock.fraction, "step": self.clock.steps}
        self.history.append({"eval_loss": found.total / found.masked, **totals})
        return found

    def rate(self, _, warm_up=0.06):
        """Returns the factor of the learning rate: linear warm-up and decay on the clock."""
        spent = self.clock.fraction
        return spent / warm_up if spent < warm_up else (1 - spent) / (1 - warm_up)


def train_stock(recipe: Recipe) -> None:
    """Pre-trains with the stock Trainer and saves the model with a `run.json` like that of this package."""
    args, folder = recipe.training, Path(recipe.training.output_dir)
    length, batch = recipe.data.sequence_length, args.per_device_train_batch_size
    _, tokenizer, rows = prepare_data(recipe)
    special = [tokenizer.all_special_ids]
    # run_mlm.py stores all the columns that the tokenizer returns
    train = rows["train"].map(
        lambda some: {
            "token_type_ids": [[0] * length for _ in some["input_ids"]],
            "attention_mask": [[1] * length for _ in some["input_ids"]],
            "special_tokens_mask": torch.isin(torch.tensor(some["input_ids"]), torch.tensor(special)).long().tolist(),
        },
        batched=True,
    )
    set_seed(args.seed)
    config = BertConfig(vocab_size=-(-len(tokenizer) // 64) * 64, **recipe.model.config_kwargs())
    model = BertForMaskedLM(config)
    budget = Budget(
        Timekeeper(args.clock, args.device, 1),
        batch * length,
        flops_of_a_step(config, batch, length),
        lambda: held_out_loss(model, fixed_mask_batches(rows["validation"], tokenizer, 64)),
    )
    stock = TrainingArguments(
        str(folder), max_steps=10**8, per_device_train_batch_size=batch, learning_rate=args.learning_rate,
        adam_beta2=args.adam_beta2, adam_epsilon=args.adam_epsilon, weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm, bf16=args.bf16, seed=args.seed, report_to="none", disable_tqdm=True,
        logging_strategy="no", save_strategy="no", dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=recipe.data.mlm_probability)
    trainer = Trainer(model, stock, train_dataset=train, data_collator=collator, callbacks=[budget])
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, budget.rate)
    trainer.train()
    budget.timekeeper.settle()
    found = budget.note()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    floor = unigram_floor(PackedRows(rows["train"]), found.label_counts, tokenizer.all_special_ids)
    loss = {"held_out_loss": found.total / found.masked, "masked_tokens": found.masked, "unigram_floor": floor}
    write_json(
        folder / RECORD,
        {
            "recipe": recipe.resolved(),
            "clock": budget.clock.as_dict(),
            "evaluation": loss,
            "history": budget.history,
            "learning_rate": {"peak": args.learning_rate, "final": trainer.lr_scheduler.get_last_lr()[0]},
            "energy": energy_entry(budget.clock, budget.timekeeper.energy, args.carbon_intensity, None),
            "data": facts(rows["train"]),
            "environment": environment(args.device),
        },
    )


def flops_of_a_step(config: BertConfig, batch: int, length: int) -> int:
    """Returns the FLOPs of forward and backward of the stock model, which computes logits at every position."""
    with torch.device("meta"):
        ghost = BertForMaskedLM._from_config(config, attn_implementation="eager")
        ids = torch.zeros(batch, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        ghost(input_ids=ids, labels=ids).loss.backward()
    return counter.get_total_flops()


def run_stock(request: dict) -> int:
    """Trains and evaluates a run of the stock side, unless another process is at work on it; returns the exit code."""
    folder = Path(request["recipe"]["training"]["output_dir"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            if not (folder / RECORD).is_file():
                train_stock(Recipe.load(request["recipe"]))
            if request["evaluation"]:
                found = evaluate(folder, **request["evaluation"])
                write_json(folder / SCORES, {"asked": request["evaluation"], **found})
    except Timeout:
        return BUSY
    return 0


def stock_arm(recipe: Arm, learning_rate: float | None = None) -> Arm:
    """The stock side that follows a recipe, at its learning rate or another; exits for a setting it cannot follow."""
    followed = recipe.sections
    for section, keys in followed.items():
        if other := sorted(set(keys or ()) - FOLLOWED.get(section, set())):
            sys.exit(f"The stock side does not follow `{section}.{other[0]}`; leave it out of the recipe")
    own = {key: value for key, value in (followed.get("model") or {}).items() if key != "start"}
    stock = {**followed, "model": own | {"dropout": 0.1}}
    if learning_rate is not None:
        stock["training"] = {**(followed.get("training") or {}), "learning_rate": learning_rate}
    return Arm("stock", stock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="recipes; the first is one of masked language modelling by a BERT")
    parser.add_argument("--stock_learning_rate", type=float, help="of the stock side (default: the first recipe's)")
    parser.add_argument("--budget", default="2min", help="wall-clock of each run (default 2min)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fractions", default="0.5,1", help="shares of the budget, each with its own runs")
    parser.add_argument("--data", help="a folder with BLiMP and tasks; by default only losses are compared")
    parser.add_argument("--tasks", default="blimp", help="with --data, scores to compare (default blimp)")
    parser.add_argument("--pairs_per_paradigm", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stock", type=Path, help=argparse.SUPPRESS)
    args, overrides = parser.parse_known_args()
    if args.stock:
        sys.exit(run_stock(json.loads(args.stock.read_text(encoding="utf-8"))))
    if not args.recipes or args.out is None:
        parser.error("a recipe and --out are needed")
    began = time.perf_counter()
    ours = load_arms(args.recipes, overrides)
    arms = [stock_arm(ours[0], args.stock_learning_rate), *ours]
    clock = common_budget(arms, args.budget)
    runs = grid(arms, clock, range(args.seeds), [float(share) for share in args.fractions.split(",")], args.out)
    claim(args.out, runs, clock)
    wanted = {"tasks": args.tasks.split(","), "data": args.data, "pairs_per_paradigm": args.pairs_per_paradigm}
    sides = Sides(wanted if args.data else {})
    failed = sides.make(runs)
    command = shlex.join(["python", "examples/against_stock.py", *sys.argv[1:]])
    found = report(arms, runs, clock, failed=failed, command=command, asked=sides.evaluation_of)
    write_report(found, args.out)
    for arm in found["arms"]:
        print(f"{arm['name']}: {arm['verdict']['text']} Speed-up: {arm['summary']['speed_up']}")
    print(f"{time.perf_counter() - began:.0f} s; the report is in {args.out}")


if __name__ == "__main__":
    main()
