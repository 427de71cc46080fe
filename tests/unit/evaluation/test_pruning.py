"""Shallower models: which layers they keep, and that they compute what the model restricted to those does."""

import copy

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
)

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import set_order
from hf_effpt.core.errors import EffptError
from hf_effpt.evaluation import layer_choice
from hf_effpt.evaluation.pruning import choose_layers, every_other, prune_layers
from tests import tiny

IDS = torch.arange(5, 21).view(2, 8)


def test_every_other_of_twelve():
    """fairseq's example keeps 0, 2, 4, ...; the last layer is the one that half of them leave out."""
    assert every_other(12, 6) == [0, 2, 4, 6, 8, 10]
    assert every_other(12, 4) == [0, 3, 6, 9]
    assert every_other(12, 9) == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert every_other(5, 5) == [0, 1, 2, 3, 4]


def test_every_other_agrees_with_the_rule_of_the_paper():
    """Fan et al. drop, counting from 1, the layers d with d = 0 mod floor(1 / p) where p is the share dropped."""
    for layers in range(2, 49):
        for each in (each for each in range(2, layers + 1) if layers % each == 0):
            left = [depth - 1 for depth in range(1, layers + 1) if depth % each]
            assert every_other(layers, len(left)) == left


def test_every_other_is_a_linspace_of_distinct_layers():
    for layers in range(1, 49):
        for depth in range(1, layers + 1):
            kept = every_other(layers, depth)
            assert kept == np.floor(np.linspace(0, layers, depth, endpoint=False) + 1e-9).astype(int).tolist()
            assert sorted(set(kept)) == kept
            assert kept[0] == 0
            assert kept[-1] < layers


def test_the_reloaded_model_is_the_order_restricted_one(tmp_path):
    model = tiny.model({"layerdrop": {"p": 0.5, "heads": 0.2}}, num_hidden_layers=12).eval()
    model.methods[0].schedule(model.bert, RunContext(3, 0.5, seed=1))
    pruned = prune_layers(model, 6)
    assert type(pruned) is BertForMaskedLM
    assert (pruned.config.num_hidden_layers, len(pruned.bert.encoder.layer)) == (6, 6)
    set_order(model.bert, [0, 2, 4, 6, 8, 10])
    with torch.no_grad():
        expected = model(IDS)
        assert torch.equal(pruned(IDS).logits, expected.logits)
        hidden = model.bert(IDS).last_hidden_state
    pruned.save_pretrained(tmp_path)
    for auto, what, reference in ((AutoModelForMaskedLM, "logits", expected.logits), (AutoModel, 0, hidden)):
        loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert not [name for name in report["missing_keys"] if not name.startswith("pooler.")]
        assert not [name for name in report["unexpected_keys"] if not name.startswith("cls.")]
        assert loaded.config.num_hidden_layers == 6
        torch.testing.assert_close(loaded(IDS)[what], reference, rtol=0, atol=1e-6)


def stock(cls, config, layers=6, **own):
    torch.manual_seed(2)
    return cls(config(**tiny.SHAPE | {"num_hidden_layers": layers}, **own)).eval()


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (BertForMaskedLM, BertConfig),
        (BertModel, BertConfig),
        (ElectraForMaskedLM, ElectraConfig),
        (ElectraForPreTraining, ElectraConfig),
    ],
)
def test_stock_models_are_copied_and_renumbered(cls, config):
    model = stock(cls, config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = prune_layers(model, 3)
    assert type(pruned) is cls
    assert len(pruned.base_model.encoder.layer) == pruned.config.num_hidden_layers == 3
    assert [layer.attention.self.layer_idx for layer in pruned.base_model.encoder.layer] == [0, 1, 2]
    for index, source in enumerate([0, 2, 4]):
        kept, old = pruned.base_model.encoder.layer[index], model.base_model.encoder.layer[source]
        for ours, theirs in zip(kept.parameters(), old.parameters(), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.data_ptr() != theirs.data_ptr()
    assert model.config.num_hidden_layers == len(model.base_model.encoder.layer) == 6
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    if cls is BertForMaskedLM:
        assert pruned.cls.predictions.decoder.weight is pruned.bert.embeddings.word_embeddings.weight


def test_a_model_that_has_grown_is_pruned_as_it_runs():
    """Indices are those of the exported model, whatever the physical layers behind them."""
    model = tiny.model({"stacking": {"depth": 2, "at": [0.5]}}).eval()
    set_order(model.bert, [3, 1, 0, 2])
    pruned = prune_layers(model, 2)
    set_order(model.bert, [3, 0])
    assert torch.equal(pruned(IDS).logits, model(IDS).logits)


def test_an_electra_keeps_its_discriminator():
    pruned = prune_layers(tiny.joint("electra"), 2)
    assert type(pruned) is ElectraForPreTraining
    assert pruned.config.num_hidden_layers == 2


def with_broken_layers(*indices, layers=5):
    """A model that has learned a little, some of whose layers only make noise."""
    model = copy.deepcopy(_trained(layers))
    generator = torch.Generator().manual_seed(1)
    for index in indices:
        for parameter in model.bert.encoder.layer[index].parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


_KNOWN = {}


def _trained(layers):
    if layers not in _KNOWN:
        torch.manual_seed(0)
        model = tiny.model({}, num_hidden_layers=layers, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for step in range(60):
            loss = model(**tiny.batch(32, seed=step, objective="mlm")).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert loss < 4.5  # ln(123) = 4.8 is chance
        _KNOWN[layers] = model.export()
    return _KNOWN[layers]


@pytest.mark.parametrize("strategy", ["search", "data_driven"])
@pytest.mark.parametrize("broken", [(1,), (0, 3)])
def test_layers_that_only_make_noise_are_left_out(strategy, broken):
    model = with_broken_layers(*broken)
    rows = tiny.rows(32, seed=1)
    before = torch.get_rng_state()
    kept = choose_layers(model, 5 - len(broken), strategy, rows=rows, tokenizer=tiny.tokenizer())
    assert kept.kept == tuple(index for index in range(5) if index not in broken)
    assert torch.equal(torch.get_rng_state(), before)
    if len(broken) == 1:
        assert choose_layers(model, 4, strategy, rows=rows, tokenizer=tiny.tokenizer()) == kept
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert type(model.bert.encoder.layer) is torch.nn.ModuleList


def test_what_was_chosen_by_is_said():
    model = with_broken_layers(1)
    rows = {"rows": tiny.rows(32, seed=1), "tokenizer": tiny.tokenizer()}
    found = choose_layers(model, 3, "search", **rows)
    record = found.record()
    assert record["strategy"] == "search"
    assert record["layers"] == 5
    assert record["kept"] == list(found.kept)
    assert record["chosen_by"]["held_out_loss"] < record["chosen_by"]["held_out_loss_before"]
    scores = choose_layers(model, 3, "data_driven", **rows).record()["chosen_by"]["scores"]
    assert sum(scores) == pytest.approx(1.0, abs=1e-4)
    assert np.argmin(scores) == 1


def test_documents_of_a_row_are_kept_apart():
    """Strategies see isolated rows as training does."""
    from datasets import Dataset, Features, Sequence, Value

    ids = np.array(tiny.rows(32, seed=1)["input_ids"], dtype=np.uint16)
    ids[:, 7], ids[:, 8] = 3, 2
    features = {
        name: Sequence(Value(kind), length=16) for name, kind in (("input_ids", "uint16"), ("document_ids", "uint8"))
    }
    documents = np.repeat([[1] * 8 + [2] * 8], 32, axis=0).astype(np.uint8)
    rows = Dataset.from_dict({"input_ids": ids, "document_ids": documents}, features=Features(features))
    for strategy in ("search", "data_driven"):
        kept = choose_layers(with_broken_layers(1), 4, strategy, rows=rows, tokenizer=tiny.tokenizer()).kept
        assert kept == (0, 2, 3, 4)


@pytest.mark.parametrize("depth", [0, -1, 5])
def test_impossible_depths_are_refused(depth):
    with pytest.raises(EffptError, match=f"A depth of {depth} cannot be had of a model with 4 layers; choose 1 to 4"):
        prune_layers(tiny.model(), depth)


def test_all_layers_and_one_layer():
    model = tiny.model().eval()
    assert torch.equal(prune_layers(model, 4)(IDS).logits, model(IDS).logits)
    assert prune_layers(model, 1).config.num_hidden_layers == 1


def test_unknown_strategies_are_refused():
    with pytest.raises(EffptError, match=r"no strategy `every_third`.*did you mean `every_other`"):
        prune_layers(tiny.model(), 2, "every_third")


@pytest.mark.parametrize(("strategy", "needs"), [("search", "held-out rows"), ("data_driven", "training rows")])
def test_text_and_tokenizer_are_needed(strategy, needs):
    for given in ({}, {"rows": tiny.rows(4)}, {"tokenizer": tiny.tokenizer()}):
        with pytest.raises(EffptError, match=f"`{strategy}` chooses layers by text: pass {needs}.*`every_other`"):
            prune_layers(tiny.model(), 2, strategy, **given)


@pytest.mark.parametrize("cls", [BertModel, ElectraForPreTraining])
def test_models_without_predictions_have_no_loss_to_choose_by(cls):
    model = stock(cls, BertConfig if cls is BertModel else ElectraConfig)
    with pytest.raises(EffptError, match=f"predictions of masked tokens, and a `{cls.__name__}` makes none; use"):
        prune_layers(model, 2, "search", rows=tiny.rows(4), tokenizer=tiny.tokenizer())


def test_models_of_another_shape_are_refused():
    from transformers import GPT2Config, GPT2Model

    with pytest.raises(EffptError, match=r"has no `encoder\.layer` or `layers` list"):
        prune_layers(GPT2Model(GPT2Config(vocab_size=tiny.VOCAB, n_embd=32, n_layer=2, n_head=2)), 2)


@pytest.mark.parametrize(
    ("strategy", "depth"),
    [*((name, depth) for name in ("every_other", "search") for depth in (1, 2, 3)), ("data_driven", 2)],
)
def test_a_modernbert_keeps_its_first_layer(monkeypatch, strategy, depth):
    """It alone has no norm; the kinds of the others go along with them."""
    monkeypatch.setattr(layer_choice, "STEPS", 10)
    model = tiny.masked_lm("modernbert").export()
    pruned = prune_layers(model, depth, strategy, rows=tiny.rows(), tokenizer=tiny.tokenizer())
    before, after = ([layer.mlp.Wi.weight for layer in of.model.layers] for of in (model, pruned))
    kept = [next(at for at, old in enumerate(before) if torch.equal(old, new)) for new in after]
    assert kept[0] == 0
    assert kept == sorted({*kept})
    assert pruned.config.layer_types == [model.config.layer_types[at] for at in kept]
    assert pruned.config.num_hidden_layers == len(kept) == depth
