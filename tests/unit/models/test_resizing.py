"""Tables of a model with methods are resized, and what methods hold of them too."""

import pytest
import torch

from hf_effpt.core.context import RunContext
from hf_effpt.core.errors import EffptError
from hf_effpt.methods.compress.distill import teacher_of
from hf_effpt.methods.tnf.lookup import SPECIAL
from hf_effpt.models.from_checkpoint import extend_positions
from tests import tiny

LEDGERS = {
    "tnf": {"tnf": {"entries": 2, "min_count": 5, "max_count": 6}},
    "lottery": {"lottery": {"rounds": 2}},
    "earlybert": {"earlybert": {"ticket": "magnitude"}},
}
SHORT = tiny.VOCAB - 24  # also of an MC-BERT, whose table has rows that no token has
DISENTANGLED = "electra, disentangled"


def made(kind, ledger):
    few = {"num_hidden_layers": 2}
    if kind in tiny.BACKBONES:
        return tiny.masked_lm(kind, ledger, **few)
    if kind.startswith("modern "):
        return tiny.joint(kind.removeprefix("modern "), ledger, "modernbert", **few)
    if kind == DISENTANGLED:
        return tiny.joint("electra", ledger, embedding_sharing="disentangled", **few)
    return tiny.joint(kind, ledger, **few)


def rows(size):
    """Rows with the last tokens of a vocabulary of this size, and their labels."""
    ids = torch.tensor([[2, 7, 8, 9, size - 1, 3], [2, size - 2, 5, 6, 7, 3]])
    return {"input_ids": ids, "labels": torch.full_like(ids, -100).index_fill(1, torch.tensor([2]), 6)}


def assert_is_loaded(model, folder):
    """A saved model is loaded with all its tensors."""
    model.save_pretrained(folder)
    loaded, report = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tiny.assert_same_weights(model, loaded)
    return loaded


@pytest.mark.parametrize(
    "kind", [*tiny.BACKBONES, "electra", DISENTANGLED, "mcbert", "modern electra", "modern mcbert"]
)
@pytest.mark.parametrize("name", LEDGERS)
def test_a_longer_vocabulary_is_learned_from_and_saved(tmp_path, kind, name):
    model = made(kind, LEDGERS[name])
    size = model.config.vocab_size + 21
    model.resize_token_embeddings(size)
    assert model.train()(**rows(size)).loss.isfinite()
    loaded = assert_is_loaded(model, tmp_path)
    assert loaded.config.vocab_size == size
    assert loaded.export().config.vocab_size == size


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
@pytest.mark.parametrize("name", LEDGERS)
def test_a_shorter_vocabulary_is_saved(tmp_path, backbone, name):
    model = made(backbone, LEDGERS[name])
    model.resize_token_embeddings(SHORT)
    assert model.train()(**rows(SHORT)).loss.isfinite()
    assert_is_loaded(model, tmp_path)


def test_further_tokens_are_no_words_of_notes():
    model = tiny.model(LEDGERS["tnf"])
    notes = model.bert.notes
    notes.kinds[:] = torch.arange(tiny.VOCAB) % 7
    model.resize_token_embeddings(tiny.VOCAB + 5)
    assert torch.equal(notes.kinds[: tiny.VOCAB], (torch.arange(tiny.VOCAB) % 7).to(torch.uint8))
    assert notes.kinds[tiny.VOCAB :].tolist() == [SPECIAL] * 5


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_a_teacher_reads_further_tokens_as_the_mean_of_those_it_knows(tmp_path, backbone):
    model = tiny.masked_lm(backbone, {"compress": {"depth": 2, "distill": 0.5, "at": 0.5}})
    model.methods[0].advance(model.backbone, RunContext(4, 0.6))
    before = teacher_of(model.backbone).encoder.get_input_embeddings().weight
    model.resize_token_embeddings(tiny.VOCAB + 9)
    after = teacher_of(model.backbone).encoder.get_input_embeddings().weight
    assert torch.equal(after[: tiny.VOCAB], before)
    torch.testing.assert_close(after[tiny.VOCAB :], before.mean(dim=0).expand(9, -1))
    loaded = assert_is_loaded(model, tmp_path)
    terms = []
    for each in (model, loaded):
        each.train()(**rows(tiny.VOCAB + 9))
        terms.append(teacher_of(each.backbone).take_term())
    assert terms[0] > 0
    assert torch.equal(*terms)


def test_counters_of_a_selection_follow_the_vocabulary(tmp_path):
    model = tiny.model({"selection": {"strategy": "adaptive_masking", "rows": 12}})
    selector = model.bert.selector
    selector.frequencies += 3
    selector.strategy.rates *= 0.5
    model.resize_token_embeddings(tiny.VOCAB + 4)
    assert selector.frequencies[-5:].tolist() == [3, 0, 0, 0, 0]
    assert selector.strategy.rates[-5:].tolist() == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert selector.strategy.losses.isinf().all()
    assert_is_loaded(model, tmp_path)


@pytest.mark.parametrize("name", ["lottery", "earlybert"])
@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_more_positions_are_in_the_snapshot(tmp_path, kind, name):
    model = made(kind, LEDGERS[name])
    extend_positions(model, 80)
    model.resize_token_embeddings(tiny.VOCAB + 8)
    assert_is_loaded(model, tmp_path)
    model.snapshot.take(model)
    held = dict(model.snapshot.named_buffers())
    assert any(len(tensor) == 80 for tensor in held.values())


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_tables_keep_their_size_once_weights_to_rewind_to_are_taken(kind):
    model = made(kind, LEDGERS["lottery"])
    model.snapshot.take(model)
    model.resize_token_embeddings(tiny.VOCAB)
    assert model.snapshot.is_taken
    for change in (model.resize_token_embeddings, lambda size: extend_positions(model, size)):
        with pytest.raises(
            EffptError, match="`lottery` may rewind the weights to those that a run began with, whose tables"
        ):
            change(tiny.VOCAB + 8)
    assert len(model.get_input_embeddings().weight) == model.config.vocab_size == tiny.VOCAB
    assert model.config.max_position_embeddings == 32
