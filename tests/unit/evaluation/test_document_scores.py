import json
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    ElectraConfig,
    ElectraForPreTraining,
)

from hf_effpt.core.errors import EffptError
from hf_effpt.data import DataCollatorForMaskedLM, corpus_of, facts, pack
from hf_effpt.data.document_meter import document_sizes
from hf_effpt.data.document_selection import Kept, SelectSettings
from hf_effpt.data.holding_out import held_out
from hf_effpt.data.packing import share_held_out
from hf_effpt.evaluation import document_scores as module
from hf_effpt.evaluation.document_scores import document_embeddings, document_losses, select_documents
from tests import tiny

SHAPE = {key: value for key, value in tiny.SHAPE.items() if key != "methods"}


def varied(model):
    """In evaluation mode, with weights large enough for every token in sight to matter."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    return model.eval()


def knows_frequencies():
    """A model that gives word `wi` a probability that falls with i, wherever it stands."""
    model = BertForMaskedLM(BertConfig(**SHAPE)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.cls.predictions.bias.copy_(-0.1 * torch.arange(tiny.VOCAB))
    return model


def text(words):
    return " ".join(f"w{word % 123}" for word in words)


@pytest.fixture
def texts():
    """40 documents of 1 to 200 words."""
    draw = random.Random(0)
    return [text(draw.choices(range(123), k=draw.randint(1, 200))) for _ in range(40)]


def saved(model, folder):
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def selected(corpus, tmp_path, share=None, **settings):
    return select_documents(corpus, SelectSettings(**settings), share, cache_dir=tmp_path / "cache")


def test_a_loss_is_the_mean_over_the_masked_tokens_of_the_first_rows(texts):
    model, collate = varied(BertForMaskedLM(BertConfig(**SHAPE))), DataCollatorForMaskedLM(tiny.tokenizer())
    found = document_losses(model, tiny.tokenizer(), texts)
    length = tiny.SHAPE["max_position_embeddings"]
    for document, words in enumerate(texts):
        ids = tiny.tokenizer().backend_tokenizer.encode(words, add_special_tokens=False).ids[: 4 * (length - 2)]
        total = masked = 0
        for first in range(0, len(ids), length - 2):
            inputs = collate([{"input_ids": [2, *ids[first : first + length - 2], 3]}])
            labels = inputs.pop("labels")
            inputs.pop("masked_positions")
            with torch.no_grad():
                logits = model(**inputs).logits
            total += nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="sum")
            masked += int((labels != -100).sum())
        assert found[document] == pytest.approx(float(total) / masked, rel=1e-4)
    assert len(set(found.round(3))) > 30


def test_scores_depend_on_neither_neighbours_nor_mode_and_move_no_generator(monkeypatch, texts):
    model = varied(BertForMaskedLM(BertConfig(**SHAPE))).train()
    state = torch.get_rng_state()
    losses = document_losses(model, tiny.tokenizer(), texts)
    embeddings = document_embeddings(model.bert, tiny.tokenizer(), texts)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in model.modules())
    monkeypatch.setattr(module, "GROUP", 7)
    monkeypatch.setattr(module, "BATCH", 3)
    turned = [*texts[::-1], texts[0]]
    again = document_losses(model, tiny.tokenizer(), turned)
    np.testing.assert_allclose(again[:-1], losses[::-1], rtol=1e-4)
    assert again[-1] == pytest.approx(again[-2], rel=1e-5)
    np.testing.assert_allclose(
        document_embeddings(model.bert, tiny.tokenizer(), turned)[:-1], embeddings[::-1], rtol=1e-3, atol=1e-4
    )


def test_an_embedding_is_the_mean_output_over_the_tokens_of_the_first_rows(texts):
    encoder = varied(BertModel(BertConfig(**SHAPE)))
    found = document_embeddings(encoder, tiny.tokenizer(), texts)
    assert found.shape == (40, 32)
    for document, words in enumerate(texts):
        ids = tiny.tokenizer().backend_tokenizer.encode(words, add_special_tokens=False).ids[:120]
        with torch.no_grad():
            outputs = [
                encoder(torch.tensor([[2, *ids[first : first + 30], 3]])).last_hidden_state[0]
                for first in range(0, len(ids), 30)
            ]
        np.testing.assert_allclose(found[document], torch.cat(outputs).mean(0).numpy(), rtol=1e-3, atol=1e-4)


def test_documents_in_which_nothing_can_be_masked_have_no_loss():
    losses = document_losses(knows_frequencies(), tiny.tokenizer(), ["w1 w2", "unheard of", "\x00", "w3"])
    assert np.isnan(losses).tolist() == [False, True, True, False]
    embeddings = document_embeddings(knows_frequencies().bert, tiny.tokenizer(), ["w1", "\x00"])
    assert np.isfinite(embeddings).all()


@pytest.mark.parametrize(("band", "words"), [("low", range(20)), ("middle", range(10, 30)), ("high", range(20, 40))])
def test_a_model_keeps_the_band_of_its_losses(tmp_path, band, words):
    """Document i is made of one word, the less frequent the higher i."""
    folder = saved(knows_frequencies(), tmp_path / "model")
    order = random.Random(1).sample(range(40), 40)
    corpus = corpus_of([text([3 * word] * 50) for word in order])
    kept = selected(corpus, tmp_path, model=folder, keep=0.5, band=band)
    assert sorted(np.array(order)[kept.chosen_N]) == list(words)
    assert kept.facts["documents"] == 40
    assert kept.facts["kept"] == 20


def test_doubles_go_before_losses_are_compared(monkeypatch, tmp_path, texts):
    folder, judged = saved(knows_frequencies(), tmp_path / "model"), []

    def fake(model, tokenizer, documents):
        judged.extend(documents)
        return np.arange(len(judged), dtype=float)

    monkeypatch.setattr(module, "document_losses", fake)
    corpus = corpus_of([text for text in texts[:10] for _ in range(3)])
    kept = selected(corpus, tmp_path, deduplicate="exact", model=folder, keep=0.3, band="high")
    assert judged == texts[:10]
    assert np.flatnonzero(kept.chosen_N).tolist() == [21, 24, 27]
    assert kept.facts["documents"] == 30


def test_semantic_doubles_are_those_that_a_model_embeds_alike(tmp_path, caplog):
    """The model knows the words of a document and not their order."""
    model = BertModel(BertConfig(**SHAPE))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(float("LayerNorm.weight" in name))
        nn.init.normal_(model.embeddings.word_embeddings.weight)
    folder = saved(model, tmp_path / "model")
    originals = [text(range(6 * topic, 6 * topic + 6)) for topic in range(20)]
    doubles = [" ".join(reversed(words.split())) for words in originals[:15]]
    kept = selected(corpus_of([*originals, *doubles]), tmp_path, deduplicate="semantic", model=folder)
    assert kept.chosen_N.tolist() == [True] * 20 + [False] * 15
    assert kept.facts["similarity"] == 0.95
    assert kept.facts["alike"] == pytest.approx(15 / 595, abs=0.005)  # of 35 * 34 / 2 pairs
    assert kept.facts["left_alike"] == 0.0
    assert not caplog.text
    apart = corpus_of([*doubles[:3], text(range(50, 60))])
    kept = selected(corpus_of(originals), tmp_path, share=apart, deduplicate="semantic", model=folder)
    assert np.flatnonzero(~kept.chosen_N).tolist() == [0, 1, 2]


def test_a_model_that_tells_no_documents_apart_is_warned_of_each_time(tmp_path, caplog):
    model = BertModel(BertConfig(**SHAPE))
    with torch.no_grad():  # all documents are about the bias of the last layer
        model.encoder.layer[-1].output.LayerNorm.bias.fill_(50.0)
    folder = saved(model, tmp_path / "model")
    corpus = corpus_of([text(range(6 * topic, 6 * topic + 6)) for topic in range(20)])
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        kept = selected(corpus, tmp_path, deduplicate="semantic", model=folder)
        assert kept.chosen_N.sum() < 10
        assert "takes about 100 % of all pairs of documents for doubles" in caplog.text
    caplog.clear()
    selected(corpus, tmp_path, deduplicate="exact")
    assert not caplog.text


def test_only_documents_that_are_not_held_out_are_looked_at(tmp_path, texts):
    corpus = corpus_of(texts + texts)
    aside = held_out(lambda: [document_sizes(texts + texts)], 0.25)
    kept = selected(corpus, tmp_path, share=0.25, deduplicate="exact")
    assert kept.facts["documents"] == 80 - aside.sum()
    assert not (kept.chosen_N & aside).any()
    # Of two equal ones the first stays, unless one is held out.
    assert kept.chosen_N[:40].tolist() == (~aside[:40] & ~aside[40:]).tolist()
    assert not kept.chosen_N[40:].any()
    assert 0 < kept.facts["kept"] < 40
    assert selected(corpus, tmp_path, share=corpus_of(texts[:5]), deduplicate="exact").facts["kept"] == 35


def test_documents_are_selected_beside_those_that_are_held_out_for_a_row(tmp_path):
    """A small share is raised until there is a row: by packing and by selection to the same documents."""
    draw, pack_settings = random.Random(5), {"sequence_length": 48, "cache_dir": tmp_path / "cache"}
    some = [text(draw.choices(range(123), k=draw.choice((4, 9, 20, 45)))) for _ in range(24)]
    corpus, tokenizer = corpus_of([*some, *(one + " " for one in some)]), tiny.tokenizer()
    share = share_held_out(corpus, tokenizer, 0.004, **pack_settings)
    assert 0.03 < share < 0.5
    kept = selected(corpus, tmp_path, share=share, deduplicate="exact")
    packed = pack(corpus, tokenizer, validation=0.004, kept=kept, **pack_settings)
    train, aside = facts(packed["train"]), facts(packed["validation"])
    plain = pack(corpus, tokenizer, validation=0.004, **pack_settings)
    assert packed["validation"]["input_ids"][:] == plain["validation"]["input_ids"][:]
    assert (train["doubles"], facts(plain["train"])["doubles"] > 0) == (0, True)
    apart = {one.strip() for one, held in zip(corpus.texts(), kept.held_out_N, strict=True) if held}
    assert kept.held_out_N.sum() == aside["documents"]
    assert train["documents"] + len(apart) == len(set(some))  # each text is in one of them
    # Those chosen beside fewer held-out documents are refused: some would be in neither.
    fewer = selected(corpus, tmp_path, share=0.03, deduplicate="exact")
    with pytest.raises(EffptError, match=rf"selected beside \d held-out documents .* Select with validation={share}"):
        pack(corpus, tokenizer, validation=0.004, kept=fewer, **pack_settings)
    pack(corpus, tokenizer, validation=0.004, kept=Kept(fewer.chosen_N), **pack_settings)  # from an older version


@pytest.mark.parametrize(("isolate", "needed"), [(False, 46), (True, 1)])
def test_a_row_is_counted_alike_whether_documents_are_packed_or_not(tmp_path, isolate, needed):
    settings = {"sequence_length": 48, "isolate_documents": isolate, "cache_dir": tmp_path}
    for words in (3, 20, 45):
        texts = [text(range(words))] * 40 + ["\u200b"]
        corpus, sizes = corpus_of(texts), document_sizes(texts)
        share = share_held_out(corpus, tiny.tokenizer(), 1 / 39, **settings)
        told = facts(pack(corpus, tiny.tokenizer(), validation=1 / 39, **settings)["train"])["held_out"]
        aside = held_out(lambda sizes=sizes: [sizes], share)
        assert told["documents"] == aside.sum()
        assert told["documents"] * (words + 1) >= needed


def test_a_damaged_choice_is_made_anew(tmp_path, texts):
    kept = selected(corpus_of(texts), tmp_path, deduplicate="exact")
    (entry,) = [path for path in (tmp_path / "cache" / "selected").iterdir() if path.is_dir()]
    for name in ("kept.npy", "facts.json"):
        (entry / name).write_bytes(bytes((entry / name).stat().st_size))
        assert selected(corpus_of(texts), tmp_path, deduplicate="exact").chosen_N.tolist() == kept.chosen_N.tolist()


def test_near_doubles_of_held_out_text_go(tmp_path, texts):
    long = [text for text in texts if len(text.split()) > 50]
    aside = corpus_of([long[0] + " w1 w2", "w3 w4"])
    kept = selected(corpus_of(long), tmp_path, share=aside, deduplicate="near")
    assert np.flatnonzero(~kept.chosen_N).tolist() == [0]


def test_the_second_call_does_not_judge_again(monkeypatch, tmp_path, texts):
    folder, calls = saved(knows_frequencies(), tmp_path / "model"), []
    real = module.document_losses
    monkeypatch.setattr(module, "document_losses", lambda *parts: (calls.append(1), real(*parts))[1])

    def again(documents=texts, **changes):
        return selected(corpus_of(documents), tmp_path, **{"model": folder, "keep": 0.5, "band": "low", **changes})

    first, second = again(), again()
    assert (first.chosen_N == second.chosen_N).all()
    assert first.facts == second.facts
    assert first.facts["seconds"] > 0
    assert {"model": folder, "keep": 0.5, "band": "low"}.items() <= first.facts.items()
    moved = saved(knows_frequencies(), tmp_path / "moved")
    assert again(model=moved).facts == first.facts | {"model": moved}
    assert len(calls) == 1
    for number, change in enumerate(
        [{"band": "high"}, {"keep": 0.4}, {"share": 0.1}, {"documents": texts[1:]}, {"deduplicate": "exact"}]
    ):
        again(**change)
        assert len(calls) == number + 2
    other = saved(varied(BertForMaskedLM(BertConfig(**SHAPE))), tmp_path / "other")
    assert again(model=other).facts["weights"] != first.facts["weights"]
    assert len(calls) == 7


def test_a_model_that_cannot_judge_is_named(tmp_path, texts):
    band = {"keep": 0.5, "band": "low"}

    def refused(message, folder, **settings):
        with pytest.raises(EffptError, match=message):
            selected(corpus_of(texts), tmp_path, model=str(folder), **settings)

    refused("`data.select.model` is '.*missing'.*has no config.json", tmp_path / "missing", **band)
    refused("has no config.json", tmp_path / "missing", deduplicate="semantic")
    electra = saved(ElectraForPreTraining(ElectraConfig(**SHAPE)), tmp_path / "electra")
    refused("holds a ElectraForPreTraining, but `keep` needs a masked language model", electra, **band)
    classifier = saved(BertForSequenceClassification(BertConfig(**SHAPE)), tmp_path / "classifier")
    refused("lacks weights of its pre-training head", classifier, **band)
    assert selected(corpus_of(texts), tmp_path, model=classifier, deduplicate="semantic").chosen_N.any()
    masked = saved(knows_frequencies(), tmp_path / "masked")
    record = {"model": {"objective": "replace_mlm"}}
    (tmp_path / "masked" / "run.json").write_text(json.dumps(record))
    refused("pre-trained by `replace_mlm` and has never read the mask token", masked, **band)


def test_a_model_that_has_diverged_leaves_nothing(tmp_path, texts):
    model = knows_frequencies()
    nn.init.constant_(model.bert.embeddings.word_embeddings.weight, float("nan"))
    folder = saved(model, tmp_path / "model")
    with pytest.raises(EffptError, match=r"leaves nothing of the 40 documents of .*losses are numbers"):
        selected(corpus_of(texts), tmp_path, model=folder, keep=0.5, band="low")
    with pytest.raises(EffptError, match=r"embeddings by `data\.select\.model` are no numbers"):
        selected(corpus_of(texts), tmp_path, model=folder, deduplicate="semantic")
    whole = saved(knows_frequencies(), tmp_path / "whole")
    with pytest.raises(EffptError, match="leaves nothing of the 4 documents"):
        selected(corpus_of(texts[:4]), tmp_path, model=whole, keep=0.1, band="low")
    assert not [path for path in (tmp_path / "cache" / "selected").iterdir() if path.is_dir()]


def test_near_doubles_need_datasketch_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(EffptError, match=r"pip install \"hf_effpt\[dedup\]\""):
        selected(corpus_of([]), tmp_path, deduplicate="near")
