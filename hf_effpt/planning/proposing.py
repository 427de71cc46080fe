"""Proposes a recipe for a budget: size, batch, learning rate and start, each with its reason.

Two points are known: minutes of one core, measured with this package (model_cards/README.md), and a day of one GPU, as
published (recipes/bert_base.yaml). Settings go from one to the other; between them nothing was measured.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_effpt.core.clock import scheduled
from hf_effpt.recipe.settings import SIZES

POSITIONS = 512  # of a model by default
TOKENS_A_PARAMETER = 20  # of the layers (Hoffmann et al., 2022, for decoders)
ROWS, TOKENS, MOST_ROWS = 8, 5e6, 1024  # a step, at so many tokens of a run
LEAST_ROWS = {"cpu": ROWS, "cuda": 64}  # a step; fewer leave a GPU idle
WIDTHS, RATES = (128, 768), (3e-3, 1e-3)
WIDE, SMALL_VOCABULARY, VOCABULARY = 512, 8192, 32768


@dataclass(frozen=True)
class Candidate:
    """A model size and the rows of an optimizer step."""

    size: str
    rows: int


def candidate_for(
    flops: float, flops_per_token: float, of: str, least_rows: int = ROWS, below: str | None = None
) -> Candidate:
    """The largest size that sees enough tokens for so many FLOPs, and the rows of its steps, not below the least.

    `flops_per_token` are those measured of the size `of`; those of other sizes follow from their shapes. With `below`,
    which does not fit into memory, only smaller sizes are looked at.
    """
    sizes = list(SIZES) if below is None else list(SIZES)[: list(SIZES).index(below)]
    tokens = {size: flops / (flops_per_token * _products(size) / _products(of)) for size in sizes}
    enough = [size for size in sizes if tokens[size] >= TOKENS_A_PARAMETER * layer_parameters(size)]
    size = (enough or ["tiny"])[-1]
    return Candidate(size, max(least_rows, rows_for(tokens[size])))


def layer_parameters(size: str) -> int:
    """Parameters of all layers, without embeddings and head."""
    layers, width, _ = SIZES[size]
    return 12 * layers * width**2


def _products(size: str) -> float:
    """Products a token: those of the layers, and of the head at the masked 15 %."""
    width = SIZES[size][1]
    return layer_parameters(size) + 0.15 * width * (width + vocabulary_for(size))


def vocabulary_for(size: str) -> int:
    return VOCABULARY if SIZES[size][1] >= WIDE else SMALL_VOCABULARY


def rows_for(tokens: float) -> int:
    """Rows of a step: 8 up to some million tokens, then a power of two that grows with the root of their number."""
    wanted = ROWS * math.sqrt(max(1.0, tokens / TOKENS))
    return min(MOST_ROWS, 2 ** int(math.log2(wanted)))


def rate_for(width: int) -> float:
    """Peak learning rate: a power of the width through both known points, with two digits."""
    power = math.log(RATES[1] / RATES[0]) / math.log(WIDTHS[1] / WIDTHS[0])
    return float(f"{RATES[0] * (width / WIDTHS[0]) ** power:.1e}")


def proposed(candidate: Candidate, data: Mapping[str, Any], gpu: bool, micro_rows: int) -> dict[str, dict[str, Any]]:
    """Sections of the recipe of a candidate; `data` are settings given by the user, and go first.

    `micro_rows` is the most rows that are computed at once.
    """
    layers, width, _ = SIZES[candidate.size]
    narrow = max(layers // 3, min(2, layers // 2))  # as in fast_tiny, fast_small and fast_base
    micro = min(candidate.rows, micro_rows)
    given = {"vocab_size": vocabulary_for(candidate.size)} if data.get("tokenizer") is None else {}
    data = {"sequence_length": 128, **given, **data}
    longest = max(map(int, scheduled(data["sequence_length"], "data.sequence_length").values()))
    training = {
        "learning_rate": rate_for(width),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": candidate.rows // micro,
        "lr_scheduler_type": "linear",
        **({"bf16": True} if gpu else {}),
    }
    return {
        "model": {
            "backbone": "modernbert",
            "size": candidate.size,
            "objective": "mlm",
            "layer_types": ["sliding_attention"] * narrow + ["full_attention"] * (layers - narrow),
            "local_attention": 8,
            "rotary_base": 10000,
            "start": {"bias": "unigram", "embeddings": "cooccurrence"},
            **({"max_position_embeddings": longest} if longest > POSITIONS else {}),
        },
        "data": data,
        "training": training,
    }


# Why a setting is as it is; differences are of model_cards/README.md, at 1 million tokens unless said otherwise.
REASONS = {
    "model.backbone": "1.06 nats below BERT after 4.9 million tokens",
    "model.size": f"the largest that sees {TOKENS_A_PARAMETER} tokens for each parameter of its layers",
    "model.objective": "no score has told the others from it in minutes",
    "model.layer_types": "a narrow window below was 0.37 nats lower, though three seeds show no difference",
    "model.local_attention": "four tokens on either side",
    "model.rotary_base": "for short rows, as published for ModernBERT",
    "model.max_position_embeddings": "the longest rows",
    "model.start": "token frequencies gained 0.44 nats, word vectors 0.92",
    "data.sequence_length": "as in the runs measured",
    "data.vocab_size": "8,192 as measured; from small on 32,768, as published for base",
    "training.learning_rate": "3e-3 at width 128 as measured, 1e-3 at 768 as published, a power between",
    "training.per_device_train_batch_size": "steps of 8 rows were 0.34 nats lower than of 32",
    "training.gradient_accumulation_steps": "rows of a step grow with the root of the tokens",
    "training.lr_scheduler_type": "at 0 when the budget is spent",
    "training.bf16": "usual on GPUs; not measured here",
}
METHODS = (
    "No methods: growing depth gained 0.08 to 0.11 nats in minutes of a BERT of 4 layers, but none was measured with "
    "this backbone and start."
)
