"""Low-rank adapters (LoRA; Hu et al., 2021) by PEFT, to train instead of all weights."""

import re
import warnings
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_effpt.core.errors import EffptError
from hf_effpt.core.gates import NAME as GATES

# Endings of class names whose head is new to a task, and so is trained whole; and PEFT's name of the task.
TASKS = {
    "ForMultipleChoice": None,
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
}
ATTENTION = r"(^|\.)layers?\.\d+\..*att"  # pattern in the names of attention projections


def add_lora(model: PreTrainedModel, rank: int) -> Any:
    """Adds LoRA to the attention projections, and freezes all else but the pooler and the head of the task.

    The model has a task's head, or the pre-training head, which is frozen too. Updates of this rank are scaled by 1
    (alpha = rank), as for RoBERTa in Hu et al. (2021). Raises an `EffptError` if PEFT is missing, the rank is below 1,
    there is no attention, or the model has masks or gates other than 1, which would also act on merged updates.
    """
    check_lora(rank)
    from peft import LoraConfig, get_peft_model

    backbone, name = model.base_model, type(model).__name__
    gates = getattr(backbone, GATES, None)
    if gates is not None and any(bool((gate != 1).any()) for gate in gates.parameters()):
        raise EffptError(
            f"{name} has gates that are not all 1, with which LoRA cannot be merged; fold them into the weights "
            f"first: `model.base_model.{GATES}.fold(model.base_model)`, or export the model."
        )
    masks = getattr(backbone, "masks", None)
    if masks is not None and not all(bool(kept.all()) for kept in masks.kept().values()):
        raise EffptError(
            f"{name} has masks that leave weights out, with which LoRA cannot be merged; export the model, which "
            "sets those weights to 0."
        )
    projections = [
        name
        for name, module in backbone.named_modules()
        # a layer that lost all heads has projections without elements
        if isinstance(module, torch.nn.Linear) and module.weight.numel() and re.search(ATTENTION, name)
    ]
    if not projections:
        raise EffptError(f"{name} has no attention projections that LoRA could adapt; train without.")
    ending = next((ending for ending in TASKS if name.endswith(ending)), None)
    head = [] if ending is None else [name for name, module in model.named_children() if module is not backbone]
    trained = [name for name in head if [*model.get_submodule(name).parameters()]]
    trained += ["pooler"] if getattr(backbone, "pooler", None) is not None else []
    adapters = {"r": rank, "lora_alpha": rank, "target_modules": projections, "modules_to_save": trained or None}
    config = LoraConfig(task_type=TASKS.get(ending or ""), **adapters)
    with warnings.catch_warnings():  # PEFT reads an attribute that transformers has deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)


def check_lora(rank: int) -> None:
    """Raises an `EffptError` unless the rank is valid and PEFT is installed."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise EffptError(f"The rank of LoRA is {rank!r}, but must be a whole number of at least 1, such as 8.")
    try:
        import peft  # noqa: F401  heavy, and needed for LoRA only
    except ImportError as error:
        raise EffptError("LoRA needs PEFT, which is not installed: pip install 'hf_effpt[lora]'") from error
