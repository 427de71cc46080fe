"""Primary measure: the held-out loss or the score that verdicts are given on, chosen before any run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_effpt.core.errors import EffptError
from hf_effpt.evaluation.suite import LOSS as LOSS_TASK
from hf_effpt.evaluation.suite import check_tasks

LOSS = "held_out_loss"
DISCRIMINATORS = ("electra", "electra_15")


def find_primary(
    primary: str | None,
    objectives: Mapping[str, str],
    tasks: Sequence[str],
    data: str | Path | None,
    protocol: str,
    pairs_per_paradigm: int | None,
) -> str:
    """Checks the tasks and returns the full name of the primary measure.

    The arguments are those of [`compare`], and `objectives` by arm name. Raises an `EffptError` for invalid tasks or
    data, or a measure that the tasks do not give for every arm.
    """
    scores = check_tasks(tasks, data, protocol, pairs_per_paradigm)
    discriminators = [name for name, objective in objectives.items() if objective in DISCRIMINATORS]
    if LOSS_TASK in tasks and discriminators:
        raise EffptError(
            f"Arm `{discriminators[0]}` trains a discriminator, which has no masked-token loss; leave `loss` out of "
            "the tasks. Each run's own held-out loss is reported without it."
        )
    if primary in (None, LOSS):
        return LOSS
    wanted = f"average@{protocol}" if primary == "average" else primary
    if wanted not in scores:
        there = ", ".join(score for score in scores if score != LOSS) or "no scores"
        raise EffptError(
            f"The primary measure is {primary!r}, but the tasks ({', '.join(tasks) or 'none'}) give {there}; name one "
            f"of them, add the task to `--tasks`, or leave it out to judge by the held-out loss."
        )
    if wanted.startswith("blimp/"):
        for name, objective in objectives.items():
            own = "discriminator" if objective in DISCRIMINATORS else "pll_word_l2r"
            if not wanted.startswith(f"blimp/{own}"):
                raise EffptError(
                    f"The primary measure is {wanted!r}, but of arm `{name}` (`{objective}`) BLiMP measures `{own}`, "
                    "which is another score; name one that all arms have, such as that of a fine-tuning task."
                )
    return wanted
