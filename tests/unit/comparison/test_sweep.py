"""`budget_sweep` with a clock that goes by what a step computes, in this process."""

import json
import random

import pytest

from hf_effpt.comparison import sweep as sweeping
from hf_effpt.comparison.run_launcher import Runner
from hf_effpt.comparison.run_worker import run as work
from hf_effpt.comparison.sweep import budget_sweep, check_run
from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.training.timekeeping import Timekeeper

from .records import BUDGET, entry

SPEED = 2e9  # FLOPs a second of the stubbed clock
SMALL = {"name": "narrow", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}


@pytest.fixture
def recipe(tmp_path, monkeypatch, undrawn):
    generator = random.Random(0)
    words = [f"word{number}" for number in range(60)]
    (tmp_path / "text").mkdir()
    for number in range(20):
        text = " ".join(generator.choices(words, k=300))
        (tmp_path / "text" / f"{number}.txt").write_text(text, encoding="utf-8")

    def step(self, *, tokens, flops, reference_seconds=None):
        self.clock.tick(tokens=tokens, flops=flops, seconds=flops / SPEED)
        return flops / SPEED

    monkeypatch.setattr(Timekeeper, "step", step)
    monkeypatch.setattr(Timekeeper, "settle", lambda self: 0.0)
    monkeypatch.setattr(
        Runner, "_run", lambda self, run, gpu, progress: work({"recipe": run.recipe.resolved(), "evaluation": {}})
    )
    return {
        "model": {"size": "tiny", "num_attention_heads": 1},
        "data": {
            "dataset": str(tmp_path / "text"),
            "sequence_length": 32,
            "vocab_size": 256,
            "validation": 0.1,
            "cache_dir": str(tmp_path / "cache"),
        },
        "training": {
            "budget": "1s",
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3,
            "logging_steps": 1,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
        },
    }


def test_each_size_has_its_own_steps_and_a_fully_decayed_rate(tmp_path, recipe):
    out = tmp_path / "sweep"
    found = budget_sweep(recipe, [SMALL, "2x128"], out, command="me")
    rows = {row["name"]: row for row in found["sizes"]}
    records = {name: json.loads((tmp_path / rows[name]["folders"][0] / "run.json").read_text()) for name in rows}
    assert rows["narrow"]["steps"] > 4 * rows["2x128"]["steps"] > 10
    for name, record in records.items():
        assert record["clock"]["seconds"] == pytest.approx(1.0, rel=0.05)
        assert record["learning_rate"]["final"] == rows[name]["final_learning_rate"] == 0.0
        rates = [point["learning_rate"] for point in record["history"] if "learning_rate" in point]
        assert 2e-3 < max(rates) <= 3e-3
        assert len(rates) == rows[name]["steps"]
    assert rows["narrow"]["parameters"] < rows["2x128"]["parameters"]
    assert rows["narrow"]["tokens_per_second"] > 4 * rows["2x128"]["tokens_per_second"]
    losses = [row["held_out_loss"]["mean"] for row in found["sizes"]]
    assert losses == sorted(losses)
    assert found["best"] == found["sizes"][0]["name"]
    assert found["cost"]["seconds"] == pytest.approx(2.0, rel=0.05)
    assert json.loads((out / "sweep.json").read_text()) == found
    assert (out / "sweep.md").read_text().splitlines()[2].startswith(f"| {found['best']} | ")
    assert budget_sweep(recipe, [SMALL, "2x128"], out, command="me") == found  # finished runs are kept


def test_the_lowest_loss_is_picked_whatever_the_order(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(sweeping, "check_run", lambda *_: None)
    shapes = [SMALL, {**SMALL, "name": "other"}]
    folders = tmp_path / "sweep" / "runs"
    for name, loss in (("narrow", 5.2), ("other", 5.1)):
        folder = folders / name / "seed-0" / "budget-1"
        folder.mkdir(parents=True)
        record = {"evaluation": {"held_out_loss": loss, "objective": "mlm"}, "model": {"parameters": 7}}
        clock = {"steps": 9, "tokens": 90, "seconds": 3.0, "flops": 1.0}
        record |= {"clock": clock, "learning_rate": {"peak": 1e-3, "final": 0.0}}
        (folder / "run.json").write_text(json.dumps(record))
    (tmp_path / "sweep" / "plan.json").write_text(json.dumps({"budget": "1.0seconds", "arms": {}}))
    found = budget_sweep(recipe, shapes, tmp_path / "sweep")
    assert found["best"] == "other"
    assert [row["tokens_per_second"] for row in found["sizes"]] == [30.0, 30.0]
    assert found["cost"]["seconds"] == 6.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_learning_rate": 3e-5}, "ended at 3e-05, not at 0.0, the end of its schedule"),
        ({"clock": {"seconds": 1.2 * BUDGET}}, "spent 1.200 of the budget"),
        ({"clock": {"seconds": 0.8 * BUDGET}}, "spent 0.800 of the budget"),
        ({"state": "failed", "note": "out of memory"}, r"is failed \(out of memory\)"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(changes, message):
    clock = Clock("seconds", BUDGET)
    check_run("6x128", entry(0, 5.0), clock, 0.0, 0.05)
    with pytest.raises(EffptError, match=message):
        check_run("6x128", entry(0, 5.0, **changes), clock, 0.0, 0.05)


@pytest.mark.parametrize(
    ("sizes", "changes", "message"),
    [
        (["2x128"], {}, "takes at least two"),
        (["2x128", "huge"], {}, "There is no size 'huge'; name one of tiny"),
        (["2x128", "2x128"], {}, "Two arms are called"),
        (["2x128", "4x128"], {"objective": "electra"}, "whose loss depends on a generator"),
    ],
)
def test_impossible_sweeps_are_refused(tmp_path, recipe, sizes, changes, message):
    with pytest.raises(EffptError, match=message):
        budget_sweep({**recipe, "model": changes}, sizes, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_schedule_with_a_least_rate_ends_there(tmp_path, recipe):
    changes = [
        "--training.lr_scheduler_type",
        "cosine_with_min_lr",
        "--training.lr_scheduler_kwargs",
        '{"min_lr": 3e-4}',
    ]
    found = budget_sweep(recipe, [SMALL, {**SMALL, "name": "deeper", "num_hidden_layers": 3}], tmp_path / "sweep",
                         overrides=[*changes, "--training.budget", "2e8flops"], tolerance=0.5)  # fmt: skip
    assert {row["final_learning_rate"] for row in found["sizes"]} == {3e-4}


@pytest.mark.parametrize("budget", ["6steps", "1e4tokens"])
def test_budgets_that_say_nothing_of_costs_are_refused(tmp_path, recipe, budget):
    with pytest.raises(EffptError, match=f"The budget {budget} is .*give time"):
        budget_sweep(recipe, [SMALL, "2x128"], tmp_path / "sweep", budget=budget)
    assert not (tmp_path / "sweep").exists()


def test_settings_of_a_size_change_those_of_the_recipe():
    recipe = {"model": {"size": "base", "num_attention_heads": 6, "dropout": 0.1}}
    arm = sweeping._arm(recipe, {"name": "shallow", "num_hidden_layers": 6})
    assert arm["model"] == {"size": "base", "num_attention_heads": 6, "num_hidden_layers": 6, "dropout": 0.1}
    assert sweeping._arm(recipe, "mini")["model"] == {"size": "mini", "dropout": 0.1}
