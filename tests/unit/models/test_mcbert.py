"""MC-BERT: what is drawn, which candidates that makes, what is learned from them, and what comes out."""

import math

import pytest
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.models import (
    EffptElectraConfig,
    ElectraForJointPreTraining,
    McBertConfig,
    McBertForPreTraining,
    candidates,
)
from hf_effpt.models.electra import replaced_loss
from tests import tiny
from tests.unit.models.test_candidates import Largest

SPECIAL = [0, 1, 2, 3, 4]
NOTA = tiny.VOCAB - 1
K = 10
OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def model(seed=0, **changes):
    settings = {**tiny.SHAPE, **OFF, "special_token_ids": SPECIAL, "generator_size": 0.5, **changes}
    torch.manual_seed(seed)
    return McBertForPreTraining(McBertConfig(**settings))


def batch(rows=6, masked=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, NOTA, (rows, tiny.LENGTH), generator=generator)
    positions = torch.rand(rows, tiny.LENGTH, generator=generator).argsort(dim=1)[:, :masked].sort(dim=1).values
    labels = torch.full_like(ids, -100).scatter(1, positions, ids.gather(1, positions))
    return {"input_ids": ids.scatter(1, positions, 4), "labels": labels, "masked_positions": positions}


def originals(inputs):
    return torch.where(inputs["labels"] == -100, inputs["input_ids"], inputs["labels"])


class Seen(McBertForPreTraining):
    """Keeps the candidates of its last batch."""

    def _candidates(self, *args):
        self.candidates, repeated = super()._candidates(*args)
        return self.candidates, repeated


def seen(**changes):
    made = model(**changes)
    made.__class__ = Seen
    return made


def always(logits):
    """Instead of a generator's head: the same logits at every position."""
    return lambda hidden: logits.expand(len(hidden), -1).clone()


@pytest.mark.parametrize("faithful", [False, True])
def test_the_answer_is_the_truth_where_it_was_replaced_and_none_of_the_above_elsewhere(faithful):
    made, inputs = seen(faithful=faithful), batch(rows=32)
    output = made(**inputs)
    answer = made.candidates.gather(2, output.replaced.long()[:, :, None])[:, :, 0]
    truth = originals(inputs)
    assert output.replaced.any()
    assert torch.equal(answer, torch.where(output.replaced, truth, NOTA))
    assert torch.equal(output.corrupted_ids[inputs["labels"] == -100], truth[inputs["labels"] == -100])
    assert torch.equal(output.replaced, output.corrupted_ids != truth)
    assert made.candidates.shape == (32, tiny.LENGTH, K)
    # Where nothing was replaced the second place is a draw like the others.
    assert (made.candidates[:, :, 1] == truth)[~output.replaced].float().mean() < 0.1


def test_a_generator_that_is_right_leaves_nothing_replaced():
    made, inputs = model(), batch()
    inputs["labels"] = torch.where(inputs["labels"] == -100, -100, 17)
    made.generator_logits = always(torch.zeros(tiny.VOCAB).index_fill(0, torch.tensor(17), 90.0))
    assert not made(**inputs).replaced.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_have_the_frequencies_of_the_softmax_and_are_no_best_guess(dtype):
    made, inputs = seen(), batch(rows=400)
    wanted = torch.zeros(tiny.VOCAB)
    wanted[[10, 11, 12]] = torch.tensor([0.7, 0.2, 0.1])
    made.generator_logits = always(wanted.log().to(dtype))
    output = made(**inputs)
    inserted = output.corrupted_ids.gather(1, inputs["masked_positions"])
    elsewhere = made.candidates[:, :, 2:][inputs["labels"] == -100]
    for drawn, tolerance in ((inserted, 0.05), (elsewhere, 0.015)):
        shares = torch.bincount(drawn.flatten(), minlength=tiny.VOCAB) / drawn.numel()
        torch.testing.assert_close(shares[10:13], wanted[10:13], atol=tolerance, rtol=0)
        assert shares[10:13].sum() == 1


def test_no_special_token_is_drawn_unless_faithful():
    logits = torch.zeros(tiny.VOCAB).index_fill(0, torch.tensor([*SPECIAL, NOTA]), 20.0)
    inputs, forbidden = batch(rows=16), torch.tensor([*SPECIAL, NOTA])
    for faithful in (False, True):
        made = seen(faithful=faithful)
        made.generator_logits = always(logits)
        corrupted = made(**inputs).corrupted_ids
        assert torch.isin(made.candidates[:, :, 1:], forbidden).any() == faithful
        assert torch.isin(corrupted, forbidden).any() == faithful
        assert (made.candidates[:, :, 0] == NOTA).all()


def test_loss_and_accuracy_of_the_controller_are_over_the_whole_vocabulary():
    """It learns as a masked-language model, whatever may be drawn from it."""
    made, inputs = model(), batch()
    inputs["labels"] = torch.where(inputs["labels"] == -100, -100, 17)
    made.generator_logits = always(torch.zeros(tiny.VOCAB).index_fill(0, torch.tensor([17, NOTA]), 90.0))
    output = made(**inputs)
    assert output.generator_loss.item() == pytest.approx(math.log(2))
    logits = torch.zeros(tiny.VOCAB).index_fill(0, torch.tensor(17), 80.0).index_fill(0, torch.tensor(NOTA), 90.0)
    made.generator_logits = always(logits)
    output = made(**inputs)
    assert output.sums["guessed"] == 0
    assert not output.replaced.any()  # 17 is drawn all the same


@pytest.mark.parametrize("faithful", [False, True])
def test_copies_of_the_truth_do_not_put_a_floor_under_the_loss(faithful):
    made, inputs = model(faithful=faithful), batch()
    truth = originals(inputs).gather(1, inputs["masked_positions"])
    drawn = truth[:, :, None].repeat(1, 1, K)
    drawn[:, :, 0] = torch.where(truth == 50, 51, 50)  # inserted; the other draws are all the truth
    made._draw = lambda *args: drawn
    logits = made(**inputs).logits
    logits = logits.gather(1, inputs["masked_positions"][:, :, None].expand(-1, -1, K))
    of_truth = -logits.log_softmax(dim=2)[:, :, 1]
    copies = torch.isfinite(logits[:, :, 1:]).sum(dim=2)
    assert (copies == (K - 1 if faithful else 1)).all()
    assert (of_truth.min() > math.log(K - 1)) == faithful


def test_where_nothing_is_replaced_the_token_itself_may_be_a_candidate_and_is_wrong():
    made, inputs = seen(), batch()
    made.generator_logits = always(torch.zeros(tiny.VOCAB).index_fill(0, inputs["input_ids"][0, :1], 90.0))
    inputs["masked_positions"], inputs["labels"] = (
        inputs["masked_positions"][:, :1] * 0 + 3,
        inputs["labels"] * 0 - 100,
    )
    output = made(**inputs)
    assert not output.replaced.any()
    assert (made.candidates[0, 0, 1:] == inputs["input_ids"][0, 0]).all()
    assert torch.isfinite(output.logits).all()


def test_candidate_logits_are_those_of_the_stock_head_in_any_order():
    made, inputs = seen(), batch()
    output = made(**inputs)
    stock = made(output.corrupted_ids).logits.gather(2, made.candidates)
    # Without labels none of the above cannot be chosen.
    kept = torch.isfinite(output.logits) & (made.candidates != made.config.nota_token_id)
    torch.testing.assert_close(output.logits[kept], stock[kept], atol=1e-5, rtol=1e-5)
    losses = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), output.replaced.long().flatten())
    torch.testing.assert_close(output.main_loss, losses)
    torch.testing.assert_close(output.loss, output.generator_loss + 50 * output.main_loss)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_controller_learns_as_the_generator_of_electra(dropout):
    rates = dict.fromkeys(OFF, dropout)
    ours, inputs = model(faithful=True, **rates).train(), batch()
    shape = {**tiny.SHAPE, **rates, "embedding_size": 32, "generator_size": 0.5}
    theirs = ElectraForJointPreTraining(EffptElectraConfig(**shape)).train()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    outputs = []
    for joint in (ours, theirs):
        torch.manual_seed(5)
        outputs.append(joint(**inputs))
        outputs[-1].loss.backward()
    assert torch.equal(outputs[0].corrupted_ids, outputs[1].corrupted_ids)
    # Without dropout ELECTRA's generator leaves out what nobody reads, which rounds in another way.
    tolerance = {"atol": 0.0, "rtol": 0.0} if dropout else {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(outputs[0].generator_loss, outputs[1].generator_loss, **tolerance)
    for name, parameter in theirs.generator.named_parameters():
        if not name.startswith(("electra.embeddings.", "generator_lm_head.")):  # what both models share
            own = ours.generator.get_parameter(name).grad
            torch.testing.assert_close(own, parameter.grad, **tolerance, msg=name)


class AsElectra(McBertForPreTraining):
    """Off: told apart by a discriminator instead of chosen among candidates."""

    def _learn_to_choose(self, batch, hidden, drawn, corrupted, replaced):
        self._draw_elsewhere(batch, hidden, drawn)
        with self.own_stream():
            outputs = self.electra(corrupted, return_dict=True, **batch.inputs).last_hidden_state
            logits = self.discriminator_predictions(outputs)
        loss = replaced_loss(logits, replaced, batch.real_BL)
        return loss, batch.items[1], logits, {"main_loss": loss}


def test_with_a_discriminator_instead_of_the_candidates_it_is_electra_bit_for_bit():
    rates, inputs = dict.fromkeys(OFF, 0.1), batch()
    theirs = ElectraForJointPreTraining(
        EffptElectraConfig(**{**tiny.SHAPE, **rates, "embedding_size": 32, "generator_size": 0.5})
    ).train()
    ours = model(faithful=True, **rates).train()
    ours.discriminator_predictions = theirs.discriminator_predictions
    ours.load_state_dict(theirs.state_dict(), strict=False)
    # Here the one bias is also the head's of the main model, which nobody reads.
    ours.__class__ = AsElectra
    results = []
    for joint in (ours, theirs):
        torch.manual_seed(5)
        joint.zero_grad()
        output = joint(**inputs)
        output.loss.backward()
        gradients = {n: p.grad.clone() for n, p in joint.named_parameters() if p.grad is not None}
        gradients = {
            n.replace("generator.generator_lm_head.bias", "generator_lm_head.bias"): g for n, g in gradients.items()
        }
        results.append((output, gradients, torch.get_rng_state()))
    (one, ours_g, state), (other, theirs_g, expected) = results
    for name in ("loss", "generator_loss", "main_loss", "corrupted_ids", "logits"):
        assert torch.equal(one[name], other[name]), name
    assert torch.equal(state, expected)
    assert ours_g.keys() == theirs_g.keys()
    assert all(torch.equal(ours_g[name], theirs_g[name]) for name in ours_g)


def test_two_micro_batches_make_one_batch():
    """With padding and another number of chosen positions in each, so that both means have another denominator."""
    made, inputs = model(), batch(rows=6, masked=5)
    inputs["labels"][:3].scatter_(1, inputs["masked_positions"][:3, 2:], -100)
    inputs["attention_mask"] = (torch.arange(tiny.LENGTH) < torch.tensor([[16], [9], [12], [16], [16], [7]])).long()
    inputs["labels"][inputs["attention_mask"] == 0] = -100
    items = made.count_items(inputs)
    whole = made(**inputs)
    whole.loss.backward()
    expected = {name: p.grad.clone() for name, p in made.named_parameters()}
    made.zero_grad()
    total = 0.0
    for part in (slice(0, 3), slice(3, 6)):
        output = made(**{name: tensor[part] for name, tensor in inputs.items()}, num_items_in_batch=items)
        assert torch.equal(output.corrupted_ids, whole.corrupted_ids[part])
        output.loss.backward()
        total += output.loss.item()
    assert total == pytest.approx(whole.loss.item(), rel=1e-6)
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=2e-5, rtol=1e-4, msg=name)


def test_padding_is_no_part_of_the_loss():
    made, inputs = model(), batch(rows=2)
    inputs["attention_mask"] = (torch.arange(tiny.LENGTH) < torch.tensor([[16], [10]])).long()
    inputs["labels"][inputs["attention_mask"] == 0] = -100
    output = made(**inputs)
    losses = torch.nn.functional.cross_entropy(
        output.logits.flatten(0, 1), output.replaced.long().flatten(), reduction="none"
    )
    real = inputs["attention_mask"].flatten() == 1
    torch.testing.assert_close(output.main_loss, losses[real].mean())


def test_loss_begins_at_guessing_and_the_floor_is_that_of_always_rejecting():
    made = model(hidden_size=16, initializer_range=0.002)
    assert made(**batch()).main_loss.item() == pytest.approx(math.log(K), abs=0.01)
    sums = {"generator_loss": 8.0, "guessed": 1.0, "masked": 2.0, "main_loss": 50.0, "tokens": 100.0}
    assert made.metrics(sums | {"replaced": 10.0}) == {
        "generator_loss": 4.0,
        "generator_accuracy": 0.5,
        "replaced_rate": 0.1,
        "candidate_loss": 0.5,
        "floor": pytest.approx(0.545, abs=5e-4),
    }
    assert made.metrics(sums | {"replaced": 8.0})["floor"] == pytest.approx(0.455, abs=5e-4)


@pytest.mark.parametrize("bound", [4096, 1 << 23])
def test_no_tensor_holds_a_vocabulary_or_embeddings_for_every_token(monkeypatch, bound):
    monkeypatch.setattr(candidates, "BOUND", bound)
    made, inputs = model(), batch(rows=16, masked=2)
    with Largest() as largest:
        made(**inputs).loss.backward()
    assert (largest.numel < 16 * tiny.LENGTH * tiny.VOCAB) == (bound == 4096)


def test_half_precision_learns_the_same():
    made, inputs = model(), batch()
    exact = made(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = made(**inputs)
    output.loss.backward()
    assert output.logits.dtype == torch.float32
    torch.testing.assert_close(output.main_loss, exact.main_loss, atol=0.05, rtol=0.05)
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


def test_draws_do_not_touch_the_random_numbers_and_evaluation_repeats():
    made, inputs = seen().eval(), batch()
    state = torch.get_rng_state()
    first = made(**inputs), made.candidates
    again = made(**inputs), made.candidates
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[1], again[1])
    assert torch.equal(first[0].loss, again[0].loss)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates_at": "none"}, "must be `all` or `masked`, not 'none'"),
        ({"candidates": 2}, "`candidates` is 2, but must be between 3 and 122"),
        ({"candidates": 123}, "between 3 and 122, the number of tokens that may be sampled"),
        ({"nota_token_id": 128}, "`nota_token_id` is 128, but the vocabulary has rows 0 to 127"),
        ({"special_token_ids": [4, 200]}, "rows 0 to 127; give `all_special_ids` of the tokenizer"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(EffptError, match=message):
        model(**changes)


@pytest.mark.slow
def test_training_gets_below_the_floor_of_always_rejecting():
    """On rows of four words, beside a generator whose own layers learn nothing."""
    made = model(num_hidden_layers=1).train()
    for part in (made.generator.electra.encoder, made.generator.generator_predictions):
        part.requires_grad_(False)
    optimizer = torch.optim.AdamW(made.parameters(), lr=5e-3)
    rows = torch.tensor(tiny.rows(16)["input_ids"])
    rows[:, 1:-1] = 5 + rows[:, 1:-1] % 4
    sums = {}
    for step in range(40):
        generator = torch.Generator().manual_seed(step)
        positions = 1 + torch.rand(16, tiny.LENGTH - 2, generator=generator).argsort(dim=1)[:, :2]
        labels = torch.full_like(rows, -100).scatter(1, positions, rows.gather(1, positions))
        output = made(input_ids=rows.scatter(1, positions, 4), labels=labels, masked_positions=positions)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= 30:
            sums = {name: sums.get(name, 0.0) + value.item() for name, value in output.sums.items()}
    figures = made.metrics(sums)
    assert figures["candidate_loss"] < 0.8 * figures["floor"], figures
