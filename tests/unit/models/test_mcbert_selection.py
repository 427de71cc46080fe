"""Candidates at chosen positions only, with replaced-token detection everywhere: the variant of TEAMS."""

import math

import pytest
import torch

from hf_effpt.core.token_losses import observe_losses, recording_losses
from tests import tiny
from tests.unit.models.test_mcbert import NOTA, SPECIAL, always, batch, model, originals


def selecting(**changes):
    return model(candidates_at="masked", candidates=5, **changes)


def test_candidates_are_the_truth_and_other_tokens_all_different():
    made, inputs = selecting(), batch(rows=64)
    found = []
    made._candidate_logits = lambda outputs, some: found.append(some) or torch.zeros(some.shape)
    output = made(**inputs)
    truth = originals(inputs).gather(1, inputs["masked_positions"])
    assert torch.equal(found[0][:, :, 0], truth)
    assert (found[0].sort(dim=2).values.diff(dim=2) > 0).all()
    assert not torch.isin(found[0], torch.tensor([*SPECIAL, NOTA])).any()
    assert torch.equal(output.replaced, output.corrupted_ids != originals(inputs))


def test_both_tasks_are_learned_with_the_published_weights():
    made, inputs = selecting(), batch()
    inputs["labels"][0].fill_(-100)
    output = made(**inputs)
    sums = {name: value.item() for name, value in output.sums.items()}
    figures = made.metrics(sums)
    detection = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, output.replaced.float())
    assert figures["detection_loss"] == pytest.approx(detection.item())
    assert figures["candidate_loss"] == pytest.approx(math.log(5), abs=0.1)
    assert figures["floor"] == math.log(5)
    assert sums["masked"] == 20
    expected = output.generator_loss.item() + 5 * figures["detection_loss"] + 2 * figures["candidate_loss"]
    assert output.loss.item() == pytest.approx(expected)
    output.loss.backward()
    assert made.discriminator_predictions.dense.weight.grad.abs().sum() > 0
    assert made.generator_predictions.dense.weight.grad.abs().sum() > 0


def test_a_correct_sample_is_possible_and_no_fake():
    made, inputs = selecting(), batch()
    inputs["labels"] = torch.where(inputs["labels"] == -100, -100, 17)
    made.generator_logits = always(torch.zeros(tiny.VOCAB).index_fill(0, torch.tensor(17), 90.0))
    assert not made(**inputs).replaced.any()


def test_the_head_over_the_vocabulary_sees_chosen_positions_only():
    made, inputs = selecting(), batch(rows=3, masked=2)
    positions, logits = [], made.generator_logits
    made.generator_logits = lambda hidden: positions.append(len(hidden)) or logits(hidden)
    last = made.generator.electra.encoder.layer[3].output
    last.register_forward_hook(lambda *parts: positions.append(parts[2].shape[:2].numel()))
    made(**inputs)
    assert positions == [6, 6]


@pytest.mark.parametrize("place", ["all", "masked"])
def test_the_controller_draws_the_dropout_of_a_model_alone(place):
    made, inputs = model(candidates_at=place, hidden_dropout_prob=0.1).train(), batch()
    torch.manual_seed(5)
    made.generator(inputs["input_ids"])
    expected = torch.get_rng_state()
    torch.manual_seed(5)
    first = made(**inputs)
    assert torch.equal(torch.get_rng_state(), expected)
    assert not torch.equal(first.main_loss, made(**inputs).main_loss)  # the main model has dropout, too


def test_observers_hear_the_loss_of_selection_only_and_a_recorder_both():
    made, inputs, heard = model(candidates_at="masked").train(), batch(), []
    observe_losses(made.backbone, "probe", heard.append)
    sums = made(**inputs).sums
    with recording_losses(made.backbone) as recorded:
        made(**inputs)
    assert len(heard) == 1
    assert [losses.losses_N.sum().item() for losses in (*heard, *recorded)] == pytest.approx(
        [sums[name].item() for name in ("main_loss", "detection_loss", "main_loss")]
    )
