"""Checks of the end of a run: what it has reached, and whether that counts, by [`RunFacts`]."""

from .course_checks import diverged
from .finding import Finding
from .run_facts import RunFacts

# A plateau: the loss is so many least gains of its objective below the floor, and in the second half of the run it has
# fallen by less than this share of that. BERTs of two layers stay 0.4 to 0.7 nats below the floor for thousands of
# steps; those that leave it end 0.8 and more below.
PLATEAU_GAINS, FLAT = 3.0, 0.25
ENTRIES = 5  # fewer log entries do not tell where a run is going
SLOW_DECAY, LEAKED = 0.1, 0.01
FEW_STEPS, MANY_ROWS = 2000, 8  # with fewer steps of more rows, smaller steps pay


def floor(run: RunFacts) -> Finding | None:
    """A held-out loss above the floor, or hardly below it."""
    loss, gain = run.held_out, run.gain
    if loss is None or gain is None or not gain < run.objective.least_gain or diverged(run):
        return None
    above = gain <= 0
    chance = "" if run.chance is None or loss < run.chance else f", and above chance, {run.chance:.2f}"
    where = f"{abs(gain):.3f} {'above' if above else 'below'} the {run.objective.floor}{chance}"
    return Finding(
        "floor",
        "error" if above else "warning",
        f"The held-out loss {loss:.3f} is {where}.",
        "A model that knows nothing of the context would do as well." if above
        else "The model knows little more than one without context.",
        run.again(*_start_of(run), run.longer(10)),
    )  # fmt: skip


def plateau(run: RunFacts) -> Finding | None:
    """A loss that rests where frequent words are known, and the context is not."""
    least, losses = run.objective.least_gain, run.last_losses_N
    if not run.predicts_words or run.gain is None or len(losses) < ENTRIES or not run.finished:
        return None
    eighth = len(losses) / 8
    middle, last = losses[int(3 * eighth) : int(5 * eighth)].mean(), losses[int(6 * eighth) :].mean()
    if not least <= run.gain < PLATEAU_GAINS * least or middle - last > FLAT * run.gain:
        return None
    model, training = run.recipe.get("model") or {}, run.recipe.get("training") or {}
    flags = [] if model.get("backbone") == "modernbert" or "from" in model else ["--model.backbone modernbert"]
    flags += _start_of(run)
    rows = (training.get("per_device_train_batch_size") or 0) * (training.get("gradient_accumulation_steps") or 1)
    if rows > MANY_ROWS and run.steps_N[-1] < FEW_STEPS:
        flags += ["--training.per_device_train_batch_size 8", "--training.gradient_accumulation_steps 1"]
    return Finding(
        "plateau",
        "warning",
        f"The loss ends {run.gain:.2f} nats below the {run.objective.floor} and has fallen by {middle - last:.2f} in "
        "the second half.",
        "Attention has found nothing yet: this is what frequent and neighbouring words give. Once it does, the loss "
        "falls by a nat and more.",
        run.again(*flags) if flags else run.again(run.longer(2)),
    )


def overfit(run: RunFacts) -> Finding | None:
    """A training loss far below the held-out one."""
    if not run.predicts_words or run.held_out is None or run.passes < 2 or len(run.last_losses_N) < ENTRIES:
        return None
    trained = run.last_losses_N[-len(run.last_losses_N) // 8 :].mean()
    if not run.held_out - trained > run.objective.least_gain:
        return None
    return Finding(
        "overfit",
        "warning",
        f"After {run.passes:,.0f} passes over the text the training loss is {trained:.2f}, the held-out loss "
        f"{run.held_out:.2f}.",
        "The model learns the text by heart instead of the language.",
        f"more text in --data.dataset, or {run.again('--model.dropout 0.1')}",
    )


def leaked(run: RunFacts) -> Finding | None:
    """Held-out documents that were trained on."""
    if not run.doubles or run.doubles < LEAKED * (run.held_out_documents or 1):
        return None
    return Finding(
        "leakage",
        "error",
        f"{run.doubles:,} training documents equal one of the {run.held_out_documents or 0:,} held-out ones.",
        "The held-out loss is lower than on new text.",
        run.again("--data.select '{deduplicate: exact}'"),
    )


def unfinished(run: RunFacts) -> Finding | None:
    """A budget that is not spent."""
    if run.finished:
        return None
    return Finding(
        "unfinished",
        "warning",
        f"{run.fraction:.0%} of the budget is spent.",
        "The learning rate has not decayed yet, and a large part of the loss falls while it does.",
        run.go_on(),
    )


def decay(run: RunFacts) -> Finding | None:
    """A learning rate that is still high at the end."""
    if run.decayed is None or run.decayed <= SLOW_DECAY or not run.finished:
        return None
    return Finding(
        "schedule",
        "warning",
        f"The last learning rate is {run.decayed:.0%} of the peak.",
        "A large part of the loss falls while the rate decays.",
        run.again("--training.lr_scheduler_type linear"),
    )


def _start_of(run: RunFacts) -> list[str]:
    """Flags for a start from what the text tells before any step, unless the run had it."""
    model = run.recipe.get("model") or {}
    start = model.get("start") or {}
    if "from" in model or "embeddings" in start or model.get("objective", "mlm") != "mlm":
        return []
    return ["--model.start '{bias: unigram, embeddings: cooccurrence}'"]
