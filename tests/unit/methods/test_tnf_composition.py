"""TNF with other methods, other encoders, several processes, data workers and fine-tuning."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from transformers import ElectraConfig, ElectraModel

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.ledger import record
from hf_effpt.core.metrics import accumulator_of
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.methods import TNF
from hf_effpt.methods.tnf import DataCollatorForNotes
from hf_effpt.models import EffptBertForMaskedLM, EffptBertForSequenceClassification
from hf_effpt.training.flops import FlopCounter
from tests import tiny

from . import notes
from .notes import RARE

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
IDS = [((6,), RARE[0], (7, 80)), (RARE[1], (8,), RARE[0])]


def test_with_layer_drop_every_training_forward_writes_from_the_layers_that_ran():
    model = notes.model({"layerdrop": {"p": 0.4}}, config=NO_DROPOUT, k=1).train()
    index, stack = notes.entry(model, RARE[1]), stack_of(model.bert)
    shapes = set()
    for step in range(6):
        for method in model.methods:
            method.schedule(model.bert, RunContext(step, step / 6, seed=3))
        shapes.add(stack.active)
        before = model.bert.notes.vectors[index].clone()
        hidden = model.bert(notes.batch(((6,), RARE[1]))).last_hidden_state
        expected = 0.9 * before + 0.1 * hidden[0, 1:4].mean(0)
        assert torch.allclose(model.bert.notes.vectors[index], expected, atol=1e-6)
    assert len(shapes) > 1
    assert accumulator_of(model.bert).take()["tnf_written"] == 6


def test_with_stacking_notes_are_kept_by_default():
    model = notes.model({"stacking": {"depth": 2, "at": [0.5]}})
    model.train()(notes.batch(*IDS))
    before = model.bert.notes.vectors.clone()
    for method in model.methods:
        method.advance(model.bert, RunContext(4, 0.5))
        method.schedule(model.bert, RunContext(4, 0.5, seed=1))
    assert len(stack_of(model.bert).order) == 4
    assert torch.equal(model.bert.notes.vectors, before)
    model(notes.batch(*IDS))
    assert not torch.equal(model.bert.notes.vectors, before)
    exported = model.export()
    assert exported.config.num_hidden_layers == 4


def test_reset_at_growth_is_the_same_for_a_resumed_run():
    model = notes.model({"stacking": {"depth": 2, "at": [0.5]}}, at_growth="reset")
    method, dictionary = notes.method(model), model.bert.notes
    initial = dictionary.vectors.clone()
    method.schedule(model.bert, RunContext(4, 0.4, seed=1))
    assert torch.equal(dictionary.vectors, initial)
    record(model.config, 5, "stacking", "grew")
    state = torch.get_rng_state()
    method.schedule(model.bert, RunContext(5, 0.5, seed=1))
    drawn = dictionary.vectors.clone()
    assert not torch.equal(drawn, initial)
    assert drawn.std() == pytest.approx(0.02, rel=0.3)
    method.schedule(model.bert, RunContext(5, 0.5, seed=1))  # a run that resumes at this step
    assert torch.equal(dictionary.vectors, drawn)
    assert torch.equal(torch.get_rng_state(), state)
    method.schedule(model.bert, RunContext(6, 0.6, seed=1))
    assert torch.equal(dictionary.vectors, drawn)
    method.schedule(model.bert, RunContext(5, 0.5, seed=2))
    assert not torch.equal(dictionary.vectors, drawn)


@pytest.mark.parametrize(("gamma", "faster"), [(0.1, 0.3), (0.5, 1.0)])
def test_fast_at_growth_lasts_a_tenth_of_the_steps_before(gamma, faster):
    model = notes.model({"stacking": {"depth": 2, "at": [0.5]}}, at_growth="fast", gamma=gamma)
    record(model.config, 30, "stacking", "grew")
    seen = {}
    for step in (33, 30, 32, 31, 99):
        notes.method(model).schedule(model.bert, RunContext(step, 0.5, seed=1))
        seen[step] = model.bert.notes.gamma
    assert seen == pytest.approx({30: faster, 31: faster, 32: faster, 33: gamma, 99: gamma})


@pytest.mark.parametrize("embedding_size", [16, 32])
def test_an_electra_encoder_blends_where_the_note_fits(embedding_size):
    """Into the sum of the embeddings, or into their projection where they are narrower than the encoder."""
    torch.manual_seed(0)
    config = ElectraConfig(**tiny.SHAPE, embedding_size=embedding_size, **NO_DROPOUT)
    config.methods, config.events, config.layer_order = {}, None, None
    encoder = ElectraModel(config).train()
    tnf = TNF(min_count=4, max_count=4, weight=0.25)
    tnf.prepare(encoder, notes.context(notes.text(notes.rows())))
    ids = notes.batch(((6,), RARE[1]), ((6,), (7,)))
    place = encoder.embeddings_project if embedding_size == 16 else encoder.embeddings.LayerNorm
    seen = {}
    if embedding_size == 16:
        place.register_forward_hook(lambda module, args, out: seen.update(mixed=out, plain=module.forward(args[0])))
    else:
        table = encoder.embeddings
        plain = table.word_embeddings(ids) + table.token_type_embeddings.weight[0]
        seen["plain"] = plain + table.position_embeddings.weight[:16]
        place.register_forward_pre_hook(lambda _, args: seen.update(mixed=args[0]))
    vectors = encoder.notes.vectors.clone()
    encoder(ids)
    index = int(notes.looked_up(encoder.notes, ids)[0, 2])
    expected = seen["plain"].clone()
    expected[0, 2] = 0.75 * expected[0, 2] + 0.25 * vectors[index]
    assert torch.allclose(seen["mixed"], expected, atol=1e-6)
    assert not torch.equal(vectors, encoder.notes.vectors)
    tnf.eject(encoder)
    assert not place._forward_hooks or embedding_size == 16
    assert not encoder._forward_hooks


def test_a_collator_finds_what_the_model_would_find():
    model = notes.model(config=NO_DROPOUT).train()
    tokenizer = tiny.tokenizer()
    inner = DataCollatorForMaskedLM(tokenizer, seed=4)
    collator = pickle.loads(pickle.dumps(DataCollatorForNotes(inner, model.bert.notes)))
    assert collator.mlm_probability == inner.mlm_probability
    with pytest.raises(AttributeError):
        _ = collator.no_such_thing
    batch = collator([{"input_ids": row} for row in notes.rows()])
    plain = inner([{"input_ids": row} for row in notes.rows()])
    assert torch.equal(batch["input_ids"], plain["input_ids"])
    assert torch.equal(batch["note_ids"], notes.looked_up(model.bert.notes, batch["input_ids"]))
    assert 0 < (batch["note_ids"] >= 0).double().mean() < 0.5
    own = pickle.loads(pickle.dumps(model.bert.notes.vectors))
    loss = model(**batch).loss
    given = model.bert.notes.vectors.clone()
    sums = accumulator_of(model.bert).take()
    model.bert.notes.vectors.copy_(own)
    assert torch.equal(model(**plain).loss, loss)
    assert torch.equal(model.bert.notes.vectors, given)
    again = accumulator_of(model.bert).take()
    assert all(torch.equal(sums[name], again[name]) for name in again)
    assert FlopCounter().count(model, batch) == FlopCounter().count(model, plain) > 0
    assert torch.equal(model.bert.notes.vectors, given)  # counting writes nothing
    model.bert.notes.keys.copy_(torch.arange(4))
    assert not torch.equal(model(**batch).loss, model(**plain).loss)  # what a collator has found is used


@pytest.mark.parametrize("use", ["frozen", "updating"])
def test_fine_tuning_with_notes(tmp_path, use):
    """Frozen notes are read and not written; updated ones are written in training; no stock export has them."""
    notes.model().save_pretrained(tmp_path)
    config = tiny.config({"tnf": {**notes.model().config.methods["tnf"], "use": use}}, **NO_DROPOUT)
    model = EffptBertForSequenceClassification.from_pretrained(tmp_path, config=config)
    assert torch.equal(model.bert.notes.vectors, EffptBertForMaskedLM.from_pretrained(tmp_path).bert.notes.vectors)
    ids = notes.batch(*IDS)
    with_notes = model.eval()(ids).logits
    before = model.bert.notes.vectors.clone()
    model.train()(ids)
    assert torch.equal(model.bert.notes.vectors, before) == (use == "frozen")
    after = model.bert.notes.vectors.clone()
    model.eval()(ids)
    assert torch.equal(model.bert.notes.vectors, after)
    model.bert.notes.keys.copy_(torch.arange(len(RARE)))
    assert not torch.equal(model(ids).logits, with_notes)
    with pytest.raises(EffptError, match=f"`{use}`.*no stock model does"):
        model.export()
    with pytest.raises(EffptError, match=rf"`tnf\.use` is `{use}`.*stock Trainer"):
        notes.prepare(model)


def fine_tuned(tmp_path, use):
    """A classifier with the dictionary of a training checkpoint."""
    notes.model().save_pretrained(tmp_path)
    config = tiny.config({"tnf": {**notes.model().config.methods["tnf"], "use": use}}, **NO_DROPOUT)
    return EffptBertForSequenceClassification.from_pretrained(tmp_path, config=config)


@pytest.mark.parametrize("use", ["frozen", "updating"])
@pytest.mark.parametrize("last", [RARE[0], RARE[1]])
def test_an_example_has_the_same_logits_and_notes_whatever_its_padding(tmp_path, use, last):
    """The example ends with a rare word, which nothing has cut off."""
    example = torch.tensor([[notes.CLS, 6, 7, *last, notes.SEP]])
    model = fine_tuned(tmp_path, use).train(use == "updating")
    alone = copy.deepcopy(model)
    logits = alone(example, attention_mask=torch.ones_like(example)).logits
    assert not torch.allclose(logits, without_notes(model)(example).logits, atol=1e-5)
    long = torch.tensor([notes.row((8,), RARE[2])])
    for pads in (0, 1, 7):
        width = example.shape[1] + pads
        ids = torch.full((2, max(width, 16)), notes.PAD)
        ids[:1, : example.shape[1]], ids[1:, :16] = example, long
        ids = ids[:1, :width] if pads < 7 else ids
        padded = copy.deepcopy(model)
        output = padded(ids, attention_mask=(ids != notes.PAD).long())
        assert torch.allclose(output.logits[:1], logits, atol=1e-5), pads
        entry = int(notes.looked_up(padded.bert.notes, torch.tensor([notes.row((6,), last)]))[0, 2])
        written = [of.bert.notes.vectors[entry] for of in (alone, padded)]
        assert torch.allclose(*written, atol=1e-5)
        assert torch.equal(written[1], model.bert.notes.vectors[entry]) == (use == "frozen")


def without_notes(model):
    """A copy that finds no word."""
    other = copy.deepcopy(model)
    other.bert.notes.keys.copy_(torch.arange(len(RARE)))
    return other


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_isolated_documents_in_a_row_write_the_notes_of_documents_in_rows_of_their_own(attention):
    """Windows end, and words are cut off, where documents and not rows do."""
    documents = [
        [notes.CLS, 6, *RARE[1], notes.SEP],
        [notes.CLS, 7, 80, *RARE[0], notes.SEP],
        [notes.CLS, 8, *RARE[3], notes.SEP],
    ]
    config = {**NO_DROPOUT, "attn_implementation": attention}
    together = notes.model(config=config, k=16).train()
    ids = torch.tensor([[token for document in documents for token in document]])
    document_ids = torch.tensor([[place for place, of in enumerate(documents, 1) for _ in of]])
    labels = torch.full_like(ids, -100)
    labels[0, 1] = 9
    apart = copy.deepcopy(together)
    before = together.bert.notes.vectors.clone()
    together(ids, labels=labels, document_ids=document_ids)
    for document in documents:  # padded, so that none fills its row
        row = torch.tensor([[*document, notes.PAD]])
        apart.bert(row, attention_mask=(row != notes.PAD).long())
    assert (together.bert.notes.vectors != before).any(dim=1).sum() == 3
    assert torch.allclose(together.bert.notes.vectors, apart.bert.notes.vectors, atol=1e-5)
    assert accumulator_of(together.bert).take()["tnf_written"] == 3
    collated = DataCollatorForNotes(lambda batch: batch, together.bert.notes)
    found = collated({"input_ids": ids, "document_ids": document_ids})["note_ids"]
    assert (found >= 0).sum() == sum(len(RARE[place]) for place in (0, 1, 3))
    assert (collated({"input_ids": ids})["note_ids"] >= 0).sum() == sum(len(RARE[place]) for place in (0, 1))


def test_the_text_needs_no_more_than_it_says():
    """A tokenizer smaller than the embedding table: ids beyond it are special and never hit."""
    text = notes.text(notes.rows())
    model = tiny.model({"tnf": {"min_count": 4, "max_count": 4}}, vocab_size=tiny.VOCAB + 64)
    notes.method(model).prepare(model.bert, notes.context(SimpleNamespace(**vars(text))))
    assert len(model.bert.notes.kinds) == tiny.VOCAB + 64
    assert len(model.bert.notes.keys) == len(RARE)


def test_beside_a_generator_notes_are_looked_up_in_what_the_backbone_reads():
    model = tiny.joint("electra", {"tnf": {"min_count": 4, "max_count": 4}}).train()
    notes.prepare(model)
    batch = tiny.batch()
    sums = []
    for given in (batch, {**batch, "note_ids": torch.zeros_like(batch["input_ids"])}):
        model(**given)
        sums.append(accumulator_of(model.electra).take())
    assert sums[0]["tnf_words"] > 0
    assert sums[0]["tnf_hits"] == sums[1]["tnf_hits"]
