"""The head of a new model begins at the frequencies of tokens, and its word embeddings near those of like words."""

import numpy as np
import pytest
import torch

from hf_effpt import EffptBertForMaskedLM, EffptTrainer, pretraining, set_cooccurrence_embeddings, set_unigram_bias
from hf_effpt.core.errors import EffptError
from hf_effpt.data.packed_rows import PackedRows
from hf_effpt.data.token_frequencies import token_frequencies
from hf_effpt.evaluation.held_out_loss import fixed_mask_batches, held_out_loss, unigram_floor
from hf_effpt.models.base import exports_of
from hf_effpt.pretraining import build_trainer
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.record import run_record
from hf_effpt.training.start import StartCost
from tests import tiny


def test_frequencies_are_those_of_the_rows_and_leave_special_tokens_out():
    rows = PackedRows(tiny.rows(40))
    counts = np.bincount(rows.rows(np.arange(40))["input_ids"].ravel(), minlength=tiny.VOCAB)
    found = token_frequencies(rows, tiny.VOCAB, [0, 1, 2, 3, 4])
    assert found[:5].tolist() == [0.0] * 5
    assert found[5:] == pytest.approx((counts[5:] + 1) / (counts[5:] + 1).sum())


@pytest.mark.parametrize("kind", [*tiny.BACKBONES, "electra", "mcbert"])
def test_every_head_over_the_vocabulary_begins_there(kind):
    model = tiny.masked_lm(kind) if kind in tiny.BACKBONES else tiny.joint(kind)
    set_unigram_bias(model, tiny.rows(), tiny.tokenizer())
    part = model if kind in tiny.BACKBONES else model.generator
    bias = part.get_output_embeddings().bias
    shares = token_frequencies(PackedRows(tiny.rows()), model.config.vocab_size, tiny.tokenizer().all_special_ids)
    logs = torch.from_numpy(np.log(np.maximum(shares, 1e-3 * shares[shares > 0].min()))).float()
    assert torch.allclose(bias, logs)
    exported = model.export() if kind in tiny.BACKBONES else model.export_generator()
    assert torch.allclose(exported.get_output_embeddings().bias, logs)


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_the_loss_then_begins_at_the_floor(backbone):
    """With embeddings near zero, exactly; as they are drawn, nearly."""
    rows, held_out = tiny.rows(64), tiny.rows(24, seed=1)
    model = tiny.masked_lm(backbone)
    set_unigram_bias(model, rows, tiny.tokenizer())
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e-4)
    found = held_out_loss(model.export(), fixed_mask_batches(held_out, tiny.tokenizer(), 8))
    floor = unigram_floor(PackedRows(rows), found.label_counts, tiny.tokenizer().all_special_ids)
    assert found.total / found.masked == pytest.approx(floor, abs=1e-3)


def test_a_model_without_such_a_head_is_refused():
    class Headless:
        config = tiny.config()

        def get_output_embeddings(self):
            return None

    with pytest.raises(EffptError, match="`Headless` has no head with a bias for each token"):
        set_unigram_bias(Headless(), tiny.rows(), tiny.tokenizer())


# Word embeddings from co-occurrence.

KINDS = {
    "bert": lambda: tiny.masked_lm("bert"),
    "modernbert": lambda: tiny.masked_lm("modernbert"),
    "electra": lambda: tiny.joint("electra"),
    "electra, narrow": lambda: tiny.joint("electra", embedding_size=16),
    "electra, disentangled": lambda: tiny.joint("electra", embedding_sharing="disentangled"),
    "mcbert": lambda: tiny.joint("mcbert"),
    "modern electra": lambda: tiny.joint("electra", backbone="modernbert"),
    "modern electra, disentangled": lambda: tiny.joint(
        "electra", backbone="modernbert", embedding_sharing="disentangled"
    ),
    "modern mcbert": lambda: tiny.joint("mcbert", backbone="modernbert"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_table_of_words_begins_with_near_vectors_for_like_words(kind):
    """Each word of the text is followed by the next, so that the contexts of two neighbours are most alike."""
    model = KINDS[kind]()
    rows, drawn = tiny.rows(200), [exported.get_input_embeddings().weight for exported in exports_of(model).values()]
    others = {name: value for name, value in tiny.weights(model).items() if "embeddings.word" not in name}
    cost = set_cooccurrence_embeddings(model, rows, tiny.tokenizer())
    assert model.start_cost == cost
    assert (cost.tokens, cost.dimension) == (200 * tiny.LENGTH, drawn[0].shape[1])
    for before, exported in zip(drawn, exports_of(model).values(), strict=True):
        table = exported.get_input_embeddings().weight
        words = table[5 : tiny.VOCAB]
        assert words.std().item() == pytest.approx(before[5 : tiny.VOCAB].std().item(), rel=1e-3)
        assert words.mean(dim=0).abs().max() < 1e-6
        unit = torch.nn.functional.normalize(words, dim=1)
        likeness = unit @ unit.T
        assert likeness.diagonal(1).mean() > 0.5 > 0.1 > likeness.diagonal(30).mean()
        assert torch.equal(table[:5], before[:5])
        assert torch.equal(table[tiny.VOCAB :], before[tiny.VOCAB :])
        decoder = exported.get_output_embeddings()
        assert decoder is None or torch.equal(decoder.weight, table)
    assert others.keys() >= {name for name, _ in model.named_parameters() if "embeddings" not in name}
    for name, value in others.items():
        if "tok_embeddings" not in name:
            assert torch.equal(model.get_parameter(name), value), name


def test_words_that_do_not_occur_keep_their_embeddings():
    rows = tiny.rows(200).map(lambda row: {"input_ids": [min(token, 99) for token in row["input_ids"]]})
    model, other = tiny.model(), tiny.model()
    other.load_state_dict(model.state_dict())
    set_cooccurrence_embeddings(model, rows, tiny.tokenizer())
    changed = (model.get_input_embeddings().weight != other.get_input_embeddings().weight).any(dim=1)
    assert changed.nonzero().flatten().tolist() == list(range(5, 100))


def test_no_random_number_is_drawn_for_the_start():
    model = tiny.model()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    set_cooccurrence_embeddings(model, tiny.rows(), tiny.tokenizer())
    assert torch.equal(torch.rand(1), expected)


def test_wrong_uses_of_cooccurrence_are_refused(tmp_path):
    with pytest.raises(EffptError, match="The tokenizer has 128 tokens but the model only 64"):
        set_cooccurrence_embeddings(tiny.model(vocab_size=64), tiny.rows(), tiny.tokenizer())
    with pytest.raises(EffptError, match="cannot be read as packed"):
        set_cooccurrence_embeddings(tiny.model(), [{"input_ids": [1]}], tiny.tokenizer())
    with pytest.raises(EffptError, match="tokens of the training text have neighbours, too few for word vectors of"):
        set_cooccurrence_embeddings(tiny.model(), tiny.rows(1), tiny.tokenizer())
    tiny.model().export().save_pretrained(tmp_path)
    loaded = EffptBertForMaskedLM.from_pretrained(tmp_path)
    with pytest.raises(EffptError, match="has the weights of a checkpoint, whose word embeddings would be lost"):
        set_cooccurrence_embeddings(loaded, tiny.rows(), tiny.tokenizer())


def test_recipes_refuse_a_start_that_cannot_be():
    def load(start, **sections):
        model = {"size": "tiny", "start": start} | sections.get("model", {})
        return Recipe.load({"model": model, "data": {"dataset": "d"} | sections.get("data", {})})

    for start in ({"embeddings": "cooccurrence"}, {"bias": "unigram"}):  # recipes of older runs have only the latter
        assert load(start).resolved()["model"]["start"] == start
    with pytest.raises(EffptError, match=r"`model\.start\.embeddings` is 'coocurrence': .*cooccurrence"):
        load({"embeddings": "coocurrence"})
    with pytest.raises(EffptError, match=r"Section `model\.start` has no key `embedding`: .*`embeddings`"):
        load({"embedding": "cooccurrence"})
    with pytest.raises(EffptError, match=r"`data\.vocab_size` is 128, but must be above 128, the width of the word"):
        load({"embeddings": "cooccurrence"}, data={"vocab_size": 128})
    assert load({"embeddings": "cooccurrence"}, data={"vocab_size": 192})
    assert load({"embeddings": "cooccurrence"}, data={"vocab_size": 128}, model={"hidden_size": 64})
    with pytest.raises(EffptError, match=r"`model\.start` is .* only with `from` left out"):
        Recipe.load({"model": {"from": "some", "start": {"embeddings": "cooccurrence"}}, "data": {"dataset": "d"}})


@pytest.mark.parametrize(
    ("budget", "fraction", "changes"),
    [
        ("8steps", 0.0, {}),
        ("1024tokens", 0.0, {}),
        ("8s", 0.25, {}),
        ("8e6flops", 0.5, {}),
        ("8s", 0.0, {"charge_methods": False}),
    ],
)
def test_the_clock_is_charged_for_the_start(tmp_path, budget, fraction, changes):
    model = tiny.model()
    model.start_cost = StartCost(seconds=2.0, flops=4e6, tokens=1000, dimension=32)
    args = tiny.arguments(tmp_path, budget=budget, **changes)
    trainer = EffptTrainer(model, args, train_dataset=tiny.rows(), processing_class=tiny.tokenizer())
    charged = not changes
    assert trainer.clock.fraction == trainer.cost.upfront_fraction == fraction
    assert (trainer.clock.seconds, trainer.clock.flops, trainer.clock.tokens) == (2 * charged, 4e6 * charged, 0)
    record = run_record(trainer, model.export())
    assert (record["costs"], record["method_flops"]) == ({"start": 2.0}, {"start": 4e6})
    assert record["start"] == {"seconds": 2.0, "flops": 4e6, "tokens": 1000, "dimension": 32}


def test_a_start_that_takes_the_whole_budget_is_refused(tmp_path):
    model = tiny.model()
    model.start_cost = StartCost(seconds=2.0, flops=4e6, tokens=1000, dimension=32)
    args = tiny.arguments(tmp_path, budget="1s")
    trainer = EffptTrainer(model, args, train_dataset=tiny.rows(), processing_class=tiny.tokenizer())
    with pytest.raises(
        EffptError, match=r"before the run has cost `start` 2\.0 s and 4e\+06 FLOPs, all of the budget"
    ):
        trainer.train()


def run_of(out, resume=False, methods=None):
    """A trainer of a recipe with a start, saving every four steps."""
    shape = {"size": "tiny", "num_hidden_layers": 2, "hidden_size": 32, "max_position_embeddings": 32}
    start = {"bias": "unigram", "embeddings": "cooccurrence"}
    recipe = Recipe.load({"model": {**shape, "start": start}, "data": {"dataset": "d", "sequence_length": 16}})
    recipe.methods = methods or {}
    recipe.training = tiny.arguments(out, save_strategy="steps", save_steps=4)
    trainer = build_trainer(recipe, tiny.tokenizer(), {"train": tiny.rows(200)}, resume)
    trainer.cost.counter = tiny.default_counter()
    return trainer


def test_a_resumed_run_takes_the_start_from_its_checkpoint(tmp_path, monkeypatch):
    whole = run_of(tmp_path / "whole")
    begun = whole.model.get_input_embeddings().weight.clone()
    whole.train()
    monkeypatch.delattr(pretraining, "set_cooccurrence_embeddings")
    resumed = run_of(tmp_path / "resumed", resume=True)
    assert not torch.equal(resumed.model.get_input_embeddings().weight, begun)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    tiny.assert_same_weights(whole.model, resumed.model)
    first, second = (run_record(trainer, trainer.model.export()) for trainer in (whole, resumed))
    assert first["start"]["tokens"] == 200 * tiny.LENGTH
    for key in ("start", "costs", "method_flops"):
        assert first[key] == second[key]
    assert first["clock"]["flops"] == pytest.approx(second["clock"]["flops"])


def test_a_model_is_rewound_to_its_start(tmp_path):
    trainer = run_of(tmp_path, methods={"lottery": {"rounds": 2}})
    begun = trainer.model.get_input_embeddings().weight.clone()
    trainer.add_callback(tiny.StopAfter(2))
    trainer.train()
    assert not torch.equal(trainer.model.get_input_embeddings().weight, begun)
    trainer.model.snapshot.put_back(trainer.model)
    assert torch.equal(trainer.model.get_input_embeddings().weight, begun)
