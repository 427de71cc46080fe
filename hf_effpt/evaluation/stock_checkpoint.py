"""Stock checkpoints in folders: checks, and loading with the pre-training head."""

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

from hf_effpt.core.errors import EffptError, first_line

TOKENIZERS = frozenset({"tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model"})


def config_of(folder: str | Path) -> PreTrainedConfig:
    """Configuration of the model in a folder.

    Raises an `EffptError` if there is none, or no tokenizer, for which `AutoTokenizer` would make an empty one.
    """
    files = {path.name for path in Path(folder).glob("*")}
    if "config.json" not in files:
        raise EffptError(
            f"{Path(folder).absolute()} has no config.json, but must be the folder of a stock checkpoint, such as a "
            "run's; download a model on the Hub first."
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
    """`True` if the checkpoint is an ELECTRA discriminator."""
    return "ElectraForPreTraining" in (config.architectures or [])


def load(auto: Any, folder: str | Path, **settings: Any) -> tuple[Any, Any, list[str]]:
    """Loads a model as class `auto`, in float32, and its tokenizer; the list names the weights that are missing.

    Raises an `EffptError` if they cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, report = auto.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32, **settings
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EffptError(
            f"{Path(folder).absolute()} cannot be loaded ({type(error).__name__}: {first_line(error)}). It must be "
            "the folder of a stock checkpoint with its tokenizer, such as a run's."
        ) from error
    return model, tokenizer, sorted(report["missing_keys"])


def load_pretrained(folder: Path) -> tuple[PreTrainedModel, Any]:
    """Loads a model with its pre-training head, on a GPU if there is one, and its tokenizer.

    Raises an `EffptError` if it cannot be loaded, or lacks its head.
    """
    auto = ElectraForPreTraining if discriminates(config_of(folder)) else AutoModelForMaskedLM
    loaded, tokenizer, missing = load(auto, folder)
    if missing:
        raise EffptError(
            f"{folder} lacks weights of its pre-training head ({', '.join(missing[:3])}), so it has neither a loss "
            "nor BLiMP scores; only fine-tuning tasks can be measured."
        )
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def readable_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Longest text, in tokens, that the model can read, and its tokenizer says it was trained to read."""
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    if "roberta" in model.config.model_type:  # its positions start behind the padding token's id
        positions -= model.config.pad_token_id + 1
    return min(positions, tokenizer.model_max_length)
