"""The one error users meet when what they passed cannot work."""


class EffptError(ValueError):
    """Bad input: the message names what was passed, what is needed and the fix."""


class RunStopped(EffptError):
    """A run was stopped by a signal, has saved a checkpoint, and can be resumed."""

    exit_code = 75  # `EX_TEMPFAIL` of sysexits.h: try again


def first_line(error: BaseException) -> str:
    """First line of an error's message, at most 300 characters, or its class name if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
