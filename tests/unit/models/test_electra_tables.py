"""What generator and discriminator share, how published parts are joined, and which settings cannot be."""

import pytest
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.models import EffptElectraConfig, EffptElectraModel, ElectraForJointPreTraining
from tests import tiny

SHARED = tiny.SHARED


def private(model):
    """The generator's own parameters."""
    shared = {id(p) for name, p in model.named_parameters() if not name.startswith("generator.")}
    return {name: p for name, p in model.generator.named_parameters() if id(p) not in shared}


# What is shared.


def assert_tied(model):
    for name in SHARED:
        assert model.generator.get_parameter(name) is model.get_parameter(name), name
    assert model.generator.generator_lm_head.weight is model.electra.embeddings.word_embeddings.weight
    unique = {id(p) for p in model.parameters()}
    alone = sum(1 for _ in model.generator.parameters()) + sum(
        1 for name, _ in model.named_parameters() if not name.startswith("generator.")
    )
    assert len(unique) == alone - len(SHARED)


@pytest.mark.parametrize("embedding", [32, 8])
def test_tables_and_their_norm_are_one_object(tmp_path, embedding):
    model = tiny.joint(embedding_size=embedding)
    assert_tied(model)
    model.save_pretrained(tmp_path)
    loaded, report = ElectraForJointPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_tied(loaded)
    assert torch.allclose(loaded(**tiny.batch()).loss, model.eval()(**tiny.batch()).loss, atol=1e-6)
    if embedding != 32:  # each projects to its own width
        assert model.generator.electra.embeddings_project.weight.shape[0] == 16
        assert model.electra.embeddings_project.weight.shape[0] == 32


def test_published_sizes():
    """12 layers of 256, generator a quarter as wide: 13.55 M and 4.62 M parameters (google-research/electra)."""
    config = EffptElectraConfig(
        embedding_size=128, hidden_size=256, intermediate_size=1024, num_attention_heads=4, num_hidden_layers=12
    )
    with torch.device("meta"):
        model = ElectraForJointPreTraining(config)
    generator = model.generator.config
    assert (generator.hidden_size, generator.intermediate_size, generator.num_attention_heads) == (64, 256, 1)
    assert generator.hidden_size / config.hidden_size == 0.25
    assert sum(p.numel() for p in model.generator.parameters()) == pytest.approx(4.62e6, rel=0.01)
    whole = sum(p.numel() for p in model.parameters())
    own = sum(p.numel() for p in private(model).values())
    assert whole - own == pytest.approx(13.55e6, rel=0.005)


# Disentangled tables of words.


def test_disentangled_tables_part_the_gradients(tmp_path):
    """The generator's table learns from its loss alone; the discriminator reads it plus what it has of its own."""
    torch.manual_seed(0)
    model, batch = tiny.joint(embedding_sharing="disentangled"), tiny.batch()
    words, own = (part.electra.embeddings.word_embeddings.weight for part in (model.generator, model))
    assert words is model.generator.generator_lm_head.weight
    assert words is not own
    assert not own.any()
    output = model(**batch)
    output.main_loss.backward(retain_graph=True)
    assert words.grad is None
    assert own.grad.abs().max() > 0
    model.zero_grad()
    output.generator_loss.backward()
    assert own.grad is None
    assert words.grad.abs().max() > 0

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(**batch).loss.backward()
    optimizer.step()
    ids = batch["input_ids"]
    stock, generator = model.export(), model.export_generator()
    assert torch.allclose(stock.electra.embeddings.word_embeddings.weight, words + own)
    assert torch.allclose(stock(ids).logits, model.eval()(ids).logits, atol=1e-6)
    assert torch.allclose(generator(ids).logits, model.generator(ids).logits, atol=1e-6)
    assert torch.allclose(model(ids).logits, stock(ids).logits, atol=1e-6)  # exporting changes nothing
    model.save_pretrained(tmp_path)
    loaded, report = ElectraForJointPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.allclose(loaded(ids).logits, stock(ids).logits, atol=1e-6)
    again = ElectraForJointPreTraining.from_parts(stock, generator, embedding_sharing="disentangled").eval()
    assert torch.allclose(again(ids).logits, stock(ids).logits, atol=1e-6)
    assert torch.allclose(again.generator(ids).logits, generator(ids).logits, atol=1e-6)
    with pytest.raises(EffptError, match="has no generator, to whose word embeddings"):
        EffptElectraModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_sharing": "none"}, "`embedding_sharing` must be `vanilla` or `disentangled`"),
        ({"embedding_sharing": "disentangled", "objective": "replace_mlm"}, "not with `replace_mlm`"),
        ({"generator_size": 1.5}, "The generator is 48 wide, more than the 32 of the model it trains"),
        ({"generator_size": 0.0}, "`generator_size` must be in"),
        ({"generator": {"max_position_embeddings": 64}}, "`max_position_embeddings` is 64, but the main model"),
        ({"generator": {"hidden_size": 24, "num_attention_heads": 5}}, "5 attention heads do not divide its width"),
        ({"generator": {"hidden_sise": 8}}, "`generator` has no setting `hidden_sise`: did you mean `hidden_size`"),
        ({"generator": {"num_hidden_layers": 0}}, "`num_hidden_layers` must be at least 1"),
        ({"generator": {"num_attention_heads": 0}}, "`num_attention_heads` must be at least 1"),
        ({"loss_weight": -1.0}, "`loss_weight` must be a number of at least 0"),
        ({"loss_weight": float("inf")}, "`loss_weight` must be a number of at least 0"),
        ({"tie_word_embeddings": False}, "cannot be False"),
        ({"objective": "mlm"}, "`objective` must be one of"),
        ({"objective": "replace_mlm"}, "use `ElectraForReplacedMaskedLM`"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(EffptError, match=message):
        ElectraForJointPreTraining(EffptElectraConfig(**{**tiny.SHAPE, "embedding_size": 32, **changes}))
