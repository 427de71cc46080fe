"""Facts of a recipe that tell, before it is run, how it will go."""

import os
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_effpt.core.settings import plain
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.arguments import EffptTrainingArguments
from hf_effpt.training.batch_ramp import batch_sizes
from hf_effpt.training.next_tokens import learned_until

from .advice import accepted

# Bytes of memory: of a parameter, its gradient and two averages in 32 bits; of a number of a layer's activations,
# which has 34 bytes for each in 16 bits (Korthikanti et al., 2022, arXiv 2205.05198, without the attention matrix).
PARAMETER_BYTES, LAYER_BYTES = 16, {2: 34, 4: 68}
LOGIT_BYTES = 12  # a logit in 32 bits, its probability and its gradient
BYTES_A_TOKEN = 4.0  # of a text whose tokenizer is not known yet


@dataclass(frozen=True)
class RecipeFacts:
    """Facts of a recipe.

    Args:
        name (`str`): name or file of the recipe, with the flags that change it, as a shell takes them.
        optimizer (`str`): its name, as `adamw_torch_fused` or `muon`.
        rate (`float`): the peak learning rate.
        schedule (`str`): that of the learning rate.
        warmup (`float`): share of the budget in which the rate rises.
        width (`int`): hidden size of the model.
        continues (`bool`): `True` if it goes on from a checkpoint.
        rows, accumulated (`int`): rows of a micro-batch, and micro-batches of an optimizer step.
        step_tokens (`int`): tokens of an optimizer step, on one device; the mean if batches grow.
        memory (`float`): estimated bytes of a step: parameters, optimizer, activations and logits.
        memory_there (`float`): bytes of memory of the device.
        steps (`float`, *optional*): optimizer steps of the budget; `None` for one in seconds or joules.
        text_tokens (`float`, *optional*): estimated tokens of the text; `None` if unknown.
        recipe (`dict`): the recipe as resolved.
    """

    name: str
    optimizer: str
    rate: float
    schedule: str
    warmup: float
    width: int
    continues: bool
    rows: int
    accumulated: int
    step_tokens: int
    memory: float
    memory_there: float
    steps: float | None = None
    text_tokens: float | None = None
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def passes(self) -> float | None:
        """Passes over the text; `None` if unknown."""
        return None if not self.steps or not self.text_tokens else self.steps * self.step_tokens / self.text_tokens

    def again(self, *flags: str) -> str:
        """The command that runs the recipe with other settings; those that it does not take are left out."""
        return " ".join(["effpt pretrain", self.name, *(accepted(self.recipe, flags) or flags)])

    def figures(self) -> dict[str, str]:
        """Figures that the checks look at, as text by name."""
        budget = "" if self.steps is None else f", about {self.steps:,.0f} of them"
        rate = f"{self.rate:g} at the peak, {self.optimizer}, {self.schedule}, warm-up {self.warmup:.0%}"
        figures = {
            "steps": f"of {self.step_tokens:,} tokens{budget}",
            "learning rate": rate,
            "memory": f"about {self.memory / 1e9:.1f} GB needed, {self.memory_there / 1e9:.1f} GB there",
        }
        if self.text_tokens:
            passes = "" if self.passes is None else f", {self.passes:,.1f} passes over them"
            figures["text tokens"] = f"about {self.text_tokens / 1e6:,.3g} million{passes}"
        return figures


def recipe_facts(recipe: Recipe, name: str, vocabulary: int, text_tokens: float | None = None) -> RecipeFacts:
    """Facts of a recipe on this machine, whose tokenizer and text have about so many tokens."""
    args, config, length = (
        recipe.training,
        recipe.model.config(methods=recipe.methods),
        min(recipe.data.lengths.values()),
    )
    width, layers = config.hidden_size, config.num_hidden_layers
    if recipe.model.from_ is not None:
        vocabulary = config.vocab_size
    matrices = 3 if hasattr(config, "local_attention") else 2  # a ModernBERT's neurons have gates
    inside = layers * (4 * width**2 + matrices * width * config.intermediate_size)
    micro_tokens = args.per_device_train_batch_size * length
    masked = max(recipe.data.rates.values())
    number_bytes = LAYER_BYTES[2 if args.bf16 or args.fp16 else 4]
    memory = (
        PARAMETER_BYTES * (inside + vocabulary * width)
        + micro_tokens * layers * width * number_bytes
        + micro_tokens * masked * vocabulary * LOGIT_BYTES
    )
    step_tokens = round(mean_rows(args) * length * args.gradient_accumulation_steps)
    # Forward and backward take six FLOPs a token and parameter; the head is computed where tokens are predicted.
    of_next, of_masked = (6 * step_tokens * (inside + share * vocabulary * width) for share in (1.0, masked))
    until = learned_until(recipe.model.objectives)
    step_flops = 1 / (until / of_next + (1 - until) / of_masked)  # the mean over a clock of FLOPs
    clock = args.clock
    if clock is None:
        steps = None if text_tokens is None else args.num_train_epochs * text_tokens / step_tokens
    else:
        a_step = {"steps": 1, "tokens": step_tokens, "flops": step_flops}.get(clock.unit)
        steps = None if a_step is None else clock.budget / a_step
    warmup = args.warmup_steps if args.warmup_steps < 1 or not steps else args.warmup_steps / steps
    return RecipeFacts(
        name=name,
        optimizer=plain(args.optim),
        rate=args.learning_rate,
        schedule=plain(args.lr_scheduler_type),
        warmup=warmup,
        width=width,
        continues=recipe.model.from_ is not None,
        rows=args.per_device_train_batch_size,
        accumulated=args.gradient_accumulation_steps,
        step_tokens=step_tokens,
        memory=memory,
        memory_there=memory_of(args.device),
        steps=steps,
        text_tokens=text_tokens,
        recipe=recipe.resolved(),
    )


def mean_rows(args: EffptTrainingArguments) -> float:
    """Mean rows of a micro-batch over the steps of a run, whose batches may grow with the clock."""
    sizes, clock = batch_sizes(args), args.clock
    if not sizes:
        return args.per_device_train_batch_size
    shares = {size: until - since for (since, size), until in zip(sizes.items(), [*list(sizes)[1:], 1.0], strict=True)}
    if clock is not None and clock.unit == "steps":
        return sum(share * size for size, share in shares.items())
    # On other clocks a phase has as many rows as its share, so that small batches make more steps.
    return 1 / sum(share / size for size, share in shares.items())


def memory_of(device: torch.device) -> float:
    """Bytes of memory of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
