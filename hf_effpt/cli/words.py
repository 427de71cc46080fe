"""What becomes of words that a subcommand does not know."""

from hf_effpt.core.errors import EffptError


def refuse(command: str, extra: list[str]) -> None:
    """Raises an `EffptError` for words that a command takes no notice of."""
    if extra:
        raise EffptError(f"`effpt {command}` does not take `{' '.join(extra)}`; see `effpt {command} --help`.")
