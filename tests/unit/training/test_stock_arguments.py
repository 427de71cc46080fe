"""Every field of the training arguments works as in the stock Trainer, or is refused; two tables say which."""

from dataclasses import fields

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.core.settings import plain
from hf_effpt.training.arguments import EffptTrainingArguments
from hf_effpt.training.stock_arguments import LAUNCHED, REFUSED
from tests import tiny

# Every field that works, with a value to try and the settings that it needs.
WORKS = {
    "output_dir": ("elsewhere", {}),
    "per_device_train_batch_size": (2, {}),
    "num_train_epochs": (2.0, {"budget": None}),
    "max_steps": (3, {"budget": None}),
    "learning_rate": (2e-3, {}),
    "lr_scheduler_type": ("cosine", {}),
    "lr_scheduler_kwargs": ({"num_cycles": 0.5}, {"lr_scheduler_type": "cosine"}),
    "warmup_steps": (2, {}),
    "optim": ("adamw_torch", {}),
    "optim_args": ("momentum=0.9", {"optim": "muon"}),
    "optim_target_modules": (["attention"], {"optim": "galore_adamw"}),
    "weight_decay": (0.1, {}),
    "adam_beta1": (0.8, {}),
    "adam_beta2": (0.9, {}),
    "adam_epsilon": (1e-6, {}),
    "gradient_accumulation_steps": (2, {}),
    "average_tokens_across_devices": (False, {}),
    "max_grad_norm": (1.0, {}),
    "label_smoothing_factor": (0.1, {}),
    "bf16": (True, {}),
    "fp16": (False, {}),  # on a GPU only
    "tf32": (False, {}),
    "activation_checkpointing": (True, {}),
    "activation_checkpointing_kwargs": ({"use_reentrant": False}, {}),
    "gradient_checkpointing": (False, {}),
    "gradient_checkpointing_kwargs": (None, {}),
    "neftune_noise_alpha": (5.0, {}),
    "torch_empty_cache_steps": (1, {}),
    "logging_strategy": ("epoch", {}),
    "logging_steps": (2, {}),
    "logging_first_step": (True, {}),
    "log_on_each_node": (False, {}),
    "logging_nan_inf_filter": (True, {}),
    "include_num_input_tokens_seen": ("all", {}),
    "log_level": ("error", {}),
    "log_level_replica": ("error", {}),
    "disable_tqdm": (True, {}),
    "report_to": ([], {}),
    "run_name": ("first", {}),
    "project": ("mine", {}),
    "trackio_space_id": ("me/space", {}),
    "trackio_bucket_id": ("me/bucket", {}),
    "trackio_static_space_id": ("me/static", {}),
    "eval_strategy": ("epoch", {}),
    "eval_steps": (2, {"eval_strategy": "steps"}),
    "eval_delay": (3, {"eval_strategy": "steps", "eval_steps": 2}),
    "per_device_eval_batch_size": (5, {}),
    "prediction_loss_only": (True, {}),
    "eval_on_start": (True, {}),
    "eval_do_concat_batches": (False, {}),
    "eval_use_gather_object": (True, {}),
    "eval_accumulation_steps": (1, {}),
    "include_for_metrics": (["loss"], {}),
    "batch_eval_metrics": (True, {}),
    "save_strategy": ("epoch", {}),
    "save_steps": (4, {"save_strategy": "steps"}),
    "save_on_each_node": (True, {}),
    "save_total_limit": (1, {}),
    "push_to_hub": (False, {}),
    "hub_token": ("hf_secret", {}),
    "hub_private_repo": (True, {}),
    "hub_model_id": ("me/model", {}),
    "hub_revision": ("next", {}),
    "load_best_model_at_end": (True, {"eval_strategy": "epoch", "save_strategy": "epoch"}),
    "metric_for_best_model": ("accuracy", {}),
    "greater_is_better": (True, {"metric_for_best_model": "accuracy"}),
    "full_determinism": (True, {}),
    "seed": (8, {}),
    "data_seed": (8, {}),
    "use_cpu": (True, {}),
    "dataloader_num_workers": (1, {}),
    "dataloader_pin_memory": (False, {}),
    "dataloader_prefetch_factor": (3, {"dataloader_num_workers": 1}),
    "dataloader_multiprocessing_context": ("fork", {"dataloader_num_workers": 1}),
    "remove_unused_columns": (False, {}),
    "label_names": (["labels"], {}),
    "ddp_find_unused_parameters": (True, {}),
    "ddp_bucket_cap_mb": (10, {}),
    "ddp_broadcast_buffers": (True, {}),
    "ddp_static_graph": (False, {}),
    "ddp_backend": (None, {}),  # in a process group only
    "ddp_timeout": (60, {}),
    "debug": ("underflow_overflow", {}),
    "skip_memory_metrics": (False, {}),
    # For scripts to read; the stock Trainer ignores them too.
    "do_train": (True, {}),
    "do_eval": (True, {}),
    "do_predict": (True, {}),
    "local_rank": (0, {}),
    # Of this package.
    "budget": ("9steps", {}),
    "compile_layers": (True, {}),
    "reference_times": ("times.json", {"budget": "10min_rst"}),
    "charge_methods": (False, {}),
    "bias_correction": (False, {}),
    "decay_all": (True, {}),
    "multiply_warmup": (True, {}),
    "branches": ([0.5], {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 0.1}),
    "batch_ramp": ({0.0: 2, 0.5: 4}, {}),
    "max_skipped_steps": (3, {}),
    "average": ({"kind": "ema"}, {}),
    "carbon_intensity": (100.0, {}),
}
NEWER = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # than the oldest transformers supported
WRONG = {  # of the fields that are refused, the values that no other than `True` has
    "accelerator_config": {"split_batches": True},
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "fsdp": "full_shard",
    "fsdp_config": {"xla": True},
    "hub_strategy": "all_checkpoints",
    "ignore_data_skip": False,
    "dataloader_in_order": False,
    "length_column_name": "size",
    "liger_kernel_config": {"rope": True},
    "resume_from_checkpoint": "checkpoint-4",
    "torch_compile_backend": "eager",
    "torch_compile_mode": "default",
    "train_sampling_strategy": "group_by_length",
}


def test_every_field_is_in_one_table():
    """A field that a new release of Transformers brings has to be tried, and then named in one of the two."""
    names = {field.name for field in fields(EffptTrainingArguments)}
    assert names <= WORKS.keys() | REFUSED.keys()
    assert not WORKS.keys() & REFUSED.keys()
    assert (WORKS.keys() | REFUSED.keys()) - names <= NEWER


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_what_works_is_taken_as_given(tmp_path):
    names = {field.name for field in fields(EffptTrainingArguments)}
    for name, (value, needed) in WORKS.items():
        if name in names:
            args = tiny.arguments(tmp_path, **{**needed, name: value})
            assert plain(getattr(args, name)) == value or name == "debug", name


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_work_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(EffptError, match=rf"^`training\.{name}[^`]*` is not supported: .*") as found:
        tiny.arguments(tmp_path, **{name: WRONG.get(name, True)})
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fp16": True}, "needs a GPU"),
        ({"log_level": "loud"}, "`training.log_level` 'loud' is none of detail, debug"),
        ({"dataloader_multiprocessing_context": "thread"}, "is none of fork, spawn"),
        ({"logging_strategy": "foo"}, "foo is not a valid IntervalStrategy"),
        ({"torch_empty_cache_steps": 0}, "`torch_empty_cache_steps` must be"),
        ({"load_best_model_at_end": True, "save_strategy": "best"}, "`training.eval_strategy` is `no`"),
        ({"optim_target_modules": ["attention"]}, "only with `optim` GaLore or Apollo"),
        ({"accelerator_config": {"dispatch_batches": True}}, r"`training.accelerator_config.dispatch_batches` is not"),
    ],
)
def test_values_that_the_stock_class_or_the_machine_refuses_are_one_line(tmp_path, changes, words):
    with pytest.raises(EffptError, match=words) as found:
        tiny.arguments(tmp_path, **changes)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", LAUNCHED)
def test_what_the_launcher_asks_for_is_refused_likewise(tmp_path, monkeypatch, name):
    monkeypatch.setenv(LAUNCHED[name], "true")
    with pytest.raises(EffptError, match=rf"^`{name}` of `accelerate launch` .* is not supported: .* by `torchrun`"):
        tiny.arguments(tmp_path)


def test_many_that_work_do_so_in_one_run(tmp_path):
    settings = {
        "logging_first_step": True, "logging_steps": 100, "include_num_input_tokens_seen": "all", "debug": "",
        "eval_on_start": True, "eval_strategy": "steps", "eval_steps": 1, "eval_delay": 3, "neftune_noise_alpha": 5.0,
        "save_strategy": "epoch", "torch_empty_cache_steps": 1, "label_names": ["labels"], "budget": "4steps",
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }  # fmt: skip
    trainer = tiny.trainer(tmp_path, layers=2, **settings)
    noise, saved, save = [], [], trainer.saver.checkpoint
    trainer.model.get_input_embeddings().register_forward_hook(lambda module, args, out: noise.append(out))
    trainer.saver.checkpoint = lambda step, *more: saved.append(step) or save(step, *more)
    trainer.train()
    history = trainer.state.log_history
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 4]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [0, 3, 4]
    assert trainer.state.num_input_tokens_seen == trainer.clock.tokens
    assert hasattr(trainer, "neftune_hook_handle")
    assert saved == [4]


def test_the_callers_arguments_are_left_alone(tmp_path):
    args = tiny.arguments(tmp_path)
    before = args.to_dict()
    trainer = tiny.EffptTrainer(tiny.model({"layerdrop": {"p": 0.2}}), args, train_dataset=tiny.rows())
    assert trainer.args.ddp_find_unused_parameters is True
    assert args.to_dict() == before
