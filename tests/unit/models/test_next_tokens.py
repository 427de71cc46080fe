"""Masked language models that learn next tokens: what a token sees, and the loss at every token."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import cross_entropy
from transformers.integrations import flex_attention as flex

from hf_effpt.core.document_layout import DocumentLayout
from hf_effpt.core.errors import EffptError
from hf_effpt.core.token_losses import observe_losses
from hf_effpt.models import candidates, document_blocks, encoder_inputs
from hf_effpt.models.kin import (
    EffptDistilBertConfig,
    EffptDistilBertForMaskedLM,
    EffptRobertaConfig,
    EffptRobertaForMaskedLM,
)
from hf_effpt.models.next_token_loss import next_token_loss
from tests import tiny

LENGTH, AT = 12, 7  # of a row, and a token of it that is changed
DOCUMENTS = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3]])
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
WAYS = [(backbone, attention) for backbone in tiny.BACKBONES for attention in ("sdpa", "eager", "flex_attention")]


def kin(name):
    shape = {"vocab_size": tiny.VOCAB, "max_position_embeddings": 32}
    if name == "roberta":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        return EffptRobertaForMaskedLM(EffptRobertaConfig(**shape, **sizes))
    return EffptDistilBertForMaskedLM(EffptDistilBertConfig(**shape, dim=32, n_layers=2, n_heads=2, hidden_dim=64))


def made(backbone, attention="sdpa"):
    torch.manual_seed(0)
    if backbone not in tiny.BACKBONES:
        return kin(backbone).eval()
    model = tiny.masked_lm(backbone, num_hidden_layers=2).eval()
    model.set_attn_implementation(attention)
    return model.requires_grad_(attention != "flex_attention")  # which has no backward on a CPU


@pytest.fixture(autouse=True)
def _flex_as_it_is(monkeypatch):
    """Not compiled, which would take longer than all else here."""
    monkeypatch.setattr(
        flex, "compile_friendly_flex_attention", lambda *args, training, **kwargs: flex_attention(*args, **kwargs)
    )


def changed_logits(model, **more):
    """Positions whose logits change with the token at `AT`."""
    ids = torch.arange(5, 5 + LENGTH)[None]
    other = ids.clone()
    other[0, AT] = 99
    with torch.no_grad():
        before, after = (model(input_ids=one, **more).logits for one in (ids, other))
    return (before - after).abs().amax(dim=(0, 2)).gt(1e-6).nonzero().flatten().tolist()


@pytest.mark.parametrize(("backbone", "attention"), [*WAYS, ("roberta", "sdpa"), ("distilbert", "sdpa")])
def test_a_token_changes_nothing_before_it(backbone, attention):
    model, causal = made(backbone, attention), torch.ones(1)
    assert changed_logits(model, causal=causal) == [*range(AT, LENGTH)]
    if attention != "flex_attention":  # transformers warns of its own mask
        assert min(changed_logits(model)) < AT
    real = torch.tensor([[0, 0] + [1] * (LENGTH - 3) + [0]])  # a changed token is not padding
    assert changed_logits(model, causal=causal, attention_mask=real) == [*range(AT, LENGTH - 1)]


@pytest.mark.parametrize(("backbone", "attention"), WAYS)
def test_documents_stay_apart(backbone, attention):
    model = made(backbone, attention)
    more = {"causal": torch.ones(1), "document_ids": DOCUMENTS}
    assert changed_logits(model, **more) == [7, 8, 9]
    assert changed_logits(model, document_ids=DOCUMENTS) == [4, 5, 6, 7, 8, 9]


def test_a_window_reaches_backwards_only():
    """A causal window: of the two tokens on either side, a layer sees those before."""
    model = tiny.masked_lm("modernbert", layer_types=["sliding_attention"], num_hidden_layers=1, local_attention=4)
    assert changed_logits(model.eval(), causal=torch.ones(1)) == [7, 8, 9]
    assert changed_logits(model) == [5, 6, 7, 8, 9]


def test_blocks_of_documents_are_the_mask(monkeypatch):
    """Rows from `LEAST` tokens on have no mask; here that is a short row."""
    model, more = made("modernbert"), {"causal": torch.ones(2), "document_ids": DOCUMENTS.repeat(2, 1)}
    ids = torch.randint(5, tiny.VOCAB, (2, LENGTH))
    masked = model(input_ids=ids, **more).logits
    for module in (document_blocks, encoder_inputs):
        monkeypatch.setattr(module, "LEAST", LENGTH)
    assert encoder_inputs.way_apart(model, LENGTH) == encoder_inputs.BLOCKS
    assert torch.allclose(model(input_ids=ids, **more).logits, masked, atol=1e-5)


@pytest.mark.parametrize("window", [None, 4, 64])
def test_long_documents_in_blocks(window):
    ids = torch.arange(600).div(170, rounding_mode="floor")[None] + 1
    inputs = [torch.randn(1, 2, 600, 8) for _ in range(3)]
    blocks = document_blocks.DocumentMask.make(ids, DocumentLayout.of(ids), window, causal=True)
    sees = encoder_inputs.isolate_documents(ids).tril()
    sees = sees if window is None else sees & encoder_inputs.within(window, ids)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert torch.allclose(attend(*inputs, attn_mask=blocks), attend(*inputs, attn_mask=sees), atol=1e-5)


def test_flash_attention_is_refused():
    model = made("bert")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(EffptError, match=r"`attn_implementation: flash_attention_2` has not here; use `sdpa`"):
        model(input_ids=torch.ones(1, 4, dtype=torch.long), causal=torch.ones(1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_the_loss_is_a_hand_written_causal_one(monkeypatch, backbone, weighted, smoothing):
    """Value and gradients, in several chunks, also where a method weighs tokens."""
    monkeypatch.setattr(candidates, "BOUND", 7 * tiny.VOCAB)
    model = made(backbone).train()
    model.label_smoothing = smoothing
    ids, causal, documents = torch.randint(5, tiny.VOCAB, (2, LENGTH)), torch.ones(2), DOCUMENTS.repeat(2, 1)
    labels = ids.roll(-1, dims=1).where(documents == documents.roll(-1, dims=1), -100)
    weights = torch.rand(2 * LENGTH) if weighted else torch.ones(2 * LENGTH)
    if weighted:
        observe_losses(model.backbone, "test", lambda losses: weights)
    logits = model(input_ids=ids, causal=causal, document_ids=documents).logits
    each = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing)
    expected = (each * weights).sum() / (labels != -100).sum()
    loss = model(input_ids=ids, labels=labels, causal=causal, document_ids=documents).loss
    torch.testing.assert_close(loss, expected)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ours, theirs = (torch.autograd.grad(one, parameters, allow_unused=True) for one in (loss, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_no_logits_are_kept_for_the_backward_pass(monkeypatch):
    """Neither by the sum, whose gradients are ready, nor by the losses of single tokens."""
    tokens, width, vocabulary = 64, 8, 100
    monkeypatch.setattr(candidates, "BOUND", 10 * vocabulary)
    table, bias = torch.randn(vocabulary, width, requires_grad=True), torch.zeros(vocabulary, requires_grad=True)
    features, labels = torch.randn(tokens, width, requires_grad=True), torch.randint(0, vocabulary, (tokens,))
    kept = []
    for reduction in ("sum", "none"):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
            loss = next_token_loss(features, table, bias, labels, reduction).sum()
        loss.backward()
        assert max(kept) == width * vocabulary < tokens * vocabulary
        assert loss.item() == pytest.approx(cross_entropy(features @ table.T, labels, reduction="sum").item())


def test_a_frozen_table_gets_no_gradient():
    features, table = torch.randn(4, 8, requires_grad=True), torch.randn(20, 8)
    loss = next_token_loss(features, table, None, torch.tensor([1, -100, 3, 4]))
    loss.backward()
    assert features.grad is not None
    assert (features.grad[1] == 0).all()


def test_half_precision_keeps_the_types_of_its_parameters():
    features, table = torch.randn(4, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_loss(features.bfloat16(), table, None, torch.tensor([1, 2, 3, 4]))
    loss.backward()
    assert loss.dtype == table.grad.dtype == features.grad.dtype == torch.float32
    exact = cross_entropy(features @ table.T, torch.tensor([1, 2, 3, 4]), reduction="sum")
    torch.testing.assert_close(table.grad, torch.autograd.grad(exact, table)[0], atol=0.1, rtol=0.05)
