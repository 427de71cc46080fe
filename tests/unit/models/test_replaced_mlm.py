"""The steps between masked language modelling and ELECTRA: the losses, where they are taken, and what comes out."""

import math

import pytest
import torch
from transformers import AutoModelForMaskedLM, ElectraForMaskedLM

from hf_effpt.core.depth import stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.models import (
    EffptElectraConfig,
    ElectraForJointPreTraining,
    ElectraForReplacedMaskedLM,
    candidates,
)
from tests import tiny
from tests.unit.models.test_candidates import Largest

OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def model(objective, **changes):
    torch.manual_seed(0)
    settings = {**tiny.SHAPE, **OFF, "embedding_size": 16, "generator_size": 0.5, "objective": objective}
    return ElectraForReplacedMaskedLM(EffptElectraConfig(**{**settings, **changes}))


def batch(rows=6, masked=4):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, tiny.VOCAB, (rows, tiny.LENGTH), generator=generator)
    positions = torch.rand(rows, tiny.LENGTH, generator=generator).argsort(dim=1)[:, :masked].sort(dim=1).values
    labels = torch.full_like(ids, -100).scatter(1, positions, ids.gather(1, positions))
    return {"input_ids": ids.scatter(1, positions, 4), "labels": labels, "masked_positions": positions}


def originals(inputs):
    return torch.where(inputs["labels"] == -100, inputs["input_ids"], inputs["labels"])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_replace_mlm_is_the_stock_loss_on_the_corrupted_text(attention):
    made, inputs = model("replace_mlm").train(), batch()
    made.set_attn_implementation(attention)
    output = made(**inputs)
    made.zero_grad()
    output.main_loss.backward()
    ours = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    logits = made(output.corrupted_ids).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())
    expected.backward()
    torch.testing.assert_close(output.main_loss, expected)
    torch.testing.assert_close(output.loss, output.generator_loss + output.main_loss)
    theirs = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("changes", "read_whole", "computed"),
    [({}, False, 4), ({}, True, tiny.LENGTH), (dict.fromkeys(OFF, 0.1), False, tiny.LENGTH)],
)
def test_the_last_layer_computes_what_is_read_where_nobody_can_tell(changes, read_whole, computed):
    made, seen = model("replace_mlm", **changes).train(), []
    stack_of(made.electra).read_whole = read_whole
    made.electra.encoder.layer[3].output.register_forward_hook(lambda *parts: seen.append(parts[2].shape[1]))
    made(**batch())
    assert seen == [computed]


def dense(made, inputs, output):
    """The loss of `all_tokens_mlm` by the paper's formula, on whole softmaxes."""
    hidden = made.electra(output.corrupted_ids, attention_mask=inputs.get("attention_mask")).last_hidden_state
    copied = torch.sigmoid(made.copy_head(hidden))
    predicted = made.generator_lm_head(made.generator_predictions(hidden)).softmax(dim=2)
    read = torch.nn.functional.one_hot(output.corrupted_ids, tiny.VOCAB)
    mixture = copied * read + (1 - copied) * predicted
    losses = -mixture.gather(2, originals(inputs)[:, :, None])[:, :, 0].log()
    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])) == 1
    return losses[real].mean()


@pytest.mark.parametrize("padded", [False, True])
def test_all_tokens_mlm_mixes_copying_and_predicting_at_every_token(monkeypatch, padded):
    monkeypatch.setattr(candidates, "BOUND", 7 * tiny.VOCAB)  # several chunks
    made, inputs = model("all_tokens_mlm"), batch()
    torch.nn.init.normal_(made.copy_head.weight)
    if padded:
        lengths = torch.tensor([[16], [9], [12], [16], [16], [7]])
        inputs["attention_mask"] = (torch.arange(tiny.LENGTH) < lengths).long()
        inputs["labels"][inputs["attention_mask"] == 0] = -100
    output = made(**inputs)
    output.main_loss.backward()
    ours = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    expected = dense(made, inputs, output)
    expected.backward()
    assert output.replaced.any()
    torch.testing.assert_close(output.main_loss, expected)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, made.get_parameter(name).grad, atol=1e-6, rtol=1e-4, msg=name)


def test_copying_in_log_space_survives_a_copy_head_that_is_sure():
    """Sure of copying where the token was replaced: a probability of exp(-200) has a finite loss and gradient."""
    made, inputs = model("all_tokens_mlm"), batch()
    torch.nn.init.constant_(made.copy_head.bias, 200.0)
    output = made(**inputs)
    output.main_loss.backward()
    share = output.replaced.float().mean().item()
    assert output.main_loss.item() == pytest.approx(share * (200 + math.log(tiny.VOCAB)), rel=0.01)
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


@pytest.mark.parametrize("bound", [4096, 1 << 23])
def test_no_tensor_holds_a_vocabulary_for_every_token(monkeypatch, bound):
    monkeypatch.setattr(candidates, "BOUND", bound)
    made, inputs = model("all_tokens_mlm"), batch(rows=16, masked=2)
    with Largest() as largest:
        made(**inputs).loss.backward()
    assert (largest.numel < 16 * tiny.LENGTH * tiny.VOCAB) == (bound == 4096)


@pytest.mark.parametrize("objective", ["replace_mlm", "all_tokens_mlm"])
def test_two_micro_batches_make_one_batch(objective):
    made, inputs = model(objective), batch(masked=5)
    inputs["labels"][:3].scatter_(1, inputs["masked_positions"][:3, 2:], -100)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][0, 9:] = 0
    inputs["labels"][inputs["attention_mask"] == 0] = -100
    items, whole = made.count_items(inputs), made(**inputs)
    halves = [
        made(**{name: tensor[part] for name, tensor in inputs.items()}, num_items_in_batch=items)
        for part in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(halves[0].loss + halves[1].loss, whole.loss)
    assert torch.equal(torch.cat([half.corrupted_ids for half in halves]), whole.corrupted_ids)


@pytest.mark.parametrize("objective", ["replace_mlm", "all_tokens_mlm"])
def test_the_generator_is_that_of_electra(objective):
    """Same text inserted, same loss and private gradients; nothing of the main model's loss reaches the generator."""
    made, inputs = model(objective), batch()
    electra = ElectraForJointPreTraining(EffptElectraConfig(**{**made.config.to_dict(), "objective": "electra"}))
    electra.load_state_dict(made.state_dict(), strict=False)
    one, other = made(**inputs), electra(**inputs)
    assert torch.equal(one.corrupted_ids, other.corrupted_ids)
    assert torch.equal(one.generator_loss, other.generator_loss)
    one.main_loss.backward()
    assert made.generator.generator_predictions.dense.weight.grad is None
    assert made.generator.generator_lm_head.bias.grad is None
    assert made.generator.generator_lm_head.bias is not made.generator_lm_head.bias
    table = made.electra.embeddings.word_embeddings.weight
    assert made.generator_lm_head.weight is table
    assert made.generator.generator_lm_head.weight is table


@pytest.mark.parametrize("objective", ["replace_mlm", "all_tokens_mlm"])
def test_the_generator_draws_the_dropout_of_a_model_alone(objective):
    made, inputs = model(objective, hidden_dropout_prob=0.1).train(), batch()
    torch.manual_seed(5)
    made.generator(inputs["input_ids"])
    expected = torch.get_rng_state()
    torch.manual_seed(5)
    made(**inputs)
    assert torch.equal(torch.get_rng_state(), expected)


def test_figures_and_floors():
    sums = {"generator_loss": 12.0, "guessed": 2.0, "masked": 4.0, "main_loss": 40.0, "tokens": 40.0, "replaced": 2.0}
    made = model("replace_mlm")
    figures = made.metrics(sums)
    assert figures == {
        "generator_loss": 3.0, "generator_accuracy": 0.5, "prediction_loss": 10.0, "replaced_rate": 0.5,
    }  # fmt: skip
    assert made.floor(figures, 6.5) == 6.5
    made = model("all_tokens_mlm")
    figures = made.metrics(sums)
    assert (figures["prediction_loss"], figures["replaced_rate"]) == (1.0, 0.05)
    entropy = -0.05 * math.log(0.05) - 0.95 * math.log(0.95)
    assert made.floor(figures, 6.0) == pytest.approx(entropy + 0.05 * 6.0)
    assert made.floor(figures, None) is None


@pytest.mark.parametrize("objective", ["replace_mlm", "all_tokens_mlm"])
def test_exports_to_the_stock_class_and_loads_again(tmp_path, objective):
    made, ids = model(objective).eval(), batch()["input_ids"]
    stock = made.export()
    assert type(stock) is ElectraForMaskedLM
    torch.testing.assert_close(stock(ids).logits, made(ids).logits, atol=1e-6, rtol=0)
    made.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(loaded) is ElectraForReplacedMaskedLM
    inputs = batch()
    torch.testing.assert_close(loaded.eval()(**inputs).loss, made(**inputs).loss, atol=1e-5, rtol=1e-6)


def test_a_discriminator_is_refused_here():
    with pytest.raises(EffptError, match="the objective `electra` does not; use `ElectraForJointPreTraining`"):
        model("electra")
