"""Checks of a recipe before it is run, by its [`RecipeFacts`]."""

from math import ceil

from hf_effpt.training.arguments import NEVER_DECAYING

from .finding import Finding
from .recipe_facts import RecipeFacts

# AdamW's rate for a width of 768 (Geiping and Goldstein, 2022); for others it goes with the root of the width, which
# gives 2.4e-3 for 128, where 2e-3 and 3e-3 have served here. Muon has served at several times the rate of AdamW.
RATE, RATE_WIDTH, RATE_OF_MUON = 1e-3, 768, 3
TOO_HIGH, TOO_LOW = 5, 1 / 30
FEW_STEPS, FEW_BATCHES = 200, 20  # steps of the budget; steps of a pass
MANY_PASSES = 40  # of the published BERT
LONG_WARMUP = 0.3


def usual_rate(recipe: RecipeFacts) -> float | None:
    """The usual peak rate of an optimizer at a width; `None` for one whose rates are on another scale."""
    rate = RATE * (RATE_WIDTH / recipe.width) ** 0.5
    if recipe.optimizer == "muon":
        return RATE_OF_MUON * rate
    return rate if recipe.optimizer.startswith("adamw") else None


def rate(recipe: RecipeFacts) -> Finding | None:
    """A learning rate far from the usual one."""
    usual = usual_rate(recipe)
    # What a checkpoint has learned, it keeps at small rates only.
    if usual is None or usual * TOO_LOW * (0.1 if recipe.continues else 1) <= recipe.rate <= usual * TOO_HIGH:
        return None
    high = recipe.rate > usual
    return Finding(
        "learning rate",
        "warning",
        f"The peak is {recipe.rate:g}; {recipe.optimizer} has served at about {usual:.1g} in models this wide.",
        "So high a rate makes the loss diverge, or stay where it is."
        if high
        else "So low a rate leaves most of the budget unused.",
        recipe.again(f"--training.learning_rate {usual:.1g}"),
    )


def warmup(recipe: RecipeFacts) -> Finding | None:
    """No warm-up, or a very long one."""
    if 0 < recipe.warmup <= LONG_WARMUP or (recipe.continues and not recipe.warmup):
        return None
    return Finding(
        "warm-up",
        "warning",
        f"The learning rate rises for {recipe.warmup:.0%} of the budget.",
        "First updates at the full rate can spoil a model for good."
        if recipe.warmup == 0
        else "Little of the budget is left at the rate that was chosen.",
        recipe.again("--training.warmup_steps 0.06"),
    )


def schedule(recipe: RecipeFacts) -> Finding | None:
    """A learning rate that never decays."""
    if recipe.schedule not in NEVER_DECAYING:
        return None
    return Finding(
        "schedule",
        "warning",
        f"The schedule is `{recipe.schedule}`, whose rate is as high at the end as before.",
        "A large part of the loss falls while the rate decays.",
        recipe.again("--training.lr_scheduler_type linear"),
    )


def batch(recipe: RecipeFacts) -> Finding | None:
    """A batch that is large against budget or text."""
    batches = None if recipe.text_tokens is None else recipe.text_tokens / recipe.step_tokens
    if recipe.steps is not None and recipe.steps < FEW_STEPS:
        seen = f"The budget is {recipe.steps:,.0f} steps of {recipe.step_tokens:,} tokens."
    elif batches is not None and batches < FEW_BATCHES:
        seen = f"A pass over the text is {batches:,.0f} steps of {recipe.step_tokens:,} tokens."
    else:
        return None
    return Finding(
        "batch",
        "warning",
        seen,
        "A model learns by its number of updates; so few teach it little more than which words are frequent.",
        recipe.again("--training.per_device_train_batch_size 8", "--training.gradient_accumulation_steps 1"),
    )


def passes(recipe: RecipeFacts) -> Finding | None:
    """More passes over the text than pay."""
    if recipe.passes is None or recipe.passes <= MANY_PASSES:
        return None
    return Finding(
        "passes",
        "warning",
        f"The budget is about {recipe.passes:,.0f} passes over the text.",
        f"After some {MANY_PASSES} passes little is left to learn in it, and it is learned by heart.",
        recipe.again("--model.dropout 0.1", "--data.dataset MORE_TEXT"),
    )


def memory(recipe: RecipeFacts) -> Finding | None:
    """More memory needed than there is."""
    if recipe.memory <= recipe.memory_there:
        return None
    rows = max(1, recipe.rows // (2 * ceil(recipe.memory / recipe.memory_there)))
    accumulated = recipe.accumulated * ceil(recipe.rows / rows)
    return Finding(
        "memory",
        "error",
        f"A step needs about {recipe.memory / 1e9:,.0f} GB, and there are {recipe.memory_there / 1e9:,.0f} GB.",
        "The run ends at its first step.",
        recipe.again(
            f"--training.per_device_train_batch_size {rows}", f"--training.gradient_accumulation_steps {accumulated}"
        ),
    )
