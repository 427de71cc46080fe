"""Efficient pre-training of encoder language models on one GPU, as an extension of Hugging Face Transformers.

`import hf_effpt` registers the training models with the Auto classes; everything else is loaded when it is first used.
"""

import importlib
import sys
from importlib.metadata import version as _version
from pathlib import Path
from typing import Any

__version__ = _version("hf_effpt")

# public name -> the module it is in
_PUBLIC = {
    **dict.fromkeys(("Method", "METHODS"), "core.method"),
    "Clock": "core.clock",
    "Ticket": "core.ticket",
    "SparseTicket": "methods.lottery",
    "EffptError": "core.errors",
    **dict.fromkeys(
        ("Compress", "EarlyBert", "LayerDrop", "LayerSkip", "Lottery", "Selection", "Stacking", "TNF"), "methods"
    ),
    **dict.fromkeys(
        (
            f"{family}{part}"
            for family in (
                "CompressibleBert",
                "EarlyBert",
                "EffptBert",
                "LayerDropBert",
                "LayerSkipBert",
                "LotteryBert",
                "SelectionBert",
                "StackableBert",
                "TNFBert",
            )
            for part in ("Config", "Model", "ForMaskedLM", "ForSequenceClassification")
        ),
        "models",
    ),
    **dict.fromkeys(("EffptBertForTokenClassification", "EffptBertForQuestionAnswering"), "models"),
    **dict.fromkeys(
        (
            "EffptElectraConfig",
            "EffptElectraModel",
            "EffptElectraForSequenceClassification",
            "ElectraForJointPreTraining",
            "ElectraForReplacedMaskedLM",
            "McBertConfig",
            "McBertModel",
            "McBertForPreTraining",
        ),
        "models",
    ),
    "DataCollatorForMaskedLM": "data.masking",
    "DataCollatorForNotes": "methods.tnf",
    "train_tokenizer": "data.tokenizer",
    "pack": "data.packing",
    "EffptTrainingArguments": "training.arguments",
    "EffptTrainer": "training.trainer",
    **dict.fromkeys(
        (
            "CompressTrainer",
            "ElectraTrainer",
            "LayerDropTrainer",
            "LayerSkipTrainer",
            "LotteryTrainer",
            "McBertTrainer",
            "SelectionTrainer",
            "StackingTrainer",
            "TNFTrainer",
        ),
        "training.named",
    ),
    "EarlyBertTrainer": "training.ticket_search",
    "Recipe": "recipe.recipe",
    "export": "hub.export",
    "push": "hub.push",
    "pretrain": "pretraining",
    "evaluate": "evaluation.suite",
    "compare": "comparison.compare",
    "budget_sweep": "comparison.sweep",
    "prune_layers": "evaluation.pruning",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]


# The command line answers `--help` without waiting for torch; each of its commands imports what it needs.
if Path(sys.argv[0]).stem != "effpt":
    importlib.import_module(f"{__name__}.models.auto")
