"""The one error users meet when what they passed cannot work."""


class EffptError(ValueError):
    """Bad input: the message names what was passed, what is needed and the fix."""
