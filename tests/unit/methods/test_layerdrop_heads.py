"""Dropping heads: what is zeroed, when, and that nothing else changes."""

import copy

import numpy as np
import pytest
import torch

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from hf_effpt.methods import LayerDrop
from hf_effpt.methods.layerdrop.heads import MASK, draw_heads
from tests import tiny

HEADS = {"layerdrop": {"p": 0.0, "heads": 0.5}}


def without_dropout(methods, **changes):
    torch.manual_seed(3)
    return tiny.model(methods, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **changes)


def masks(model):
    return [getattr(layer.attention.output.dense, MASK).clone() for layer in stack_of(model.bert).children()]


def batch():
    made = tiny.batch(4, objective="mlm")
    return {name: made[name] for name in ("input_ids", "labels", "masked_positions")}


def test_a_dropped_head_adds_nothing_and_others_add_what_they_did():
    """Against a stock model whose columns of the dropped heads are zero."""
    model, plain = without_dropout(HEADS).train(), without_dropout({}).train()
    (method,) = model.methods
    method.schedule(model.bert, RunContext(0, 0.0, seed=7))
    kept = masks(model)
    assert {0.0, 1.0} == set(torch.cat(kept).tolist())
    assert all(mask.view(2, 16).std(dim=1).eq(0).all() for mask in kept)  # whole heads, two of 16
    for layer, mask in zip(stack_of(plain.bert).children(), kept, strict=True):
        layer.attention.output.dense.weight.data *= mask
    ids = torch.arange(5, 21).view(2, 8)
    torch.testing.assert_close(model(ids).logits, plain(ids).logits)


def test_no_head_is_dropped_in_evaluation_and_nothing_is_rescaled():
    model, plain = without_dropout(HEADS), without_dropout({})
    model.methods[0].schedule(model.bert, RunContext(0, 0.0, seed=7))
    ids = torch.arange(5, 21).view(2, 8)
    assert torch.equal(model.eval()(ids).logits, plain.eval()(ids).logits)


def test_the_sparse_last_layer_drops_the_same_heads():
    model = without_dropout(HEADS).train()
    model.methods[0].schedule(model.bert, RunContext(0, 0.0, seed=9))
    given = batch()
    sparse = model(**given).loss
    dense = model(given["input_ids"], labels=given["labels"]).loss
    torch.testing.assert_close(sparse, dense)
    model.methods[0].schedule(model.bert, RunContext(1, 0.0, seed=9))
    assert not torch.allclose(model(**given).loss, sparse)


def test_one_draw_a_step_whatever_the_rows_and_micro_batches(tmp_path):
    trainer = tiny.trainer(tmp_path, HEADS, budget="4steps", gradient_accumulation_steps=3)
    seen = []
    trainer.model.bert.register_forward_pre_hook(lambda *_: seen.append(torch.cat(masks(trainer.model))))
    trainer.train()
    steps = [seen[first : first + 3] for first in range(0, 12, 3)]
    assert all(torch.equal(step[0], mask) for step in steps for mask in step)
    assert len({tuple(step[0].tolist()) for step in steps}) > 1


def test_draws_are_pure_and_at_the_rate():
    rate = np.mean([np.concatenate(draw_heads(0.2, [12] * 12, step, seed=1)).mean() for step in range(100)])
    assert rate == pytest.approx(0.8, abs=0.01)
    np.testing.assert_array_equal(draw_heads(0.5, [4, 4], 3, 1), draw_heads(0.5, [4, 4], 3, 1))
    assert not np.array_equal(draw_heads(0.5, [16], 3, 1), draw_heads(0.5, [16], 4, 1))
    # of another stream than the layers': those do not decide which heads are left
    layers = LayerDrop(p=0.5).draw(64, 3, seed=1)
    heads = np.flatnonzero(~draw_heads(0.5, [64], 3, seed=1)[0])
    assert set(layers) != set(heads)


def test_before_its_start_nothing_is_dropped():
    model = without_dropout({"layerdrop": {"p": 0.0, "heads": 0.9, "after": 0.5}}).train()
    for fraction, all_kept in ((0.4, True), (0.5, False)):
        model.methods[0].schedule(model.bert, RunContext(0, fraction, seed=7))
        assert bool(torch.cat(masks(model)).all()) == all_kept


def test_state_dicts_copies_and_exports_have_no_mask():
    model = without_dropout(HEADS)
    names = set(without_dropout({}).state_dict())
    model.methods[0].schedule(model.bert, RunContext(0, 0.0, seed=7))
    assert set(model.state_dict()) == names
    again = copy.deepcopy(model)
    again.methods[0].schedule(again.bert, RunContext(5, 0.0, seed=7))
    assert not torch.equal(torch.cat(masks(again)), torch.cat(masks(model)))  # its own masks, not the model's
    stock = model.export()
    assert not any(MASK in name for name, _ in stock.named_buffers())
    assert not any(module._forward_pre_hooks for module in stock.modules())
    for mask in masks(copy.deepcopy(model).to(torch.bfloat16)):
        assert mask.dtype == torch.bfloat16
    assert len(masks(model)) == 4  # the model itself has kept them
    ids = torch.arange(5, 21).view(2, 8)
    assert torch.equal(stock(ids).logits, model.eval()(ids).logits)


def test_ejecting_takes_masks_and_hooks_out_of_the_model_itself():
    model = without_dropout(HEADS).train()
    (method,) = model.methods
    method.schedule(model.bert, RunContext(0, 0.0, seed=7))
    method.eject(model.bert)
    assert not any(module._forward_pre_hooks for module in model.bert.modules())
    ids = torch.arange(5, 21).view(2, 8)
    assert torch.equal(model(ids).logits, without_dropout({}).train()(ids).logits)


def test_a_reloaded_model_drops_nothing_until_a_step_says_so(tmp_path):
    """No checkpoint holds the mask, and a fine-tuning without the package's Trainer never sets one."""
    model = without_dropout(HEADS)
    model.methods[0].schedule(model.bert, RunContext(0, 0.0, seed=7))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).train()
    ids = torch.arange(5, 21).view(2, 8)
    torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits)
    loaded.methods[0].schedule(loaded.bert, RunContext(0, 0.0, seed=7))
    assert all(map(torch.equal, masks(loaded), masks(model)))


def test_the_generator_keeps_its_heads():
    model = tiny.joint("electra", HEADS)
    model.methods[0].schedule(model.backbone, RunContext(0, 0.0, seed=7))
    assert not any(MASK in name for name, _ in model.generator.named_buffers())
    assert any(MASK in name for name, _ in model.named_buffers())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_masks_of_a_compiled_layer_are_those_of_the_step():
    from torch import _dynamo as dynamo

    dynamo.reset()
    eager, compiled = without_dropout(HEADS).train(), without_dropout(HEADS).train()
    for layer in stack_of(compiled.bert).children():
        layer.compile(backend="eager")
    ids = torch.arange(5, 21).view(2, 8)
    for step in range(4):
        outputs = []
        for model in (eager, compiled):
            model.methods[0].schedule(model.bert, RunContext(step, 0.0, seed=7))
            outputs.append(model(ids).logits)
        torch.testing.assert_close(*outputs)
    dynamo.reset()
