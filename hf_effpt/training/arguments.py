"""Training arguments: the stock ones with a budget and defaults for pre-training."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from transformers import TrainingArguments
from transformers.optimization import get_scheduler
from transformers.training_args import OptimizerNames

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest
from hf_effpt.core.settings import In, Like, When, check_effects, idle_error, plain

from . import carbon
from .averaging import Averaging
from .batch_ramp import batch_sizes
from .branches import STABLE_DECAY, check_branches, decay_share
from .energy import WORLD_AVERAGE, check_source, energy_source
from .muon import MUON, MuonSettings
from .stock_arguments import in_one_line, refuse, refuse_loading

# Schedules by fraction of training, which can follow any clock.
NEVER_DECAYING = ("constant", "constant_with_warmup")
DECAYING = ("linear", "cosine", "cosine_with_min_lr", "polynomial", STABLE_DECAY)
CLOCK_SCHEDULES = (*DECAYING, *NEVER_DECAYING)

BESIDE_A_DECAY = When(lr_scheduler_type=DECAYING, warmup_steps=In("(0, inf)"))
IN_REFERENCE_TIME = When(budget=Like(r"(?i).*(_rst|reference_seconds)\s*", "in reference time, such as `10min_rst`"))

# Values outside make training fail late, or give meaningless results.
RANGES = {
    "learning_rate": (0, 1e3),
    "weight_decay": (0, 1e3),
    "carbon_intensity": (0, 1e4),
    "max_grad_norm": (0, 1e9),
    "adam_beta1": (0, 1 - 1e-9),
    "adam_beta2": (0, 1 - 1e-9),
    "adam_epsilon": (0, 1),
    "label_smoothing_factor": (0, 1 - 1e-9),
    "warmup_steps": (0, 1e12),
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**32 - 1),
    "dataloader_num_workers": (0, 1e4),
    "save_steps": (1e-9, 1e12),
    "save_total_limit": (1, 1e9),
    "max_skipped_steps": (1, 1e9),
}
ABOVE_ZERO = (
    "learning_rate per_device_train_batch_size per_device_eval_batch_size num_train_epochs "
    "gradient_accumulation_steps logging_steps eval_steps"
).split()

# Settings that the optimizer's state depends on, with their defaults: a resumed run must have the same.
OPTIMIZER_SETTINGS = {"bias_correction": True, "decay_all": False}


def _field(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class EffptTrainingArguments(TrainingArguments):
    """Arguments of `EffptTrainer`.

    Optimizer defaults are those of Geiping and Goldstein (2023), Cramming; the warm-up is that of Izsak et al. (2021).

    Args:
        budget (`str`, *optional*): limit of the run: `40steps`, `1e9tokens`, `3e15flops`, `90s`, `10min`, `2h`,
            `50kJ`, or `10min_rst` (reference system time). Learning rate and methods follow the fraction spent.
            Defaults to `max_steps`, or `num_train_epochs` passes over the data.
        compile_layers (`bool`, *optional*, defaults to `False`): if `True`, compile each transformer layer separately,
            so that dropped or added layers do not recompile the model.
        reference_times (`str`, *optional*): JSON file of seconds by operation on the reference system. By default this
            machine is measured once and its times are cached.
        charge_methods (`bool`, *optional*, defaults to `True`): if `True`, charge time, energy and FLOPs of the extra
            work of methods, such as scoring, and of the model's start. `False` makes a method look better than it is:
            for comparison only.
        bias_correction (`bool`, *optional*, defaults to `True`): if `False`, use [`UncorrectedAdamW`], as published
            for BERT and ELECTRA. First updates are then too large with a short warm-up or in layers added later.
        decay_all (`bool`, *optional*, defaults to `False`): if `True`, weight decay acts on biases and norms, too, as
            in fairseq's Adam (TNF, MC-BERT, progressive stacking); never on gates.
        multiply_warmup (`bool`, *optional*, defaults to `False`): if `True`, the warm-up multiplies the decay, as in
            ELECTRA's code: peak * (1 - t/T) * min(1, t/W). The rate then never quite reaches `learning_rate`.
        optim (`str`, *optional*, defaults to `"adamw_torch_fused"`): a stock name, or `"muon"`: [`Muon`] for the
            matrices of attention and feed-forward blocks, also of a generator, and AdamW for all else. One
            `learning_rate` and one `weight_decay` serve both; tune the rate from that of AdamW upwards. `optim_args`
            takes `momentum=0.95,nesterov=true,ns_steps=5,rms=0.2`. The FLOPs of its matrix products are charged, over
            all processes, each of which computes every update.
        branches (`list[float]`, *optional*): shares of the budget, such as `[0.1, 0.25, 0.5]`, at each of which a
            model with decayed learning rate is exported to `branch-SHARE/`, beside that of the end. Needs
            `lr_scheduler_type: warmup_stable_decay`, whose decay, `lr_scheduler_kwargs: {num_decay_steps: 0.2}` of the
            training by default, each branch has for itself. The clock of the run does not pay for them.
        batch_ramp (`dict`, *optional*): rows of a micro-batch by the fraction of the clock from which they are so
            many, such as `{0: 8, 0.5: 16, 0.8: 32}`; the last are `per_device_train_batch_size`, which memory has to
            bear.
            Small batches learn more from early tokens (McCandlish et al., 2018). The learning rate stays.
        average (`dict`, *optional*): [`Averaging`] of the weights, such as `{kind: lawa, k: 5, every: 0.02}` or
            `{kind: ema, span: 0.02}`. Evaluation and export have the average, training goes on without it.
        max_skipped_steps (`int`, *optional*, defaults to 20): the run stops with an error after so many optimizer
            steps in a row whose gradients were NaN or infinite. Such a step changes nothing; `run.json` counts them,
            and names the rows of the first 16. With fp16, steps that only find its scale count, too.
        carbon_intensity (`float`, *optional*, defaults to 475.0): g CO2e per kWh of your electricity; by default the
            world average (IEA, 2019).

    Raises:
        EffptError: for impossible values, before anything is loaded.
    """

    budget: str | None = _field(None, "Limit: 40steps, 1e9tokens, 3e15flops, 90s, 10min, 2h, 50kJ, 10min_rst.")
    compile_layers: bool = _field(False, "Compile each transformer layer with torch.compile.")
    reference_times: Annotated[str | None, IN_REFERENCE_TIME] = _field(
        None, "JSON file of reference times; by default this machine's own."
    )
    charge_methods: bool = _field(True, "Whether the clock pays for what methods do besides training.")
    bias_correction: bool = _field(True, "Adam's bias correction; the published ELECTRA and BERT have none.")
    decay_all: bool = _field(False, "Weight decay also of biases and norms, as in fairseq.")
    multiply_warmup: Annotated[bool, BESIDE_A_DECAY] = _field(
        False, "The warm-up multiplies the decay, as in ELECTRA, and does not precede it."
    )
    branches: Annotated[list[float] | None, When(lr_scheduler_type=STABLE_DECAY)] = field(
        default=None,
        metadata={"help": "Shares of the budget at which a decayed model is exported, such as [0.1, 0.25, 0.5]."},
    )
    batch_ramp: dict[Any, Any] | None = field(
        default=None, metadata={"help": "Rows of a micro-batch from fractions of the clock on: {0: 8, 0.5: 32}."}
    )
    average: dict[str, Any] | None = field(
        default=None, metadata={"help": "Average of the weights: {kind: lawa, k: 5, every: 0.02}."}
    )
    max_skipped_steps: int = _field(20, "Stop after so many steps in a row with NaN or infinite gradients.")
    carbon_intensity: float = _field(WORLD_AVERAGE, "Grams of CO2e a kWh; by default the world average.")

    # Stock arguments that arguments of this class may take the place of.
    num_train_epochs: Annotated[float, When(budget=None, max_steps=In("(-inf, 1)"))] = _field(3.0, "Data passes.")
    optim: Annotated[str, When(bias_correction=True)] = _field(
        TrainingArguments.optim, "`muon`, or a stock optimizer."
    )
    optim_args: Annotated[str | None, When(bias_correction=True)] = _field(
        None, "Arguments of some optimizers; of `muon`: momentum=0.95,nesterov=true,ns_steps=5,rms=0.2."
    )

    output_dir: str = _field("out", "The run folder; the exported model lies in its root.")
    learning_rate: float = _field(1e-3, "The peak learning rate.")
    per_device_train_batch_size: int = _field(32, "Rows of a micro-batch, per device.")
    per_device_eval_batch_size: int = _field(64, "Rows of an evaluation batch, per device.")
    adam_beta2: float = _field(0.98, "Beta2 of AdamW.")
    adam_epsilon: float = _field(1e-12, "Epsilon of AdamW.")
    weight_decay: float = _field(0.01, "Weight decay of everything but biases and norms; of those by decay_all.")
    max_grad_norm: float = _field(0.5, "Largest gradient norm.")
    warmup_steps: float = _field(0.06, "Warm-up: below 1 a share of the budget, else steps.")
    logging_steps: float = _field(50, "Log every so many optimizer steps.")
    save_total_limit: int | None = _field(2, "How many checkpoints are kept.")
    hub_strategy: str = _field("end", "Only `end`: the exported model, when it is done.")
    ignore_data_skip: bool = _field(True, "Always on: the data stream is entered by position.")
    # Filtering would make the host wait for the device at each step.
    logging_nan_inf_filter: bool = _field(False, "Leave NaN losses out of the logged mean.")

    def __post_init__(self) -> None:
        self.check()
        muon = self.optim == MUON
        if muon:  # the stock class knows the names of its own optimizers only
            self.optim = TrainingArguments.optim
        with in_one_line("These training arguments do not go together"):
            super().__post_init__()
        if muon:
            self.optim = MUON
        # These checks need the arguments that the stock class fills in.
        refuse_loading(self)
        if self.fp16 and self.device.type == "cpu":
            raise EffptError("`training.fp16` needs a GPU, and this run is on the CPU; use `bf16`, or leave it out.")
        self._refuse_schedule()
        if carbon.NAME in (self.report_to or ()):
            carbon.country()
        if (clock := self.clock) is not None and clock.unit == "joules":
            check_source(clock.budget, energy_source(self.device))

    def _refuse_schedule(self) -> None:
        """Raises `EffptError` if the stock schedule does not take `lr_scheduler_kwargs`, or lacks one."""
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=self.learning_rate)
        kwargs: Any = self.lr_scheduler_kwargs
        if self.lr_scheduler_type == STABLE_DECAY:
            decay_share(self)
            check_branches(self)
            kwargs = {**(kwargs or {}), "num_decay_steps": 1}
        try:
            get_scheduler(
                self.lr_scheduler_type, optimizer, num_warmup_steps=1, num_training_steps=10,
                scheduler_specific_kwargs=kwargs,
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            raise EffptError(
                f"`training.lr_scheduler_kwargs` {self.lr_scheduler_kwargs} does not suit "
                f"`{plain(self.lr_scheduler_type)}`: {error}. See the arguments of its function in "
                "`transformers.optimization`."
            ) from error

    @property
    def clock(self) -> Clock | None:
        """New clock of the budget; `None` if the budget is a number of passes over the data."""
        if self.budget is not None:
            return Clock.parse(self.budget)
        return Clock("steps", self.max_steps) if self.max_steps > 0 else None

    def check(self) -> None:
        """Raises `EffptError` for the first value that is impossible, or has no effect."""
        refuse(self)
        if self.budget is not None and self.max_steps > 0:
            raise EffptError(
                f"Both `budget` ({self.budget}) and `max_steps` ({self.max_steps}) are given; leave one out."
            )
        clock = self.clock
        in_steps = clock is None or clock.unit == "steps"
        for name in ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not float(value) > 0:
                raise EffptError(f"`training.{name}` must be above 0, not {value}.")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= float(value) <= high:  # also refuses NaN
                raise EffptError(f"`training.{name}` must be between {low:g} and {high:g}, not {value}.")
        for name, value in vars(self).items():
            if value != value:
                raise EffptError(f"`training.{name}` is not a number (NaN); give one.")
        if self.warmup_steps >= 1 and not in_steps:
            raise EffptError(
                f"`training.warmup_steps` is {self.warmup_steps}; with the budget {self.budget} it must be a share of "
                "the budget in [0, 1), for example 0.06."
            )
        if in_steps and clock is not None and self.warmup_steps >= clock.budget:
            raise EffptError(
                f"A warm-up of {self.warmup_steps} steps leaves nothing of {clock.budget:.0f}; shorten it."
            )
        for name in ("logging_steps", "save_steps"):
            value = getattr(self, name)
            if value is not None and value < 1 and not in_steps:
                raise EffptError(
                    f"`training.{name}` is {value}, a share of a number of steps that the budget "
                    f"{self.budget} leaves open; give whole steps, for example 100."
                )
        schedule = plain(self.lr_scheduler_type)
        if schedule not in CLOCK_SCHEDULES:
            raise EffptError(
                f"`training.lr_scheduler_type` {self.lr_scheduler_type!r} cannot follow a budget; use one of "
                f"{', '.join(CLOCK_SCHEDULES)}."
            )
        check_effects(self, "training")
        if self.optim_target_modules is not None and not plain(self.optim).startswith(("galore", "apollo")):
            raise idle_error("training", "optim_target_modules", self.optim_target_modules, "`optim` GaLore or Apollo")
        self.batch_ramp = batch_sizes(self) or None
        for needed in ("eval_strategy", "save_strategy"):
            if self.load_best_model_at_end and plain(getattr(self, needed)) == "no":
                raise EffptError(
                    f"`training.load_best_model_at_end` chooses among evaluated checkpoints, and `training.{needed}` "
                    "is `no`; set both to `steps` or `epoch`, or saving to `best`."
                )
        if self.average is not None:
            Averaging.of(self.average)
        optimizers = [MUON, *(one.value for one in OptimizerNames)]
        if self.optim not in optimizers:
            raise EffptError(
                f"`training.optim` {self.optim!r} is no optimizer: {nearest(str(self.optim), optimizers)}"
            )
        if self.optim == MUON:
            MuonSettings.parse(self.optim_args)
