"""A stock checkpoint in a folder: what it lacks is said, and it is loaded as what it was pre-trained as."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ElectraForPreTraining,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_effpt.core.errors import EffptError

from .table_files import first_line

TOKENIZERS = frozenset({"tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model"})


def config_of(folder: str | Path) -> PreTrainedConfig:
    """The configuration in a folder.

    Raises:
        EffptError: it has none, or no tokenizer, without which `AutoTokenizer` makes an empty one that knows no word.
    """
    files = {path.name for path in Path(folder).glob("*")}
    if "config.json" not in files:
        raise EffptError(
            f"{Path(folder).absolute()} has no config.json, but must be the folder of a stock checkpoint, such as the "
            "root of a run's; a model on the Hub has to be downloaded first."
        )
    if not files & TOKENIZERS:
        raise EffptError(
            f"{Path(folder).absolute()} has no tokenizer; save the one that the model was trained with there: "
            "tokenizer.save_pretrained(...)."
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise EffptError(f"{folder} cannot be loaded ({first_line(error)}); name a stock checkpoint.") from error


def check_finetunable(folder: str | Path) -> None:
    """Raises an `EffptError` unless the folder holds an encoder that can classify sequences, and its tokenizer."""
    config = config_of(folder)
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise EffptError(
            f"{Path(folder).absolute()} holds a `{config.model_type}`, for which transformers has no sequence "
            "classification; use an encoder, such as a BERT."
        )


def discriminates(config: PreTrainedConfig) -> bool:
    """Whether the checkpoint is an ELECTRA discriminator."""
    return "ElectraForPreTraining" in (config.architectures or [])


def load_pretrained(folder: Path) -> tuple[PreTrainedModel, Any]:
    """The model as what it was pre-trained as, in float32 whatever it was saved in, and its tokenizer.

    Raises:
        EffptError: it cannot be loaded, or lacks its pre-training head.
    """
    auto = ElectraForPreTraining if discriminates(config_of(folder)) else AutoModelForMaskedLM
    try:
        loaded, report = auto.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EffptError(f"{folder} cannot be loaded ({first_line(error)}); name a stock checkpoint.") from error
    if report["missing_keys"]:
        raise EffptError(
            f"{folder} lacks weights of its pre-training head ({', '.join(sorted(report['missing_keys'])[:3])}), so "
            "it has neither a loss nor BLiMP scores; only fine-tuning tasks can be measured."
        )
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def readable_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens of a text the model can read."""
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    if "roberta" in model.config.model_type:  # its positions count from behind the padding token's id
        positions -= model.config.pad_token_id + 1
    return min(positions, tokenizer.model_max_length)
