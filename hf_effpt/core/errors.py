"""The one error users meet when what they passed cannot work."""

from typing import Any


class EffptError(ValueError):
    """Bad input: the message names what was passed, what is needed and the fix."""


class NoText(EffptError):
    """A source of text holds none."""


class RunDiverged(EffptError):
    """A run has diverged: its gradients, its weights or its held-out loss are not finite.

    Args:
        message (`str`): what has happened, and the way out.
        record (`dict`): JSON of what is known: `step`, the first that is not finite; `what` is not; `last_loss` and
            `last_loss_step`, the last finite training loss logged, if any; `clock`, and `history`, the log entries.
    """

    def __init__(self, message: str, record: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.record = dict(record or {})


class RunStopped(EffptError):
    """A run was stopped by a signal, has saved a checkpoint, and can be resumed."""

    exit_code = 75  # `EX_TEMPFAIL` of sysexits.h: try again


def first_line(error: BaseException) -> str:
    """First line of an error's message, at most 300 characters, or its class name if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
