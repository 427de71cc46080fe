import copy
import json

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from hf_effpt.hub.card import model_card
from hf_effpt.models import EffptBertConfig, EffptBertForMaskedLM
from tests import local_hub as server

hub = server.local_hub

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
RECORD = {
    "recipe": {
        "model": {"size": "tiny", "objective": "mlm"},
        "methods": {"stacking": {"depth": 2, "at": [0.5]}, "layerdrop": {"p": 0.1}},
        "data": {"dataset": "corpus/"},
        "training": {"output_dir": "runs/first", "budget": "4steps", "learning_rate": 0.0005},
    },
    "ledger": {
        "methods": {"stacking": {"depth": 2, "at": [0.5]}, "layerdrop": {"p": 0.1}},
        "layer_order": None,
        "events": [{"step": 2, "method": "stacking", "what": "grew from 2 to 4 layers"}],
    },
    "data": {"dataset": "corpus/", "fingerprint": "f00d", "documents": 12, "bytes": 34567, "tokens": 2048},
    "tokenizer": {"vocab_size": 64, "kind": "wordpiece", "unknown_rate": 0.0, "fertility": 1.25},
    "clock": {
        "unit": "steps",
        "budget": 4.0,
        "steps": 4,
        "tokens": 4096,
        "flops": 1.5e9,
        "seconds": 3.25,
        "joules": None,
    },
    "evaluation": {"held_out_loss": 3.5, "unigram_floor": 4.0, "masked_tokens": 300},
    "model": {"training_class": "EffptBertForMaskedLM", "stock_class": "BertForMaskedLM", "parameters": 12345},
    "throughput": {"tokens_per_second": 1260.0, "mfu": None},
    "environment": {"python": "3.11", "torch": "2.13.0", "device": "cpu"},
    "history": [],
    "command": "effpt pretrain tiny --training.budget 4steps",
}


@pytest.fixture
def record() -> dict:
    """The run.json of a finished run."""
    return copy.deepcopy(RECORD)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "##s"]
    words += [f"[unused{index}]" for index in range(SIZES["vocab_size"] - len(words))]
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    )


@pytest.fixture
def finished_run(tmp_path, record, tokenizer):
    """The folder of a finished run: a stock model at its root, and beside it what nobody should publish."""
    root = tmp_path / "first"
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(root)
    tokenizer.save_pretrained(root)
    (root / "run.json").write_text(json.dumps(record))
    (root / "recipe.yaml").write_text("model: {size: tiny}\n")
    model_card(record).save(root / "README.md")
    (root / "training_args.bin").write_bytes(b"pickle")
    (root / "trainer_state.json").write_text("{}")  # `Trainer.save_state` leaves it there
    (root / "notes.txt").write_text("private")
    (root / ".incoming").mkdir()
    (root / ".incoming" / "config.json").write_text("{}")
    return root


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    """A training checkpoint that has grown and drops layers, in the folder of a run that did not finish."""
    folder = tmp_path / "unfinished" / "checkpoint-2"
    methods = {"stacking": {"depth": 2, "at": [0.5]}, "layerdrop": {"p": 0.1}}
    torch.manual_seed(0)
    model = EffptBertForMaskedLM(EffptBertConfig(**SIZES, methods=methods))
    model.save_pretrained(folder)
    clock = {"unit": "steps", "budget": 4.0, "steps": 2, "tokens": 2048, "rows": 16}
    state = {
        "global_step": 2,
        "log_history": [{"loss": 4.2, "step": 2}],
        "stateful_callbacks": {"ClockCallback": {"args": {}, "attributes": clock}},
    }
    (folder / "trainer_state.json").write_text(json.dumps(state))
    tokenizer.save_pretrained(folder)
    (folder.parent / "recipe.yaml").write_text("model: {size: tiny}\ntraining: {learning_rate: 0.0005}\n")
    return folder
