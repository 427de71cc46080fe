"""Low-rank adapters (LoRA; Hu et al., 2021) in place of fine-tuning all weights, by PEFT."""

import re
import warnings
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_effpt.core.errors import EffptError


def add_lora(model: PreTrainedModel, rank: int) -> Any:
    """Freezes the model but for its head and pooler, and adds LoRA to the projections of attention.

    Args:
        model (`PreTrainedModel`): with a classification head.
        rank (`int`): of the updates; they are scaled by 1 (alpha = rank), as for RoBERTa in Hu et al. (2021).

    Raises:
        EffptError: PEFT is not installed, the rank is below 1, or no attention is found.
    """
    check_lora(rank)
    from peft import LoraConfig, TaskType, get_peft_model

    names = [name for name, module in model.base_model.named_modules() if isinstance(module, torch.nn.Linear)]
    projections = [name for name in names if re.search(r"(^|\.)layers?\.\d+\..*att", name)]
    if not projections:
        raise EffptError(f"{type(model).__name__} has no attention projections that LoRA could adapt; train without.")
    head = [
        name for name, module in model.named_children() if module is not model.base_model and [*module.parameters()]
    ]
    pooler = ["pooler"] if getattr(model.base_model, "pooler", None) is not None else []
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=rank,
        target_modules=projections,
        modules_to_save=[*head, *pooler],
    )
    with warnings.catch_warnings():  # PEFT asks the model by a name that transformers has deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)


def check_lora(rank: int) -> None:
    """Raises an `EffptError` unless adapters of this rank can be had."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise EffptError(f"The rank of LoRA is {rank!r}, but must be a whole number of at least 1, such as 8.")
    try:
        import peft  # noqa: F401  heavy, and needed for LoRA only
    except ImportError as error:
        raise EffptError("LoRA needs PEFT, which is not installed: pip install 'hf_effpt[lora]'") from error
