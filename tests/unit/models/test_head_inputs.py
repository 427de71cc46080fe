"""Readings and representations of rows: those of the forward that a step trains, to whatever depth is asked for."""

import copy

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from hf_effpt.core.depth import set_order, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.models import EffptBertModel
from tests import tiny

from .test_token_losses import JOINT, OBJECTIVES, batch, made

READ = ["mlm", "electra", "electra_15", "replace_mlm"]  # whose loss is that of their readings
PARTS = (slice(0, 7), slice(7, 13))  # the documents of each row


def loss_of(reading):
    """The mean loss of the answers that are asked for."""
    _, logits_BMV = reading.head(reading.hidden_BMD)
    logits_NV, labels_N = logits_BMV[reading.labelled_BM], reading.labels_BM[reading.labelled_BM]
    if logits_NV.shape[1] == 1:
        return binary_cross_entropy_with_logits(logits_NV[:, 0], labels_N.float())
    return cross_entropy(logits_NV, labels_N)


def spread(objective):
    """A model in evaluation mode whose layers and rows differ well above rounding."""
    model = made(objective).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3.0)
    return model


def variant(objective, kind):
    inputs = batch(objective)
    if kind == "no positions":
        del inputs["masked_positions"]
    elif kind == "padding":
        inputs["attention_mask"] = (inputs.pop("document_ids") > 0).long()
    return inputs


@pytest.mark.parametrize("kind", ["documents", "padding", "no positions"])
@pytest.mark.parametrize("objective", READ)
@torch.no_grad()
def test_cross_entropy_of_a_reading_is_the_loss_of_the_model(objective, kind):
    model, inputs = spread(objective), variant(objective, kind)
    output = model(**inputs)
    expected = output.loss if objective == "mlm" else output.main_loss
    assert torch.allclose(loss_of(model.head_inputs(inputs)), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["documents", "padding", "no positions"])
@pytest.mark.parametrize("objective", JOINT)
@torch.no_grad()
def test_the_generator_is_read_as_it_is_trained(objective, kind):
    model, inputs = spread(objective), variant(objective, kind)
    reading = model.head_inputs(inputs, of_generator=True)
    assert reading.hidden_BMD.shape[2] == model.generator.config.hidden_size
    assert torch.allclose(loss_of(reading), model(**inputs).generator_loss, atol=1e-5)


@torch.no_grad()
def test_of_electra_all_tokens_but_padding_are_asked_and_of_electra_15_the_chosen_ones():
    for objective in ("electra", "electra_15"):
        model, inputs = spread(objective), batch(objective)
        reading, replaced = model.head_inputs(inputs), model(**inputs).replaced.long()
        if objective == "electra":
            expected = replaced.where(inputs["document_ids"] > 0, -100)
        else:
            positions = inputs["masked_positions"]
            expected = replaced.gather(1, positions).where(inputs["labels"].gather(1, positions) != -100, -100)
        assert torch.equal(reading.labels_BM, expected)
        assert reading.head(reading.hidden_BMD)[1].shape == (*expected.shape, 1)


@torch.no_grad()
def test_of_all_tokens_the_head_is_read_at_the_chosen_positions_and_copying_left_out():
    model, predicting = spread("all_tokens_mlm"), made("replace_mlm").eval()
    predicting.load_state_dict(model.state_dict(), strict=False)
    inputs = batch("all_tokens_mlm")
    assert torch.allclose(loss_of(model.head_inputs(inputs)), predicting(**inputs).main_loss, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES[:5])
@torch.no_grad()
def test_the_logits_are_the_last_layer_on_the_features(objective):
    model, inputs = spread(objective), batch(objective)
    reading = model.head_inputs(inputs)
    features, logits = reading.head(reading.hidden_BMD)
    if objective == "mlm":
        last = model.cls.predictions.decoder
    elif objective in ("electra", "electra_15"):
        last = model.discriminator_predictions.dense_prediction
    else:
        last = model.generator_lm_head
    assert features.shape[:2] == reading.labels_BM.shape
    assert torch.allclose(logits, features @ last.weight.T + last.bias, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES[:5])
@torch.no_grad()
def test_the_first_layer_is_a_model_cut_to_one(objective):
    model, inputs = spread(objective), batch(objective)
    whole, first = model.head_inputs(inputs), model.head_inputs(inputs, layers=1)
    cut = copy.deepcopy(model)
    set_order(cut.backbone, [0])
    expected = cut.head_inputs(inputs)
    assert torch.equal(first.hidden_BMD, expected.hidden_BMD)
    assert torch.equal(first.labels_BM, expected.labels_BM)
    assert torch.equal(first.head(first.hidden_BMD)[1], expected.head(expected.hidden_BMD)[1])
    assert not torch.allclose(first.hidden_BMD, whole.hidden_BMD, atol=0.1)
    assert torch.equal(model.head_inputs(inputs).hidden_BMD, whole.hidden_BMD)


@torch.no_grad()
def test_the_generators_first_layer_leaves_the_main_models_alone():
    model, inputs = spread("electra"), batch("electra")
    first = model.head_inputs(inputs, layers=1, of_generator=True).hidden_BMD
    assert not torch.allclose(first, model.head_inputs(inputs, of_generator=True).hidden_BMD, atol=0.1)
    assert stack_of(model.electra).first is None
    assert stack_of(model.generator.electra).first is None


@torch.no_grad()
def test_all_layers_run_again_after_an_error():
    model, inputs = made("mlm").eval(), batch("mlm")
    with pytest.raises(RuntimeError):
        model.head_inputs({**inputs, "masked_positions": torch.full((6, 1), 99)}, layers=1)
    assert stack_of(model.bert).first is None
    assert stack_of(model.bert).last is None


@pytest.mark.parametrize("layers", [None, 1])
@torch.no_grad()
def test_documents_of_a_row_are_read_as_if_each_had_its_own(layers):
    model, inputs = spread("mlm"), batch("mlm")
    labels = inputs["labels"] = torch.full_like(inputs["labels"], -100)
    labels[:, 3], labels[:, 9] = 7, 8
    inputs["masked_positions"] = torch.tensor([[3, 9]] * 6)
    packed = model.head_inputs(inputs, layers)
    for place, part in enumerate(PARTS):
        ids, targets = inputs["input_ids"][:, part], labels[:, part]
        alone = model.head_inputs({"input_ids": ids, "labels": targets}, layers)
        assert alone.labels_BM.shape == (6, 1)
        assert torch.allclose(packed.hidden_BMD[:, place], alone.hidden_BMD[:, 0], atol=1e-5)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(EffptError, match=r"no generator.*`scorer: full`"):
        made("mlm").head_inputs(batch("mlm"), of_generator=True)
    for objective in ("mcbert", "mcbert masked"):
        with pytest.raises(EffptError, match="`scorer: generator`"):
            made(objective).head_inputs(batch(objective))
    with pytest.raises(EffptError, match="first 0 layers"):
        made("mlm").head_inputs(batch("mlm"), layers=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
@torch.no_grad()
def test_reading_leaves_no_trace(objective):
    model, inputs = made(objective).eval(), batch(objective)
    generator = torch.get_rng_state()
    if not objective.startswith("mcbert"):
        model.head_inputs(inputs)
    if objective != "mlm":
        model.head_inputs(inputs, of_generator=True)
    model.mean_pool(inputs)
    assert torch.equal(generator, torch.get_rng_state())
    assert not model.backbone.__dict__.get("metric_accumulator") or not model.backbone.metric_accumulator.sums


@pytest.mark.parametrize("objective", OBJECTIVES)
@torch.no_grad()
def test_readings_and_representations_wait_for_no_values(objective):
    model = made(objective).eval().to("meta")
    inputs = {name: values.to("meta") for name, values in batch(objective).items()}
    for layers in (None, 1):
        reading = model.head_inputs(inputs, layers, of_generator=objective.startswith("mcbert"))
        assert reading.head(reading.hidden_BMD)[1].shape[:2] == reading.labels_BM.shape
        assert model.mean_pool(inputs, layers).shape == (6, 32)


@pytest.mark.parametrize("objective", ["mlm", "electra"])
@torch.no_grad()
def test_a_representation_is_the_mean_over_the_tokens_of_the_row(objective):
    model, inputs = spread(objective), batch(objective)
    ids, real = inputs["input_ids"], inputs["document_ids"] > 0
    words = model.backbone.embeddings.word_embeddings.weight
    expected = torch.stack([words[ids[row, real[row]]].mean(dim=0) for row in range(6)])
    assert torch.allclose(model.mean_pool(inputs, layers=0), expected, atol=1e-6)
    plain = {"input_ids": ids}
    for layers in (1, 2, None):
        cut = copy.deepcopy(model)
        set_order(cut.backbone, range(layers or 2))
        expected = cut.backbone(ids).last_hidden_state.mean(dim=1)
        assert torch.allclose(model.mean_pool(plain, layers), expected, atol=1e-6)
    mask = {"input_ids": ids, "attention_mask": real.long()}
    hidden = model.backbone(ids, attention_mask=real.long()).last_hidden_state
    assert torch.allclose(model.mean_pool(mask), hidden[:, :13].mean(dim=1), atol=1e-6)


@torch.no_grad()
def test_a_representation_of_documents_is_the_mean_of_theirs():
    model, inputs = spread("mlm"), batch("mlm")
    first, second = (model.mean_pool({"input_ids": inputs["input_ids"][:, part]}) for part in PARTS)
    assert torch.allclose(model.mean_pool(inputs), (7 * first + 6 * second) / 13, atol=1e-5)


@torch.no_grad()
def test_representations_are_in_float32_and_any_encoder_has_them():
    torch.manual_seed(0)
    model = EffptBertModel(tiny.config()).eval()
    inputs = {"input_ids": batch("mlm")["input_ids"]}
    exact = [model.mean_pool(inputs, layers) for layers in (0, 1)]
    half = [model.bfloat16().mean_pool(inputs, layers) for layers in (0, 1)]
    assert {vectors.dtype for vectors in half} == {torch.float32}
    assert all(torch.allclose(left, right, atol=0.05) for left, right in zip(exact, half, strict=True))


@torch.no_grad()
def test_words_of_disentangled_tables_are_those_that_the_encoder_reads():
    torch.manual_seed(0)
    model, inputs = tiny.joint(embedding_sharing="disentangled").eval(), batch("electra")
    model.electra.embeddings.word_embeddings.weight.normal_()
    both = model.electra.embeddings.word_embeddings.weight + model.generator.electra.embeddings.word_embeddings.weight
    row = inputs["input_ids"][0, :13]
    assert torch.allclose(model.mean_pool(inputs, layers=0)[0], both[row].mean(dim=0), atol=1e-6)


@torch.no_grad()
def test_a_row_of_padding_has_a_representation():
    model, inputs = made("mlm").eval(), batch("mlm")
    inputs["document_ids"][0] = 0
    assert torch.isfinite(model.mean_pool(inputs)).all()
