"""Measurement of a recipe on a device: the result of some seconds of training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """Rates, memory and text of a recipe, from a few steps on the device that it is planned for.

    Args:
        device (`str`): name of the device.
        steps (`int`): optimizer steps that were measured.
        tokens_per_second (`float`): tokens that the clock counts, in a second of it.
        flops_per_token (`float`): FLOPs of a token, methods included.
        start_seconds, start_flops (`float`): charged once, for the model's start and for slower first steps.
        step_tokens (`int`): tokens of an optimizer step, on average.
        parameters, layers, width, vocabulary (`int`): the model's numbers of parameters and layers, its hidden size,
            and the tokens that it knows.
        text_tokens (`float`, *optional*): tokens of the training text; `None` if its size is unknown.
        watts (`float`, *optional*): mean power; `None` if the device does not tell.
        energy (`str`, *optional*): how the power is known.
        energy_is_measured (`bool`, *optional*): `True` if hardware counts it.
        peak_bytes (`int`, *optional*): most memory that was in use: of the GPU, or else of the process.
        floor (`float`, *optional*): loss of token frequencies alone, in nats a token; `None` without held-out text.
        tokens, loss (`float`, *optional*): tokens of this short run, and its held-out loss in nats a masked token.
    """

    device: str
    steps: int
    tokens_per_second: float
    flops_per_token: float
    start_seconds: float
    start_flops: float
    step_tokens: int
    parameters: int
    layers: int
    width: int
    vocabulary: int
    text_tokens: float | None
    watts: float | None = None
    energy: str | None = None
    energy_is_measured: bool = False
    peak_bytes: int | None = None
    floor: float | None = None
    tokens: float = 0.0
    loss: float | None = None
