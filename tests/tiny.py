"""The small world of the tests: a text, its tokenizer and rows, a model, and a run of a few steps."""

from collections.abc import Iterable, Mapping
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Sequence, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, TrainerCallback, set_seed

from hf_effpt.core.anatomy import encoders_of
from hf_effpt.core.depth import running
from hf_effpt.core.objectives import OBJECTIVES
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.models import EffptBertConfig, EffptBertForMaskedLM, EffptModernBertConfig
from hf_effpt.models.build import config_for, model_for
from hf_effpt.training.arguments import EffptTrainingArguments
from hf_effpt.training.flops import FlopCounter
from hf_effpt.training.trainer import EffptTrainer

VOCAB, LENGTH = 128, 16
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
# Of a ModernBERT, with windows narrower than a row in every second layer.
MODERN = {
    **SHAPE,
    "pad_token_id": 0,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "local_attention": 8,
    **dict.fromkeys(("cls_token_id", "bos_token_id"), 2),
    **dict.fromkeys(("sep_token_id", "eos_token_id"), 3),
}
BACKBONES = ("bert", "modernbert")
# The embeddings that the two models of an ELECTRA share, by name; the first are those of words.
SHARED = [
    f"electra.embeddings.{name}"
    for name in (
        "word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight",
        "LayerNorm.weight", "LayerNorm.bias",
    )
]  # fmt: skip


@lru_cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with BERT's special tokens and 123 words."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate([*specials, *(f"w{i}" for i in range(VOCAB - 5))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **names)


def rows(number: int = 48, seed: int = 0) -> Dataset:
    """Packed rows of words in which each word tends to be followed by the next, so that something can be learnt."""
    return copy(_rows(number, seed))


@lru_cache
def _rows(number: int, seed: int) -> Dataset:
    generator = np.random.default_rng(seed)
    start = generator.integers(0, VOCAB - 5, size=(number, 1))
    words = 5 + (start + np.arange(LENGTH - 2)) % (VOCAB - 5)
    ids = np.concatenate([np.full((number, 1), 2), words, np.full((number, 1), 3)], axis=1).astype(np.uint16)
    return Dataset.from_dict(
        {"input_ids": ids}, features=Features({"input_ids": Sequence(Value("uint16"), length=LENGTH)})
    )


def config(methods: dict | None = None, **changes: Any) -> EffptBertConfig:
    return EffptBertConfig(**{**SHAPE, "methods": methods, **changes})


def model(methods: dict | None = None, **changes: Any) -> EffptBertForMaskedLM:
    return EffptBertForMaskedLM(config(methods, **changes))


def modern_settings(methods: dict | None = None, dropout: float = 0.0, layers: int = 4) -> dict[str, Any]:
    """Shape and dropout of a ModernBERT. All layers that grow attend alike."""
    types = ["sliding_attention"] if methods and "stacking" in methods else MODERN["layer_types"]
    parts = dict.fromkeys(("embedding_dropout", "attention_dropout", "mlp_dropout"), dropout)
    return {**MODERN, "layer_types": (types * layers)[:layers], **parts}


def modern_config(methods: dict | None = None, dropout: float = 0.0, **changes: Any) -> EffptModernBertConfig:
    """The configuration of a ModernBERT; `dropout` is that of all its parts."""
    settings = modern_settings(methods, dropout, changes.get("num_hidden_layers", 4))
    return EffptModernBertConfig(**{**settings, "methods": methods, **changes})


def masked_lm(backbone: str, methods: dict | None = None, dropout: float = 0.0, **changes: Any) -> Any:
    """A masked language model of either backbone."""
    if backbone == "modernbert":
        return model_for(modern_config(methods, dropout=dropout, **changes))
    return model(methods, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **changes)


def joint(
    objective: str = "electra",
    methods: dict | None = None,
    backbone: str = "bert",
    dropout: float = 0.0,
    **changes: Any,
) -> Any:
    """A model with a generator of half its width, or half its depth in a ModernBERT."""
    if backbone == "bert":
        settings = {**SHAPE, **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)}
    else:
        settings = modern_settings(methods, dropout, changes.get("num_hidden_layers", 4))
    settings |= {"generator_size": 0.5, "methods": methods}
    if objective == "mcbert":
        settings |= {"vocab_size": VOCAB + 64, "candidates": 5}  # with rows that no token has
    return model_for(config_for(objective, backbone, **{**settings, **changes}))


def batch(number: int = 8, seed: int = 0, objective: str = "electra") -> dict[str, Any]:
    """A masked batch of the first rows."""
    collate = DataCollatorForMaskedLM(tokenizer(), seed=seed, shares=OBJECTIVES[objective].corruption)
    return collate({"input_ids": np.array(rows(number)["input_ids"])})


def arguments(out: Path, **changes: Any) -> EffptTrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "budget": "8steps",
        "per_device_train_batch_size": 4,
        "warmup_steps": 0.25,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 7,
    }
    return EffptTrainingArguments(**{**settings, **changes})


def trainer(
    out: Path,
    methods: dict | None = None,
    cls: type[EffptTrainer] = EffptTrainer,
    dropout: float = 0.0,
    layers: int = 4,
    objective: str = "mlm",
    backbone: str = "bert",
    counter: FlopCounter | None = None,
    saved: Iterable[int] = (),
    train_dataset: Any = None,
    **changes: Any,
) -> EffptTrainer:
    """A trainer of a freshly initialised model; equal arguments give equal weights. Its rows are those of `rows`.

    Its FLOPs are those of a [`RoughCounter`] unless it is given a counter. Checkpoints are saved after the steps
    `saved`, and left there.
    """
    args = arguments(out, **({"save_total_limit": None} if saved else {}), **changes)
    set_seed(args.seed)
    if objective == "mlm":
        built = masked_lm(backbone, methods, dropout, num_hidden_layers=layers)
    else:
        built = joint(objective, methods, backbone, dropout, num_hidden_layers=layers)
    made = cls(
        model=built,
        args=args,
        train_dataset=rows() if train_dataset is None else train_dataset,
        eval_dataset=rows(12, seed=1),
        processing_class=tokenizer(),
    )
    made.cost.counter = counter or default_counter()
    if saved:
        made.add_callback(SaveAt(saved))
    return made


class RoughCounter(FlopCounter):
    """Counts two FLOPs a token and parameter forward, and four backward; told apart is what a real counter does.

    Counting the products of a shape takes as long as a run of eight steps, and only tests of counting need them.
    """

    @classmethod
    def count_gradients(cls, model: Any, batch: Mapping[str, Any], parameters: Any) -> int:
        return cls._measure(model, batch)

    @staticmethod
    def _measure(
        model: Any, batch: Mapping[str, Any], share: float | None = None, work: Any = None, documents: Any = None
    ) -> int:
        layers = [
            layer
            for encoder in encoders_of(model.backbone)
            for layer in running(encoder, None if work is None else False)
        ]
        sizes = [(parameter.numel(), parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
        every = sum(size for size, _ in sizes)
        learning = 0 if work else sum(size for size, learns in sizes if learns)
        outside = model.config.hidden_size * model.config.vocab_size
        of_layers = (1.0 if share is None else share) * (every + 2 * learning)
        return round(2 * batch["input_ids"].numel() * (of_layers + outside))


default_counter: type[FlopCounter] = RoughCounter


def checkpointing(model: Any, settings: dict | None = None, on: bool = True, **options: Any) -> Any:
    """Has `model` compute activations anew in the backward pass, or keep them; its methods had other names before."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{kind}_checkpointing_enable")(settings, **options)
    else:
        getattr(model, f"{kind}_checkpointing_disable")()
    return model


def weights(of: Any) -> dict[str, Any]:
    """A copy of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in of.named_parameters()}


def assert_same_weights(model: Any, other: Any) -> None:
    """Every parameter and buffer of `model` is, bit for bit, in `other`, which may have more."""
    theirs = other.state_dict()
    for name, ours in model.state_dict().items():
        assert torch.equal(ours, theirs[name]), name


def plant_losses(monkeypatch: Any, losses: Iterable[float]) -> None:
    """Has evaluations find these losses, one after another."""
    given = iter(losses)

    def told(trainer: Any, rows: Any, ignore_keys: Any, prefix: str) -> dict[str, float]:
        trainer.evaluation = {"held_out_loss": next(given)}
        return {f"{prefix}_loss": trainer.evaluation["held_out_loss"]}

    monkeypatch.setattr("hf_effpt.training.trainer.held_out_metrics", told)


class StopAfter(TrainerCallback):
    """Stops a run after so many steps, as a user would, with the schedules of the whole budget."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.steps:
            control.should_training_stop = True


class SaveAt(TrainerCallback):
    """Saves a checkpoint after each of some steps."""

    def __init__(self, steps: Iterable[int]) -> None:
        self.steps = {*steps}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            control.should_save = True
