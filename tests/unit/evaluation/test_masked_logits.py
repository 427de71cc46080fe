import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM

from hf_effpt.core.depth import set_order, stack_of
from hf_effpt.evaluation import masked_logits as module
from hf_effpt.evaluation.masked_logits import evaluation_mode, masked_logits, predicts_masked_tokens
from tests import tiny

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
CONFIGS = {
    "Bert": SHAPE,
    "Roberta": SHAPE,
    "Electra": {**SHAPE, "embedding_size": 16},
    "DistilBert": {
        "vocab_size": 60,
        "dim": 32,
        "n_layers": 3,
        "n_heads": 2,
        "hidden_dim": 48,
        "max_position_embeddings": 40,
    },
    "ModernBert": {**SHAPE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1}
    | {"sep_token_id": 2, "local_attention": 4},
}


def stock(kind: str, **changes) -> transformers.PreTrainedModel:
    """A small masked-language model of a stock class; its weights are large enough for every token to matter."""
    config = getattr(transformers, f"{kind}Config")(**CONFIGS[kind] | changes)
    model = AutoModelForMaskedLM.from_config(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    return model


def batch(size: int = 4, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, and three positions of each row."""
    positions = torch.rand(size, length).argsort(dim=1)[:, :3].sort(dim=1).values
    return torch.randint(5, 60, (size, length)), positions


def dense(model, positions, **inputs) -> torch.Tensor:
    logits = model(**inputs).logits
    return logits.gather(1, positions[:, :, None].expand(-1, -1, logits.shape[-1]))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_equal_to_the_logits_of_the_whole_head(kind, attention):
    model = stock(kind, attn_implementation=attention)
    ids, positions = batch()
    torch.testing.assert_close(
        masked_logits(model, positions, input_ids=ids), dense(model, positions, input_ids=ids), atol=1e-5, rtol=0
    )
    mask = torch.ones_like(ids)
    mask[0, 9:] = mask[2, 5:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    got = masked_logits(model, positions, **inputs)
    torch.testing.assert_close(got, dense(model, positions, **inputs), atol=1e-5, rtol=0)
    assert not torch.allclose(got, masked_logits(model, positions, input_ids=ids), atol=1e-3)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0), (1, 1), ()])
@torch.no_grad()
def test_a_training_model_at_any_depth(order):
    model = tiny.model({"layerdrop": {"p": 0.5}}).eval()
    set_order(model.bert, order)
    ids, positions = batch()
    got = masked_logits(model, positions, input_ids=ids)
    torch.testing.assert_close(got, dense(model, positions, input_ids=ids), atol=1e-5, rtol=0)


@torch.no_grad()
def test_in_training_mode_draws_the_dropout_of_the_whole_model():
    model = stock("Bert").train()
    ids, positions = batch()
    torch.manual_seed(3)
    got = masked_logits(model, positions, input_ids=ids)
    torch.manual_seed(3)
    hidden = model.bert(ids).last_hidden_state
    expected = model.cls(hidden.gather(1, positions[:, :, None].expand(-1, -1, 32)))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_head_sees_wanted_positions_only(kind):
    model = stock(kind)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: seen.append(output.shape))
    ids, positions = batch()
    masked_logits(model, positions, input_ids=ids)
    assert seen == [(4, 3, 60)]


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra"])
def test_the_last_layer_computes_wanted_positions_only(kind):
    model = stock(kind)
    seen = []
    for layer in model.base_model.encoder.layer:
        layer.intermediate.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    ids, positions = batch()
    masked_logits(model, positions, input_ids=ids)
    assert seen == [12, 12, 3]


def test_the_next_forward_of_a_layer_stack_computes_all_positions():
    model = stock("Bert")
    stack = stack_of(model.bert)
    ids, positions = batch()
    expected = model(ids).logits
    masked_logits(model, positions, input_ids=ids)
    assert model.bert.encoder.layer is stack
    assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("kind", ["Bert", "DistilBert"])
def test_leaves_the_model_as_it_was_even_after_an_error(kind):
    model = stock(kind)
    before = [(name, id(part)) for name, part in model.named_modules()]
    ids, positions = batch()
    expected = model(ids).logits
    masked_logits(model, positions, input_ids=ids)
    with pytest.raises(IndexError):
        masked_logits(model, positions, input_ids=ids + 60)
    assert [(name, id(part)) for name, part in model.named_modules()] == before
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.equal(model(ids).logits, expected)


def test_which_classes_predict_masked_tokens():
    assert all(predicts_masked_tokens(stock(kind)) for kind in CONFIGS)
    assert predicts_masked_tokens(tiny.model())
    assert not predicts_masked_tokens(AutoModel.from_config(tiny.config().stock()))
    assert not predicts_masked_tokens(nn.Linear(2, 2))


def test_evaluation_mode_gives_back_every_mode():
    model = stock("Bert").train()
    model.bert.embeddings.eval()
    modes = [part.training for part in model.modules()]

    def fail() -> None:
        with evaluation_mode(model):
            assert not any(part.training for part in model.modules())
            assert not torch.is_grad_enabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [part.training for part in model.modules()] == modes
    assert torch.is_grad_enabled()


def test_hidden_states_asked_for_in_the_configuration_are_computed_in_full():
    model = stock("Bert", output_hidden_states=True)
    assert not module._may_skip(model.bert)
    ids, positions = batch()
    got = masked_logits(model, positions, input_ids=ids)
    torch.testing.assert_close(got, dense(model, positions, input_ids=ids), atol=1e-5, rtol=0)
