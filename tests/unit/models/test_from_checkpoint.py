"""Training goes on from published checkpoints."""

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    AutoModel,
    BertForPreTraining,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraModel,
    GPT2Config,
    GPT2Model,
    ModernBertForMaskedLM,
)

import hf_effpt
from hf_effpt.core.anatomy import position_table_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.width import resize
from hf_effpt.evaluation.pruning import pruner_of
from hf_effpt.hub.export import verify
from hf_effpt.models import ElectraForJointPreTraining
from hf_effpt.models.checkpoint_weights import INDEX
from hf_effpt.models.from_checkpoint import add_rows, config_from, continue_from, extend_positions
from hf_effpt.models.kept_heads import save_stock
from hf_effpt.models.kin import NAMES
from hf_effpt.recipe.settings import ModelSettings
from tests import tiny
from tests.contract import runs as contract

DISTIL = {"vocab_size": tiny.VOCAB, "dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 64}
SHAPE = {**tiny.SHAPE, "pad_token_id": 0, "max_position_embeddings": 33}
KIN = ["bert", "modernbert", *NAMES]


def stock_of(kind):
    torch.manual_seed(2)
    if kind == "bert":
        return BertForPreTraining(tiny.config().stock()).eval()
    if kind == "modernbert":
        return ModernBertForMaskedLM(tiny.modern_config().stock()).eval()
    if kind == "DistilBert":
        return DistilBertForMaskedLM(DistilBertConfig(**DISTIL, max_position_embeddings=32)).eval()
    config = getattr(transformers, f"{kind}Config")(**SHAPE)
    return getattr(transformers, f"{kind}ForMaskedLM")(config).eval()


def saved(tmp_path, kind):
    stock = stock_of(kind)
    stock.save_pretrained(tmp_path / kind)
    return stock, str(tmp_path / kind)


def words(length=tiny.LENGTH):
    return torch.randint(5, tiny.VOCAB, (2, length), generator=torch.Generator().manual_seed(9))


def logits_of(model, ids):
    output = model(ids)
    return output.prediction_logits if hasattr(output, "prediction_logits") else output.logits


@pytest.mark.parametrize("kind", KIN)
def test_it_computes_what_the_checkpoint_does_and_exports_it_again(tmp_path, kind, caplog):
    stock, source = saved(tmp_path, kind)
    with caplog.at_level(logging.WARNING, "transformers"):
        ours = continue_from(source, methods={"layerdrop": {"p": 0.1}}).eval()
    assert "to instantiate a model of type" not in caplog.text
    assert torch.allclose(ours(words()).logits, logits_of(stock, words()), atol=1e-6)
    labels = torch.where(torch.arange(tiny.LENGTH) % 5 == 1, words(), -100)
    expected = torch.nn.functional.cross_entropy(logits_of(stock, words()).flatten(0, 1), labels.flatten())
    assert torch.allclose(ours(words(), labels=labels).loss, expected, atol=1e-5)
    exported = ours.export()
    assert type(exported).__module__.startswith("transformers.")
    save_stock(exported, tmp_path / "out")
    verify(tmp_path / "out", exported)
    again = AutoModel.from_pretrained(tmp_path / "out")
    assert torch.allclose(again(words())[0], stock.base_model(words())[0], atol=1e-6)


LEDGERS = {
    "layerdrop": {"p": 0.5, "heads": 0.2},
    "compress": {"depth": 2, "head_keep": 0.5, "ffn_keep": 0.5, "at": 0.4},
    "earlybert": {"max_search_steps": 0.5, "ticket": "michel"},
    "lottery": {"rounds": 2},
    "tnf": {"k": 2, "min_count": 5, "max_count": 7},
    "layerskip": {"target": 0.5},
}
# Every method on a class with other names and on a kin of BERT, and each other class with some of those that look
# deepest into it; of fresh models of BERT and ModernBERT the tests of contract resume all.
GOING_ON = [(kind, name) for kind in ("DistilBert", "Roberta") for name in LEDGERS]
GOING_ON += [("bert", "lottery"), ("modernbert", "compress"), ("XLMRoberta", "earlybert"), ("Camembert", "compress")]


@pytest.mark.parametrize(("kind", "name"), GOING_ON)
def test_methods_go_on_from_it(tmp_path, kind, name):
    """Each is trained, resumed in the middle, and exported to its stock class."""
    _, source = saved(tmp_path, kind)
    methods = {name: LEDGERS[name]}

    def trainer(name):
        args = tiny.arguments(tmp_path / name)
        tiny.set_seed(7)
        model = continue_from(source, methods=methods)
        made = tiny.EffptTrainer(model, args, train_dataset=tiny.rows(), processing_class=tiny.tokenizer())
        made.cost.counter = tiny.RoughCounter()
        return made

    straight, resumed = trainer("a"), trainer("b")
    straight.add_callback(tiny.SaveAt([4]))
    straight.train()
    resumed.train(resume_from_checkpoint=str(contract.checkpoint_of(straight, 4)))
    tiny.assert_same_weights(straight.model, resumed.model)
    trained = straight.model.eval()
    dense = trained.export(dense=True)
    assert type(dense) is type(trained).stock_class
    assert torch.allclose(dense.eval()(words()).logits, trained(words()).logits, atol=1e-5)


def test_pooler_and_unused_heads_are_kept_for_the_export(tmp_path):
    stock, source = saved(tmp_path, "bert")
    ours = continue_from(source)
    assert set(ours.config.kept_heads) == {
        "bert.pooler.dense.weight", "bert.pooler.dense.bias",
        "cls.seq_relationship.weight", "cls.seq_relationship.bias",
    }  # fmt: skip
    ours.save_pretrained(tmp_path / "checkpoint")
    again = hf_effpt.EffptBertForMaskedLM.from_pretrained(tmp_path / "checkpoint")
    exported = again.export()
    save_stock(exported, tmp_path / "out")
    verify(tmp_path / "out", exported)
    assert "kept_heads" not in exported.config.to_dict()
    loaded = BertForPreTraining.from_pretrained(tmp_path / "out")
    tiny.assert_same_weights(stock, loaded)


def test_the_classes_load_published_checkpoints_themselves(tmp_path):
    _, source = saved(tmp_path, "bert")
    ours = hf_effpt.StackableBertForMaskedLM.from_pretrained(source, methods={"layerdrop": {}})
    assert ours.config.methods == {"stacking": {}, "layerdrop": {}}
    assert ours.continued
    assert not tiny.model().continued
    assert "published" not in ours.config.to_dict()
    with pytest.raises(
        EffptError, match=r"is of the architecture `bert`, and `EffptRobertaConfig` is one of `roberta`"
    ):
        hf_effpt.EffptRobertaForMaskedLM.from_pretrained(source)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_stacking_grows_a_shallower_checkpoint(tmp_path, kind):
    stock, source = saved(tmp_path, kind)
    ours = continue_from(source, methods={"stacking": {"depth": 4, "at": [0.5]}}, layers=8).eval()
    assert ours.config.layer_order == [0, 1, 2, 3]
    assert torch.allclose(ours(words()).logits, logits_of(stock, words()), atol=1e-6)
    if kind == "modernbert":
        assert ours.config.layer_types == stock.config.layer_types * 2
    (method,) = ours.methods
    from hf_effpt.core.context import RunContext

    method.advance(ours.backbone, RunContext(5, 0.6))
    assert ours.config.layer_order == list(range(8))
    assert ours.export().config.num_hidden_layers == 8


def test_a_pair_of_electra(tmp_path):
    joint = tiny.joint("electra").eval()
    joint.export().save_pretrained(tmp_path / "pair")
    joint.export_generator().save_pretrained(tmp_path / "pair" / "generator")
    ours = continue_from(str(tmp_path / "pair"), "electra", methods={"layerdrop": {"p": 0.2}}).eval()
    assert torch.allclose(ours(words()).logits, joint(words()).logits, atol=1e-6)
    assert (ours.continued, joint.continued) == (True, False)
    assert torch.allclose(ours.generator(words()).logits, joint.generator(words()).logits, atol=1e-6)
    with pytest.raises(EffptError, match=r"is a `electra`, which cannot go on with the objective `mlm`; use electra"):
        continue_from(str(tmp_path / "pair"))
    ElectraForPreTraining(joint.config.stock()).save_pretrained(tmp_path / "alone")
    with pytest.raises(EffptError, match="has no generator; ELECTRA goes on from a pair"):
        continue_from(str(tmp_path / "alone"), "electra")


def test_weights_are_trained_in_full_precision(tmp_path):
    stock_of("bert").half().save_pretrained(tmp_path / "half")
    ours = continue_from(str(tmp_path / "half"))
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}


def test_heads_stay_through_further_exports(tmp_path):
    """From the root of the run, also with fewer layers, and of full width."""
    stock, source = saved(tmp_path, "bert")
    trainer = tiny.EffptTrainer(
        continue_from(source, methods={"compress": {"ffn_keep": 0.5, "at": 0.4}}),
        tiny.arguments(tmp_path / "run"), train_dataset=tiny.rows(), processing_class=tiny.tokenizer(),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()

    def shallower(folder):
        return pruner_of(folder, 2)

    for name, changes in {"copy": {}, "dense": {"dense": True}, "shallow": {"pruner_of": shallower}}.items():
        hf_effpt.export(tmp_path / "run", tmp_path / name, **changes)
        again = AutoModel.from_pretrained(tmp_path / name)
        assert torch.equal(again.pooler.dense.weight, stock.bert.pooler.dense.weight), name


# Longer rows.


@pytest.mark.parametrize("kind", KIN)
def test_positions_are_extended(tmp_path, kind):
    stock, source = saved(tmp_path, kind)
    ours = continue_from(source, positions=80).eval()
    assert torch.allclose(ours(words()).logits, logits_of(stock, words()), atol=1e-6)
    assert ours(words(80)).logits.shape == (2, 80, tiny.VOCAB)
    labels = torch.where(torch.arange(80) % 5 == 1, words(80), -100)
    ours(words(80), labels=labels, document_ids=torch.ones(2, 80, dtype=torch.long)).loss.backward()
    exported = ours.export()
    assert torch.allclose(exported(words(80)).logits, ours(words(80)).logits, atol=1e-6)
    if (table := position_table_of(exported.base_model)) is not None:
        first = len(table.weight) - 80
        assert torch.equal(table.weight[first : first + 16], table.weight[first + 32 : first + 48])


def test_a_table_is_not_cut(tmp_path):
    with pytest.raises(EffptError, match="is 16, fewer than the 32 of the checkpoint"):
        extend_positions(tiny.model(), 16)


# More words.


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_new_tokens_are_the_mean_of_their_pieces(backbone):
    model = tiny.masked_lm(backbone).eval()
    bias = model.get_output_embeddings().bias
    with torch.no_grad():
        bias.copy_(-torch.arange(tiny.VOCAB, dtype=torch.float32))
    before = model(words()).logits
    add_rows(model, {128: [5, 7], 129: [9]}, 192)
    table, bias = model.get_input_embeddings().weight, model.get_output_embeddings().bias
    assert table is model.get_output_embeddings().weight
    assert torch.equal(table[128], (table[5] + table[7]) / 2)
    assert torch.equal(table[129], table[9])
    assert bias[128:131].tolist() == [-7, -9, -127]
    assert torch.allclose(model(words()).logits[..., :128], before, atol=1e-6)
    stock = model.export()
    assert torch.allclose(stock(words()).logits, model(words()).logits, atol=1e-6)


# What cannot be.


def test_impossible_sources_are_refused(tmp_path):
    BertModel(tiny.config().stock()).save_pretrained(tmp_path / "headless")
    GPT2Model(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path / "gpt2")
    tiny.model().save_pretrained(tmp_path / "training")
    (tmp_path / "empty").mkdir()
    for name, said in {
        "headless": r"lacks \d+ weights \(cls\.predictions.*which would be random",
        "gpt2": r"is of the architecture `gpt2`; those that can be trained further are bert, modernbert",
        "training": "is a training checkpoint; go on with its run",
        "empty": "cannot be read",
        "nowhere": "there is no such folder",
    }.items():
        with pytest.raises(EffptError, match=said):
            continue_from(str(tmp_path / name))


@pytest.mark.parametrize(
    ("layers", "methods", "said"),
    [
        (8, {}, r"`model\.num_hidden_layers` is 8, and the checkpoint has 4; .*`stacking: \{depth: 4\}`; fewer"),
        (8, {"stacking": {"depth": 2, "at": [0.2, 0.4]}}, r"`stacking: \{depth: 4\}`, not 2"),
        (2, {"stacking": {"depth": 1, "at": [0.5]}}, r"is 2, and the checkpoint has 4"),
    ],
)
def test_another_depth_is_refused(tmp_path, layers, methods, said):
    _, source = saved(tmp_path, "bert")
    for loading in (continue_from, config_from):
        with pytest.raises(EffptError, match=said):
            loading(source, layers=layers, methods=methods)


def test_exports_name_no_folder_of_the_source(tmp_path):
    _, source = saved(tmp_path, "bert")
    exported = continue_from(source).export()
    save_stock(exported, tmp_path / "out")
    assert str(tmp_path) not in Path(tmp_path, "out", "config.json").read_text()


@pytest.mark.parametrize("kind", ["bert", "modernbert", "Roberta", "DistilBert"])
def test_a_checkpoint_without_its_head_is_refused_with_the_settings(tmp_path, kind):
    """Before a text is packed for it, by the names of its weights; in one file or in several."""
    stock, source = saved(tmp_path, kind)
    assert config_from(source).vocab_size == tiny.VOCAB
    stock.base_model.save_pretrained(tmp_path / "headless")
    stock.base_model.save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    assert (tmp_path / "parts" / INDEX).is_file()
    for name in ("headless", "parts"):
        with pytest.raises(EffptError, match=r"lacks \d+ weights .*, which would be random"):
            ModelSettings(from_=str(tmp_path / name))


def test_a_pair_without_the_head_of_its_discriminator_is_refused_with_the_settings(tmp_path):
    ElectraModel(ElectraConfig(**tiny.SHAPE)).save_pretrained(tmp_path)
    with pytest.raises(EffptError, match=r"lacks \d+ weights \(discriminator_predictions"):
        config_from(str(tmp_path), "electra")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file_of_weights_is_named(tmp_path, name):
    stock, source = saved(tmp_path, "bert")
    path = Path(source, "model.safetensors")
    if name.endswith(".bin"):
        path.unlink()
        torch.save(stock.state_dict(), Path(source, name))
    whole = Path(source, name).read_bytes()
    Path(source, name).write_bytes(whole[: len(whole) // 3])
    with pytest.raises(EffptError, match=r"weights of `model.from` .*bert' cannot be read \(.*not whole"):
        continue_from(source)


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_positions_that_are_computed_no_longer_are_refused(tmp_path, kind):
    _, source = saved(tmp_path, "bert")
    config = json.loads(Path(source, "config.json").read_text())
    Path(source, "config.json").write_text(json.dumps(config | {"position_embedding_type": kind}))
    for loading in (continue_from, config_from):
        with pytest.raises(EffptError, match=f"has `position_embedding_type` `{kind}`"):
            loading(source)


def test_a_narrow_checkpoint_does_not_grow(tmp_path):
    model = tiny.model()
    resize(model.bert, [[1, 32], [2, 64], [2, 40], [1, 64]])
    model.config.layer_widths = [[1, 32], [2, 64], [2, 40], [1, 64]]
    save_stock(model.export(), tmp_path)
    growing = {"stacking": {"depth": 4, "at": [0.5]}}
    for loading in (continue_from, config_from):
        assert loading(str(tmp_path))
        with pytest.raises(EffptError, match=r"the 4 layers of the checkpoint are cut .*`effpt export RUN --dense`"):
            loading(str(tmp_path), layers=8, methods=growing)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_dropout_is_that_of_both_models_of_a_pair(tmp_path, dropout):
    shape = {**tiny.SHAPE, "embedding_size": 16, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0}
    main = ElectraForPreTraining(ElectraConfig(**shape))
    generator = ElectraForMaskedLM(ElectraConfig(**shape | {"hidden_size": 16, "hidden_dropout_prob": 0.3}))
    generator.electra.embeddings.load_state_dict(main.electra.embeddings.state_dict())
    main.save_pretrained(tmp_path)
    generator.save_pretrained(tmp_path / "generator")
    model = continue_from(str(tmp_path), "electra", dropout=dropout)
    for config in (model.config, model.generator.config):
        assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (dropout, dropout)
    kept = ElectraForJointPreTraining.from_parts(main, generator)
    assert (kept.config.hidden_dropout_prob, kept.generator.config.hidden_dropout_prob) == (0.1, 0.3)
