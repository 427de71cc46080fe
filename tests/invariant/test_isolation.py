"""Invariant 3: documents packed into one row have the logits that each has in a row of its own."""

from functools import partial

import numpy as np
import pytest
import torch
import transformers.modeling_flash_attention_utils as flash
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import cross_entropy
from transformers.integrations import flex_attention as flex

from hf_effpt.core.depth import stack_of
from hf_effpt.core.document_layout import DocumentLayout
from hf_effpt.models import document_blocks, encoder_inputs, kin
from hf_effpt.models.document_blocks import DocumentMask
from hf_effpt.models.encoder_inputs import BLOCKS, FLASH, FLEX, KERNEL, MASK, way_apart
from tests import tiny
from tests.unit.models.test_document_blocks import kernel

KINDS = (*tiny.BACKBONES, *kin.NAMES)
SHORT, LONG = [5, 3, 6], [300, 40, 3, 500, 150]  # tokens of the documents of a row
WINDOW = 4  # narrower than most of them


def model_of(kind, **changes):
    """A masked language model without dropout that reads rows of 1,024 tokens."""
    torch.manual_seed(1)
    if kind in tiny.BACKBONES:
        own = {"local_attention": WINDOW} if kind == "modernbert" else {}
        return tiny.masked_lm(kind, **{"max_position_embeddings": 1026, **own, **changes})
    shape = {**tiny.SHAPE, "max_position_embeddings": 1026, "pad_token_id": 0}
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if kind == "DistilBert":
        shape = {"vocab_size": tiny.VOCAB, "dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 64}
        shape["max_position_embeddings"], drops = 1026, {"dropout": 0.0, "attention_dropout": 0.0}
    config = getattr(kin, f"Effpt{kind}Config")(**shape, **drops, **changes)
    return getattr(kin, f"Effpt{kind}ForMaskedLM")(config)


def packed(lengths, padding):
    """A batch of one row with every fifth token masked, and its documents."""
    documents = [torch.randint(5, tiny.VOCAB, (length,)) for length in lengths]
    ids = torch.cat([*documents, torch.zeros(padding, dtype=torch.long)])[None]
    numbers = np.repeat([*range(1, len(lengths) + 1), 0], [*lengths, padding])
    positions = torch.arange(1, sum(lengths), 5)[None]
    labels = torch.full_like(ids, -100).scatter(1, positions, ids.gather(1, positions))
    batch = {"input_ids": ids, "labels": labels, "document_ids": torch.from_numpy(numbers)[None]}
    return {**batch, "masked_positions": positions}, documents


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_apart(model, batch, documents, attention=None):
    """Logits, loss and gradients are those of documents in rows of their own, by `attention`."""
    together = model(input_ids=batch["input_ids"], document_ids=batch["document_ids"]).logits[0]
    loss = model(**batch).loss
    found = gradients(model, loss)
    if attention is not None:
        model.set_attn_implementation(attention)
    apart = torch.cat([model(document[None]).logits[0] for document in documents])
    assert torch.isfinite(together).all()
    assert torch.allclose(together[: len(apart)], apart, atol=1e-5)
    expected = cross_entropy(apart, batch["labels"][0, : len(apart)], ignore_index=-100)
    assert torch.allclose(loss, expected, atol=1e-5)
    wanted = gradients(model, expected)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, wanted[name], atol=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lengths", [SHORT, LONG], ids=["short", "long"])
def test_packed_equals_unpacked(attention, kind, lengths):
    """Short rows have a mask, and long ones of SDPA blocks."""
    model = model_of(kind)
    model.set_attn_implementation(attention)
    batch, documents = packed(lengths, 2 if lengths == SHORT else 31)
    assert way_apart(model, batch["input_ids"].shape[1]) == (
        BLOCKS if attention == "sdpa" and lengths == LONG else MASK
    )
    assert_apart(model, batch, documents)


def test_rows_of_8192_tokens():
    model = model_of("modernbert", max_position_embeddings=8192, local_attention=128, num_hidden_layers=2)
    batch, documents = packed([3000, 2500, 2000, 500, 100], 92)
    assert batch["input_ids"].shape == (1, 8192)
    assert way_apart(model, 8192) == BLOCKS
    assert_apart(model, batch, documents)


@pytest.mark.parametrize("kind", tiny.BACKBONES)
def test_documents_that_see_each_other_differ(kind):
    """So that the equality above says something."""
    model = tiny.masked_lm(kind).eval()
    ids = torch.randint(5, tiny.VOCAB, (1, 8))
    apart = model(ids, labels=ids, document_ids=torch.tensor([[1] * 4 + [2] * 4])).loss
    assert not torch.allclose(model(ids, labels=ids).loss, apart, atol=1e-4)


@pytest.mark.parametrize("objective", ["electra", "mcbert"])
def test_models_with_a_generator_keep_documents_apart_by_blocks(objective):
    """The numbers are those of a mask; the generator's own are of rows, so that documents cannot be fed alone."""
    model = tiny.joint(objective, max_position_embeddings=1026)
    batch, _ = packed(LONG, 31)
    found = {}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        loss = model(**batch).loss
        found[attention] = {**gradients(model, loss), "loss": loss}
    for name, value in found["sdpa"].items():
        assert torch.allclose(value, found["eager"][name], atol=1e-5), name


@pytest.mark.parametrize("kind", tiny.BACKBONES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_blocks_with_recomputed_activations(kind, reentrant):
    model, (batch, _) = model_of(kind).train(), packed(LONG, 31)
    plain = gradients(model, model(**batch).loss)
    tiny.checkpointing(model, {"use_reentrant": reentrant})
    for name, gradient in gradients(model, model(**batch).loss).items():
        assert torch.equal(gradient, plain[name]), name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks at it while it traces
@pytest.mark.parametrize("kind", tiny.BACKBONES)
def test_blocks_within_compiled_layers(kind):
    """Batches whose documents lie differently need no further graphs."""
    model, frames = model_of(kind).train(), []
    batches = [packed(lengths, padding)[0] for lengths, padding in ((LONG, 31), ([1024], 0), ([140] * 7, 44))]
    plain = [gradients(model, model(**batch).loss) for batch in batches]

    def backend(graph, inputs):
        frames.append(graph)
        return graph.forward

    for layer in stack_of(model.backbone).children():
        layer.compile(backend=backend)
    counts = []
    for batch, expected in zip(batches, plain, strict=True):
        for name, gradient in gradients(model, model(**batch).loss).items():
            assert torch.allclose(gradient, expected[name], atol=1e-6), name
        counts.append(len(frames))
    assert counts[0] == counts[2] > 0


def test_the_layout_is_taken_from_the_batch_where_it_is_known(monkeypatch):
    """A batch as the Trainer passes it, so that nothing waits for the device."""
    model, (batch, _) = model_of("bert"), packed(LONG, 31)
    known = {**batch, "documents": DocumentLayout.of(batch["document_ids"])}
    expected = model(**batch).loss
    monkeypatch.setattr(DocumentLayout, "of", None)
    assert torch.equal(model(**known).loss, expected)


def test_rows_that_are_routed_have_a_mask():
    model = model_of("bert", methods={"layerskip": {"evaluation": "threshold"}})
    assert way_apart(model, 1024) == MASK
    assert way_apart(model_of("bert"), 1024) == BLOCKS


def test_the_way_is_said_once(caplog):
    encoder_inputs._say.cache_clear()
    model, (batch, _) = model_of("bert"), packed(LONG, 31)
    with caplog.at_level("INFO", logger="hf_effpt"):
        model(**batch)
        model(**batch)
    assert [record.message for record in caplog.records] == [f"documents of a row are kept apart by {BLOCKS}"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [SHORT, LONG], ids=["short", "long"])
def test_by_the_kernel_of_torch(monkeypatch, kind, lengths):
    """A stand-in computes what the kernel does, which runs on CUDA only."""
    monkeypatch.setattr(document_blocks, "varlen_attn", kernel)
    monkeypatch.setattr(encoder_inputs, "_has_kernel", lambda model: True)
    monkeypatch.setattr(encoder_inputs, "LEAST", 1)
    model, (batch, documents) = model_of(kind), packed(lengths, 5)
    assert way_apart(model, batch["input_ids"].shape[1]) == KERNEL
    assert_apart(model, batch, documents)


def varlen(query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **kwargs):
    """Attention within documents, as flash attention computes it."""
    assert (kwargs["dropout_p"], kwargs["causal"]) == (0.0, False)
    window = kwargs.get("window_size", (-1, -1))
    scale = kwargs["softmax_scale"]
    return kernel(
        query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale=scale, window_size=window
    )


@pytest.mark.parametrize("kind", KINDS)
def test_by_flash_attention(monkeypatch, kind):
    """Through all of transformers; a stand-in computes what the kernel does, which runs on CUDA only."""
    names = "dropout_p window_size deterministic softcap s_aux block_table cache_seqlens max_seqlen_q max_seqlen_k"
    told = partial(flash._process_flash_attention_kwargs, supports_mapping=dict.fromkeys(names.split(), True))
    functions = ((None, varlen, None, None, None), (told, None))
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *args, **kwargs: functions)
    model, (batch, documents) = model_of(kind), packed(LONG, 31)
    for part in model.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation = "flash_attention_2"
    assert way_apart(model, 1024) == FLASH
    assert_apart(model, batch, documents, "sdpa")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", KINDS)
def test_by_flex_attention(monkeypatch, kind):
    """Not compiled, and forward only: flex attention has no backward on a CPU."""
    monkeypatch.setattr(
        flex, "compile_friendly_flex_attention", lambda *args, training, **kwargs: flex_attention(*args, **kwargs)
    )
    model, (batch, documents) = model_of(kind).eval().requires_grad_(False), packed(LONG, 31)
    expected = torch.cat([model(document[None]).logits[0] for document in documents])
    model.set_attn_implementation("flex_attention")
    assert way_apart(model, 1024) == FLEX
    logits = model(input_ids=batch["input_ids"], document_ids=batch["document_ids"]).logits[0]
    assert torch.allclose(logits[: len(expected)], expected, atol=1e-5)


def test_only_sdpa_is_given_a_mask_that_is_not_written_out():
    for attention, written in (("sdpa", False), ("eager", True)):
        model, (batch, _) = model_of("bert"), packed(LONG, 31)
        model.set_attn_implementation(attention)
        mask = encoder_inputs.encoder_inputs(model, batch)["attention_mask"]
        assert isinstance(mask, DocumentMask) != written
        assert mask.shape == ((1, 1, 1024, 1024) if written else (1, 1, 1, 1024))
