"""What is saved and exported of an MC-BERT, and what its exports answer."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    BertForMaskedLM,
    BertModel,
    ElectraForMaskedLM,
)

from hf_effpt.core.depth import stack_of
from hf_effpt.models import (
    McBertConfig,
    McBertForPreTraining,
    McBertModel,
)
from tests import tiny
from tests.unit.models.test_mcbert import NOTA, OFF, SPECIAL, batch, model


def test_one_set_of_tables_and_one_bias_also_after_loading(tmp_path):
    made = model()
    made.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    for joint in (made, loaded):
        table = joint.electra.embeddings.word_embeddings.weight
        assert joint.generator_lm_head.weight is table
        assert joint.generator.generator_lm_head.weight is table
        assert joint.generator.electra.embeddings.word_embeddings.weight is table
        assert joint.generator.generator_lm_head.bias is joint.generator_lm_head.bias
    assert made.generator_lm_head.bias.std().item() == pytest.approx(0.02, rel=0.3)
    assert type(loaded) is McBertForPreTraining
    inputs = batch()
    torch.testing.assert_close(loaded.eval()(**inputs).loss, made.eval()(**inputs).loss, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("place", ["all", "masked"])
def test_exports_to_a_stock_bert(tmp_path, place):
    made, ids = model(candidates_at=place).eval(), batch()["input_ids"]
    stock = made.export()
    assert type(stock) is BertForMaskedLM
    assert stock.config.vocab_size == tiny.VOCAB
    assert stock.cls.predictions.decoder.weight is stock.bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(stock(ids).logits, made(ids).logits, atol=1e-6, rtol=1e-6)
    stock.save_pretrained(tmp_path)
    encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(encoder) is BertModel
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"pooler"}
    assert all(name.startswith("cls.") for name in info["unexpected_keys"])  # the head, which an encoder lacks
    hidden = made.electra(ids).last_hidden_state
    torch.testing.assert_close(encoder(ids).last_hidden_state, hidden, atol=1e-6, rtol=0)
    masked, info = BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(masked(ids).logits, stock(ids).logits, atol=1e-6, rtol=0)


def test_exports_to_electra_where_the_tables_are_narrower_and_the_controller_always():
    made, ids = model(embedding_size=16).eval(), batch()["input_ids"]
    stock = made.export()
    assert type(stock) is ElectraForMaskedLM
    torch.testing.assert_close(stock(ids).logits, made(ids).logits, atol=1e-6, rtol=1e-6)
    controller = made.extra_exports()["generator"]
    torch.testing.assert_close(controller(ids).logits, made.generator(ids).logits, atol=1e-6, rtol=0)
    for size in (16, 32):
        encoder = McBertModel(McBertConfig(**tiny.SHAPE, embedding_size=size)).eval()
        torch.testing.assert_close(encoder.export()(ids)[0], encoder(ids)[0], atol=1e-6, rtol=0)


AT_MASKED = {"candidates_at": "masked"}
EXPORTED = [{}, {"embedding_size": 16}, {"faithful": True}, AT_MASKED, {**AT_MASKED, "faithful": True}]


@pytest.mark.parametrize("changes", EXPORTED)
def test_an_export_answers_with_tokens_of_the_text_only(tmp_path, changes):
    """No row that is no candidate is an answer, nor NOTA; the other logits are those that were learned."""
    made, ids = model(**changes).eval(), batch()["input_ids"]
    never = [NOTA] if "faithful" in changes else [*SPECIAL, NOTA]
    answers = [token for token in range(tiny.VOCAB) if token not in never]
    with torch.no_grad():
        made.generator_lm_head.bias[never] = 20.0
        learned = made.generator_lm_head.weight, made.generator_lm_head.bias
        outputs = made.generator_predictions(made.electra(ids).last_hidden_state)
        every = torch.nn.functional.linear(outputs, *learned)
    assert torch.isin(every.argmax(dim=-1), torch.tensor(never)).all()
    made.export().save_pretrained(tmp_path)
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path)
    for reading in (stock, made):
        with torch.no_grad():
            logits = reading(ids).logits
        torch.testing.assert_close(logits[..., answers], every[..., answers], atol=1e-6, rtol=0)
        assert (logits.softmax(dim=-1)[..., never] == 0).all()
        assert (logits.half().softmax(dim=-1)[..., never] == 0).all()
        torch.testing.assert_close(
            logits.log_softmax(dim=-1)[..., answers], every[..., answers].log_softmax(dim=-1), atol=1e-5, rtol=0
        )
    assert torch.isfinite(stock.get_output_embeddings().bias).all()
    assert torch.equal(stock.get_input_embeddings().weight, made.electra.embeddings.word_embeddings.weight)
    assert (made.generator_lm_head.bias[never] == 20.0).all()  # of the training model, which goes on
    assert (made.export_generator().generator_lm_head.bias[never] == 20.0).all()


@pytest.mark.parametrize("place", ["all", "masked"])
def test_a_modernbert_answers_with_tokens_of_the_text_only(tmp_path, place):
    torch.manual_seed(0)
    made = tiny.joint("mcbert", backbone="modernbert", candidates_at=place, special_token_ids=SPECIAL).eval()
    never, ids = [*SPECIAL, made.config.nota_token_id], batch()["input_ids"]
    with torch.no_grad():
        made.decoder.bias[never] = 20.0
    made.export().to(torch.bfloat16).save_pretrained(tmp_path)
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32)
    for reading in (made, stock):
        with torch.no_grad():
            assert (reading(ids).logits.softmax(dim=-1)[..., never] == 0).all()
    again = type(made).from_pretrained(tmp_path, config=made.config, dtype=torch.float32)
    assert not again.decoder.bias[never].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", ["all", "masked"])
def test_an_export_that_trains_on_may_answer_with_every_row_again(tmp_path, dtype, place):
    made = model(embedding_size=16, candidates_at=place)
    made.export().to(dtype).save_pretrained(tmp_path)
    settings = {**tiny.SHAPE, **OFF, "special_token_ids": SPECIAL, "generator_size": 0.5}
    config = McBertConfig(**settings, embedding_size=16, candidates_at=place)
    again = McBertForPreTraining.from_pretrained(tmp_path, config=config, dtype=torch.float32)
    assert not again.generator_lm_head.bias[[*SPECIAL, NOTA]].any()
    kept = made.generator_lm_head.bias[5:NOTA].to(dtype).float()
    assert torch.equal(again.generator_lm_head.bias[5:NOTA], kept)
    assert again.eval()(**batch()).main_loss < 5


def test_weights_that_are_not_loaded_begin_as_in_a_new_model(tmp_path):
    """A normal bias, as a table of one column, and the projection of replaced-token detection."""
    made = model(candidates_at="masked", hidden_size=64)
    lacking = ("generator_lm_head.bias", "generator.generator_lm_head.bias", "discriminator_predictions.")
    kept = {name: tensor for name, tensor in made.state_dict().items() if not name.startswith(lacking)}
    made.save_pretrained(tmp_path, state_dict=kept)
    loaded = McBertForPreTraining.from_pretrained(tmp_path)
    assert loaded.generator_lm_head.bias.std().item() == pytest.approx(0.02, rel=0.3)
    assert loaded.generator.generator_lm_head.bias is loaded.generator_lm_head.bias
    weight = loaded.discriminator_predictions.dense_prediction.weight
    assert weight.std().item() == pytest.approx((2 / sum(weight.shape)) ** 0.5, rel=0.3)


def test_layers_that_do_not_run_are_not_exported():
    made, ids = model(methods={"stacking": {"at": [0.3]}}).eval(), batch()["input_ids"]
    stock = made.export()
    assert stock.config.num_hidden_layers == len(stock.bert.encoder.layer) == len(stack_of(made.electra).order) < 4
    torch.testing.assert_close(stock(ids).logits, made(ids).logits, atol=1e-6, rtol=1e-6)
