"""ELECTRA, its variants and MC-BERT with ModernBERTs as main model and generator."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    ModernBertForMaskedLM,
    ModernBertModel,
)

from hf_effpt.core.depth import set_order
from hf_effpt.core.errors import EffptError
from hf_effpt.evaluation.stock_checkpoint import load_pretrained
from hf_effpt.models import ModernElectraConfig, ModernElectraForJointPreTraining, ModernMcBertConfig
from hf_effpt.models.build import CLASSES, config_for
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.flops import FlopCounter
from tests import tiny

OBJECTIVES = [objective for objective in CLASSES if objective != "mlm"]
PREDICTING = [objective for objective in OBJECTIVES if not objective.startswith("electra")]
IDS = torch.arange(5, 5 + 2 * tiny.LENGTH).view(2, -1)


def joint(objective="electra", **changes):
    return tiny.joint(objective, backbone="modernbert", **changes)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_table_and_its_norm_are_one_object(objective):
    model = joint(objective)
    table = model.model.embeddings.tok_embeddings.weight
    assert model.generator.model.embeddings.tok_embeddings.weight is model.generator.decoder.weight is table
    assert model.generator.model.embeddings.norm.weight is model.model.embeddings.norm.weight
    if objective in PREDICTING:
        assert model.decoder.weight is table
    assert (model.generator.decoder.bias is getattr(getattr(model, "decoder", None), "bias", None)) == (
        objective == "mcbert"
    )
    assert len(model.generator.model.layers) == 2
    assert len(model.model.layers) == 4


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_parameter_learns(objective):
    model = joint(objective)
    model(**tiny.batch(objective=objective)).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if not parameter.grad.any()]


@torch.no_grad()
def test_losses_are_those_of_the_stock_parts():
    model, batch = joint().eval(), tiny.batch()
    output = model(**batch)
    at = batch["labels"] != -100
    logits = model.generator(batch["input_ids"]).logits
    assert output.generator_loss == pytest.approx(cross_entropy(logits[at], batch["labels"][at]).item(), rel=1e-5)
    original = torch.where(at, batch["labels"], batch["input_ids"])
    assert torch.equal(output.corrupted_ids[~at], original[~at])
    assert torch.equal(output.replaced, output.corrupted_ids != original)
    assert output.replaced.any()
    hidden = model.model(output.corrupted_ids).last_hidden_state
    judged = model.discriminator_predictions(hidden)
    wanted = binary_cross_entropy_with_logits(judged, output.replaced.float())
    assert output.main_loss == pytest.approx(wanted.item(), rel=1e-5)
    assert output.loss == pytest.approx((output.generator_loss + 50 * output.main_loss).item())


def test_logits_without_labels_are_those_of_the_discriminator():
    model = joint().eval()
    output = model(IDS, output_hidden_states=True)
    assert torch.equal(output.logits, model.discriminator_predictions(model.model(IDS).last_hidden_state))
    assert len(output.hidden_states) == 5
    assert torch.equal(model(IDS, return_dict=False)[0], output.logits)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_documents_apart_learn_as_in_rows_of_their_own(objective):
    """Also in the generator, whose layers have windows."""
    model, batch = joint(objective).eval(), tiny.batch(4, objective=objective)
    length = tiny.LENGTH
    for key in ("input_ids", "labels"):
        batch[key + "_packed"] = batch[key].view(2, 2 * length)
    ids = torch.tensor([[1] * length + [2] * length] * 2)
    alone = model.head_inputs({key: batch[key] for key in ("input_ids", "labels")}, of_generator=True)
    packed = {"input_ids": batch["input_ids_packed"], "labels": batch["labels_packed"], "document_ids": ids}
    together = model.head_inputs(packed, of_generator=True)
    ours, theirs = (each.hidden_BMD[each.labelled_BM] for each in (alone, together))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1)], ids=["whole", "cut"])
def test_exports_are_stock_and_equal(tmp_path, objective, order):
    model = joint(objective).eval()
    set_order(model.backbone, order)
    set_order(model.generator.model, (0,))
    model.generator.config.layer_types = model.generator.config.layer_types[:1]
    stock, generator = model.export(), model.export_generator()
    for part, folder in ((stock, tmp_path), (generator, tmp_path / "generator")):
        part.save_pretrained(folder)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, ModernBertModel)
    assert not report["missing_keys"]
    assert loaded.config.num_hidden_layers == len(order)
    assert torch.allclose(loaded(IDS).last_hidden_state, model.model(IDS).last_hidden_state, atol=1e-6)
    filled = AutoModelForMaskedLM.from_pretrained(tmp_path / "generator")
    assert isinstance(filled, ModernBertForMaskedLM)
    assert torch.allclose(filled(IDS).logits, model.generator(IDS).logits, atol=1e-6)
    if objective in PREDICTING:
        head = AutoModelForMaskedLM.from_pretrained(tmp_path)
        assert torch.allclose(head(IDS).logits, model(IDS).logits, atol=1e-4)
    _, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    missing = {name.split(".")[0] for name in report["missing_keys"]}
    assert missing <= {"classifier", "head"}  # which fine-tuning learns


def test_layers_cut_in_width_export_with_their_code():
    model = joint(layer_widths=[[2, 64], [1, 64], [2, 32], [2, 64]]).eval()
    narrow, dense = model.export(), model.export(dense=True)
    assert type(narrow).__name__ == "PrunedModernBertModel"
    assert type(dense) is ModernBertModel
    for each in (narrow, dense):
        assert torch.allclose(each(IDS).last_hidden_state, model.model(IDS).last_hidden_state, atol=1e-6)


def test_disentangled_words_are_a_difference_and_export_as_a_sum():
    model = joint(embedding_sharing="disentangled").eval()
    own, generators = (model.get_parameter(name) for name in (model.words, f"generator.{model.words}"))
    assert own is not generators
    assert not own.any()
    with torch.no_grad():
        own.normal_(std=0.02)
    exported = model.export()
    assert torch.allclose(exported.embeddings.tok_embeddings.weight, own + generators)
    assert torch.allclose(exported(IDS).last_hidden_state, model.model(IDS).last_hidden_state, atol=1e-6)
    assert model(**tiny.batch()).loss.isfinite()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_checkpoint_loads_as_it_was(tmp_path, objective):
    model = joint(objective).eval()
    model.save_pretrained(tmp_path)
    auto = AutoModelForMaskedLM if objective in ("replace_mlm", "all_tokens_mlm") else AutoModelForPreTraining
    kinds = {"electra": auto, "mcbert": auto}
    loaded, report = kinds.get(objective, type(model)).from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tiny.assert_same_weights(model, loaded)
    batch = tiny.batch(objective=objective)
    assert loaded.eval()(**batch).loss == model(**batch).loss


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_more_rows_are_those_of_both_models(objective):
    model = joint(objective)
    model.resize_token_embeddings(model.config.vocab_size + 64)
    assert model.generator.decoder.weight is model.get_parameter(model.words)
    assert model(**tiny.batch(objective=objective)).loss.isfinite()


@pytest.mark.parametrize("objective", ["electra", "all_tokens_mlm", "mcbert"])
def test_counted_flops_are_those_of_a_step(objective):
    model, batch = joint(objective).train(), tiny.batch(objective=objective)
    model.set_attn_implementation("eager")
    counted = FlopCounter().count(model, batch)
    with FlopCounterMode(display=False) as real:
        model(**batch).loss.backward()
    assert counted == real.get_total_flops()


def test_a_generator_is_a_third_as_deep_and_as_wide():
    config = ModernElectraConfig(**{**tiny.MODERN, "num_hidden_layers": 12, "layer_types": None})
    generator = config.generator_config()
    assert generator.num_hidden_layers == 4
    assert generator.hidden_size == config.hidden_size
    assert generator.layer_types == config.layer_types[:4]
    assert ModernMcBertConfig(**tiny.MODERN).generator_config().num_hidden_layers == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generator_size": 1.5}, "The generator has 6 layers, more than the 4"),
        ({"generator_size": 0}, "`generator_size` must be in"),
        ({"generator_size": float("inf")}, "`generator_size` must be in"),
        ({"generator": {"hidden_size": 16}}, "The generator's `hidden_size` is 16, but the main model's is 32"),
        ({"generator": {"num_hidden_layers": 5}}, "The generator has 5 layers, more than the 4"),
        ({"generator": {"layer_types": ["full_attention"]}, "generator_size": 0.5}, "one kind for each of 2"),
        ({"generator": {"num_attention_heads": 3}}, "3 attention heads do not divide its width, 32"),
        ({"generator": {"embedding_size": 8}}, "`generator` has no setting `embedding_size`"),
        ({"decoder_bias": False}, "`decoder_bias` cannot be False"),
        ({"tie_word_embeddings": False}, "`tie_word_embeddings` cannot be False"),
        ({"local_attention": 1}, "`local_attention` is 1"),
    ],
)
def test_generators_that_do_not_suit_are_refused(settings, message):
    with pytest.raises(EffptError, match=message):
        ModernElectraConfig(**{**tiny.MODERN, **settings})


def test_an_objective_of_another_class_is_refused_by_its_name():
    config = config_for("replace_mlm", "modernbert", **tiny.MODERN)
    with pytest.raises(EffptError, match="use `ModernElectraForReplacedMaskedLM`"):
        ModernElectraForJointPreTraining(config)


def test_an_embedding_size_is_refused_in_a_recipe():
    model = {"backbone": "modernbert", "objective": "electra", "size": "tiny"}
    settings = {"model": model, "data": {"dataset": "a/"}, "training": {"output_dir": "out", "budget": "1steps"}}
    assert Recipe.load(settings).model.config(vocab_size=128).generator_config().num_hidden_layers == 1
    with pytest.raises(EffptError, match=r"model\.embedding_size"):
        Recipe.load({**settings, "model": {**model, "embedding_size": 64}})


def test_an_exported_discriminator_has_no_head_to_be_measured(tmp_path):
    joint().export().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(EffptError, match="lacks weights of its pre-training head"):
        load_pretrained(tmp_path)
