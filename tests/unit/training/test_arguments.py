import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.training.arguments import EffptTrainingArguments
from hf_effpt.training.checks import check_arguments
from tests import tiny


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": "10min", "max_steps": 5}, "Both `budget`"),
        ({"budget": "ten"}, "Cannot read the budget"),
        ({"learning_rate": 0.0}, "`training.learning_rate` must be above 0"),
        ({"per_device_train_batch_size": 0}, "`training.per_device_train_batch_size` must be above 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"budget": "10min", "warmup_steps": 100}, "must be a share of the budget"),
        ({"budget": "10steps", "warmup_steps": 10}, "leaves nothing"),
        ({"warmup_steps": -1}, "`training.warmup_steps` must be between"),
        ({"budget": "10min", "logging_steps": 0.1}, "leaves open"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "cannot follow a budget"),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 1}},
            "does not suit `cosine`: .*num_cycle",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "does not suit `cosine_with_min_lr`: .*min_lr"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 5}}, "does not suit `polynomial`"),
        ({"learning_rate": float("inf")}, "`training.learning_rate` must be between"),
        ({"weight_decay": float("nan")}, "`training.weight_decay` must be between"),
        ({"max_grad_norm": -1}, "`training.max_grad_norm` must be between"),
        ({"adam_beta2": 1.5}, "`training.adam_beta2` must be between"),
        ({"seed": -1}, "`training.seed` must be between"),
        ({"dataloader_num_workers": -1}, "`training.dataloader_num_workers` must be between"),
        ({"save_steps": 0}, "`training.save_steps` must be between"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(tmp_path, changes, words):
    with pytest.raises(EffptError, match=words):
        tiny.arguments(tmp_path, **changes)


def test_clock_is_the_budget_or_the_number_of_steps(tmp_path):
    assert tiny.arguments(tmp_path, budget="2h").clock.budget == 7200
    assert tiny.arguments(tmp_path, budget=None, max_steps=9).clock.unit == "steps"
    assert tiny.arguments(tmp_path, budget=None, num_train_epochs=2).clock is None


def test_an_optimizer_whose_package_is_missing_is_one_line_before_training(tmp_path, monkeypatch):
    def missing(args, model=None):
        raise ImportError("You need to install `apollo_torch`.\nSee its page.")

    monkeypatch.setattr("transformers.Trainer.get_optimizer_cls_and_kwargs", missing)
    with pytest.raises(
        EffptError, match=r"`adamw_torch` cannot be made: You need to install `apollo_torch`\. Install"
    ):
        tiny.trainer(tmp_path, optim="adamw_torch")


def test_processes_that_do_not_know_each_other_are_refused(tmp_path, monkeypatch):
    args = tiny.arguments(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_arguments(args)  # as a scheduler may set it for one process
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(EffptError, match=r"one of 2 processes, .* with `training.use_cpu: true` only") as found:
        check_arguments(args)
    assert "\n" not in str(found.value)


def test_reference_time_of_several_processes_is_refused_at_construction(tmp_path, monkeypatch):
    monkeypatch.setattr(EffptTrainingArguments, "world_size", property(lambda args: 2))
    with pytest.raises(EffptError, match="counts the operations of one process, not of 2; start one, or give tokens"):
        tiny.trainer(tmp_path, budget="10min_rst")
