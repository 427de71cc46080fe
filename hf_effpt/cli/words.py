"""Words of the command line: parses lists, and refuses words that a subcommand does not know."""

from hf_effpt.core.errors import EffptError


def refuse(command: str, extra: list[str]) -> None:
    """Raises an `EffptError` for words that a command does not take."""
    if extra:
        raise EffptError(f"`effpt {command}` does not take `{' '.join(extra)}`; see `effpt {command} --help`.")


def words(text: str) -> list[str]:
    """Splits a list such as `blimp,cola`."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(flag: str, text: str) -> list[float]:
    """Parses a list of numbers such as `0.5,1`; anything else in it is an `EffptError`."""
    try:
        return [float(word) for word in words(text)]
    except ValueError as error:
        raise EffptError(f"`{flag}` is {text!r}, but must be numbers such as 0.5,0.7,1.") from error
