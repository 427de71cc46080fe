"""Stock training arguments that do not work here, with the reason and the way out; all others work as in Transformers.

A test walks over all fields of the class, and fails for one that is neither in this table nor in its own.
"""

import dataclasses
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.training_args import trainer_log_levels

from hf_effpt.core.errors import EffptError, first_line
from hf_effpt.core.settings import default_of, plain

_IN_FULL = "it casts the weights for good, which would then be trained and exported in half precision; leave it out"
_WHOLE_MODEL = "it compiles the whole model, once for every set of layers that runs; use `compile_layers` instead"
_LIGER = "its kernels are for decoders, and would not reach this package's encoders; leave it out"
_SHARDED = (
    "methods change whole layers of a model, which a sharded one has not, and on a CPU Accelerate would shard "
    "nothing; leave it out, and start several processes by `torchrun`, each with the whole model"
)

# Arguments that may have their default value only, each with what follows "is not supported: ".
REFUSED = {
    "accelerator_config": "rows come in a stream that is divided among processes by position; leave this setting out",
    "auto_find_batch_size": "it does not go with a data stream that is entered by position; leave it out",
    "bf16_full_eval": f"{_IN_FULL}, and `bf16` evaluates in bf16 too",
    "dataloader_drop_last": "rows come in a stream without end, whose batches are all whole; leave it out",
    "dataloader_in_order": "a run whose rows come in any order could not be resumed exactly; leave it out",
    "dataloader_persistent_workers": "training has one loader, whose workers live as long as the run; leave it out",
    "deepspeed": _SHARDED,
    "enable_jit_checkpoint": "every run saves a checkpoint when it is told to end (SIGTERM, Ctrl-C); leave it out",
    "fp16_full_eval": f"{_IN_FULL}, and `fp16` evaluates in fp16 too",
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "hub_always_push": "only the exported model is uploaded, once it is done; leave it out",
    "hub_strategy": "it would publish the training model; use `end`",
    "ignore_data_skip": "the data stream is entered by position, so nothing is ever skipped; leave it out",
    "length_column_name": "rows are not grouped by length; leave it out",
    "liger_kernel_config": _LIGER,
    "parallelism_config": _SHARDED,
    "restore_callback_states_from_checkpoint": "the clock restores its own state, and others start anew; leave it out",
    "resume_from_checkpoint": "it is an argument of `train()`; on the command line use `--resume`",
    "save_only_model": "a run could not go on from such checkpoints; leave it out, or set `save_strategy: no`",
    "torch_compile": _WHOLE_MODEL,
    "torch_compile_backend": _WHOLE_MODEL,
    "torch_compile_mode": _WHOLE_MODEL,
    "train_sampling_strategy": "rows come in a stream whose order is that of `seed` or `data_seed`; leave it out",
    "use_cache": "encoders have no cache of keys and values; leave it out",
    "use_liger_kernel": _LIGER,
}
# What `accelerate launch` sets where its own configuration asks for the same, by the argument.
LAUNCHED = {
    "deepspeed": "ACCELERATE_USE_DEEPSPEED",
    "fsdp": "ACCELERATE_USE_FSDP",
    "parallelism_config": "ACCELERATE_USE_PARALLELISM_CONFIG",
}
# Parts of `accelerator_config` that the loaders of a stream do not follow, with the values that change nothing.
LOADING = {"split_batches": False, "dispatch_batches": None, "even_batches": True, "use_seedable_sampler": True}


CHOICES = {
    "dataloader_multiprocessing_context": multiprocessing.get_all_start_methods(),
    "log_level": [*trainer_log_levels],
    "log_level_replica": [*trainer_log_levels],
}


def refuse(args: Any) -> None:
    """Raises `EffptError` for the first of the arguments `args`, or of the launcher's, that does not work here."""
    for name, choices in CHOICES.items():
        if (value := getattr(args, name)) is not None and value not in choices:
            raise EffptError(f"`training.{name}` {value!r} is none of {', '.join(choices)}; give one of them.")
    for field in dataclasses.fields(args):
        value, default = plain(getattr(args, field.name)), default_of(field)
        if field.name in REFUSED and field.name != "accelerator_config" and value != default and (value or default):
            raise _refusal(field.name, field.name)
    for name, variable in LAUNCHED.items():
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise EffptError(f"`{name}` of `accelerate launch` ({variable}) is not supported: {REFUSED[name]}.")


def refuse_loading(args: Any) -> None:
    """Raises `EffptError` for parts of the parsed `accelerator_config` that the loaders do not follow."""
    for name, needed in LOADING.items():
        if getattr(args.accelerator_config, name) != needed:
            raise _refusal("accelerator_config", f"accelerator_config.{name}")


def _refusal(name: str, shown: str) -> EffptError:
    return EffptError(f"`training.{shown}` is not supported: {REFUSED[name]}.")


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Context in which errors of Transformers become an `EffptError` of one line that begins with `what`."""
    try:
        yield
    except EffptError:
        raise
    except (ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise EffptError(f"{what}: {first_line(error).rstrip('.')}. Change or install that.") from error
