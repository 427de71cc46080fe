"""Invariant 3: documents packed into one row have the logits that each has in a row of its own."""

import pytest
import torch

from hf_effpt.models.encoder_inputs import encoder_inputs
from tests import tiny


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_logits_equal_unpacked(attention, backbone):
    """A ModernBERT has windows here that are narrower than the longest document."""
    model = tiny.masked_lm(backbone, **({"local_attention": 4} if backbone == "modernbert" else {})).eval()
    model.set_attn_implementation(attention)
    documents = [torch.randint(5, tiny.VOCAB, (length,)) for length in (5, 3, 6)]
    packed = torch.cat([*documents, torch.zeros(2, dtype=torch.long)])[None]
    ids = torch.tensor([1] * 5 + [2] * 3 + [3] * 6 + [0] * 2)[None]
    labels = torch.full_like(packed, -100)
    labels[0, [1, 6, 9]] = packed[0, [1, 6, 9]]

    together = model(packed, **encoder_inputs(model, {"document_ids": ids})).logits[0]
    first = 0
    apart = []
    for document in documents:
        logits = model(document[None]).logits[0]
        assert torch.allclose(together[first : first + len(document)], logits, atol=1e-5)
        apart.append(logits)
        first += len(document)
    assert torch.isfinite(together).all()
    expected = torch.nn.functional.cross_entropy(torch.cat(apart), labels[0, :14], ignore_index=-100)
    assert torch.allclose(model(packed, labels=labels, document_ids=ids).loss, expected, atol=1e-5)


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_documents_that_see_each_other_differ(backbone):
    """So that the equality above says something."""
    model = tiny.masked_lm(backbone).eval()
    packed = torch.randint(5, tiny.VOCAB, (1, 8))
    labels = packed.clone()
    apart = model(packed, labels=labels, document_ids=torch.tensor([[1] * 4 + [2] * 4])).loss
    assert not torch.allclose(model(packed, labels=labels).loss, apart, atol=1e-4)
