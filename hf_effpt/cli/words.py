"""Words of the command line: lists, and what becomes of those that a subcommand does not know."""

from hf_effpt.core.errors import EffptError


def refuse(command: str, extra: list[str]) -> None:
    """Raises an `EffptError` for words that a command takes no notice of."""
    if extra:
        raise EffptError(f"`effpt {command}` does not take `{' '.join(extra)}`; see `effpt {command} --help`.")


def words(text: str) -> list[str]:
    """The parts of a list such as `blimp,cola`."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(flag: str, text: str) -> list[float]:
    """The numbers of a list such as `0.5,1`.

    Raises:
        EffptError: if one of them is no number.
    """
    try:
        return [float(word) for word in words(text)]
    except ValueError as error:
        raise EffptError(f"`{flag}` is {text!r}, but must be numbers such as 0.5,0.7,1.") from error
