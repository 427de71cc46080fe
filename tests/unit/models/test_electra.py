"""What decides whether this is ELECTRA: corruption, labels, the two losses, what is tied and what reaches what."""

import math

import pytest
import torch
from torch import nn
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from hf_effpt.core.errors import EffptError
from hf_effpt.models import EffptElectraConfig, EffptElectraModel, ElectraForJointPreTraining
from hf_effpt.models.electra import prior_entropy
from hf_effpt.models.generator import TIED
from tests import tiny

SHARED = [name.removeprefix("generator.") for name in TIED]


def sampled(model, ids):
    """Has the generator's samples be `ids` of shape (rows, chosen positions) instead of what it draws."""
    model._sample = lambda batch, logits: ids
    return model


def private(model):
    """The generator's own parameters."""
    shared = {id(p) for name, p in model.named_parameters() if not name.startswith("generator.")}
    return {name: p for name, p in model.generator.named_parameters() if id(p) not in shared}


# Corruption and labels.


def test_masks_without_random_tokens():
    ids = torch.arange(5, tiny.VOCAB).repeat(900)[: 100_000 // 14 * 14].view(-1, 14)
    rows = torch.cat([torch.full((len(ids), 1), 2), ids, torch.full((len(ids), 1), 3)], dim=1).numpy()
    collate = tiny.DataCollatorForMaskedLM(tiny.tokenizer(), 0.5, shares=(0.85, 0.0, 0.15))
    batch = collate({"input_ids": rows})
    chosen = batch["labels"] != -100
    masked = (batch["input_ids"] == 4)[chosen].double().mean().item()
    kept = (batch["input_ids"] == batch["labels"])[chosen].double().mean().item()
    assert masked == pytest.approx(0.85, abs=0.01)
    assert kept == pytest.approx(0.15, abs=0.01)
    assert masked + kept == 1.0  # never a random token
    assert not chosen[:, [0, -1]].any()  # nor a special one


def test_a_fixed_share_of_every_ragged_row_is_chosen():
    """max(1, round(0.15 n)), where n counts [CLS] and [SEP]."""
    lengths = [4, 9, 16, 39, 41, 108, 128]
    examples = [{"input_ids": [2, *[7] * (length - 2), 3]} for length in lengths]
    collate = tiny.DataCollatorForMaskedLM(tiny.tokenizer(), shares=(0.85, 0.0, 0.15))
    found = (collate(examples)["labels"] != -100).sum(dim=1).tolist()
    assert found == [max(1, round(0.15 * length)) for length in lengths]


def test_samples_are_written_into_the_original():
    batch = tiny.batch()
    output = tiny.joint()(**batch)
    original = torch.where(batch["labels"] != -100, batch["labels"], batch["input_ids"])
    chosen = batch["labels"] != -100
    assert torch.equal(output.corrupted_ids[~chosen], original[~chosen])
    assert not (output.corrupted_ids == 4).any() or (original == 4).any()
    assert torch.equal(output.replaced, output.corrupted_ids != original)
    assert output.replaced.any()


def test_a_correct_sample_is_no_fake():
    batch = tiny.batch()
    truth = batch["labels"].gather(1, batch["masked_positions"])
    output = sampled(tiny.joint(), truth)(**batch)
    assert not output.replaced.any()
    assert output.main_loss < 1.5 * math.log(2)


# The two losses.


def test_discriminator_loss_is_the_stock_one():
    model, batch = tiny.joint(), tiny.batch()
    output = model(**batch)
    stock = ElectraForPreTraining(model.config.stock())
    stock.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("generator.")})
    expected = stock(output.corrupted_ids, labels=output.replaced.long()).loss
    assert torch.allclose(output.main_loss, expected, atol=1e-6)
    assert torch.allclose(output.loss, output.generator_loss + 50 * output.main_loss)


def test_padding_is_left_out_of_the_mean():
    """By hand, on ragged rows: the mean over real tokens, [CLS] and [SEP] among them, and not one over rows."""
    collate = tiny.DataCollatorForMaskedLM(tiny.tokenizer(), shares=(0.85, 0.0, 0.15))
    batch = collate([{"input_ids": [2, *range(10, 10 + words), 3]} for words in (3, 8, 14)])
    model = tiny.joint()
    output = model(**batch)
    total, count = 0.0, 0
    for row in range(3):
        for at in range(int(batch["attention_mask"][row].sum())):
            logit, fake = output.logits[row, at].item(), bool(output.replaced[row, at])
            total += math.log1p(math.exp(-logit if fake else logit))
            count += 1
    assert count == 5 + 10 + 16
    assert output.main_loss.item() == pytest.approx(total / count, abs=1e-5)
    stock = ElectraForPreTraining(model.config.stock())
    stock.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("generator.")})
    mask = batch["attention_mask"]
    theirs = stock(output.corrupted_ids, attention_mask=mask, labels=output.replaced.long()).loss
    assert torch.allclose(output.main_loss, theirs, atol=1e-6)


def test_generator_sees_chosen_positions_only():
    """Its loss and logits are those of the stock class, cut to the chosen positions, those left visible among them."""
    model, batch = tiny.joint(), tiny.batch()
    made = model._read(batch["input_ids"], batch["labels"], batch["masked_positions"], None, None, None, {})
    _, logits, loss = model._generate(made)
    full = model.generator(batch["input_ids"]).logits
    at = batch["masked_positions"][:, :, None].expand(-1, -1, full.shape[-1])
    assert torch.allclose(logits, full.gather(1, at).flatten(0, 1), atol=1e-6)
    assert logits.shape[0] == batch["masked_positions"].numel()
    stock = model.generator(batch["input_ids"], labels=batch["labels"]).loss
    assert torch.allclose(loss / made.items[0], stock, atol=1e-6)


def test_one_position_in_one_row():
    labels = torch.full((1, 16), -100)
    labels[0, 5] = 9
    output = tiny.joint()(torch.tensor([[2, *[8] * 14, 3]]), labels=labels)
    assert output.corrupted_ids.shape == (1, 16)
    assert output.loss.ndim == 0


def test_start_values():
    torch.manual_seed(0)
    output = tiny.joint()(**tiny.batch(48))
    assert output.generator_loss.item() == pytest.approx(math.log(tiny.VOCAB), abs=0.1)
    assert output.main_loss.item() == pytest.approx(math.log(2), abs=0.1)


def test_loss_at_chosen_positions_only():
    model, batch = tiny.joint("electra_15"), tiny.batch()
    output = model(**batch)
    chosen = batch["labels"] != -100
    expected = nn.functional.binary_cross_entropy_with_logits(output.logits[chosen], output.replaced[chosen].float())
    assert torch.allclose(output.main_loss, expected, atol=1e-6)


def test_accumulation_takes_both_numbers_of_items():
    """Micro-batches of unequal length, so that means over each would give another gradient."""
    collate = tiny.DataCollatorForMaskedLM(tiny.tokenizer(), shares=(0.85, 0.0, 0.15))
    examples = [{"input_ids": [2, *range(10, 10 + words), 3]} for words in (14, 14, 4, 5)]
    whole, parts = collate(examples), [collate(examples[:2]), collate(examples[2:])]
    model = tiny.joint()
    model(**whole).loss.backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    items = sum(model.count_items(part) for part in parts)
    assert items.tolist() == [int((whole["labels"] != -100).sum()), int(whole["attention_mask"].sum())]
    for part in parts:
        model(**part, num_items_in_batch=items).loss.backward()
    for name, gradient in together.items():
        assert torch.allclose(dict(model.named_parameters())[name].grad, gradient, atol=1e-5), name


# What reaches what.


def test_discriminator_loss_reaches_no_private_parameter_of_the_generator():
    model = tiny.joint()
    model(**tiny.batch()).main_loss.backward()
    assert private(model)
    assert all(p.grad is None for p in private(model).values())
    assert model.electra.encoder.layer[0].attention.self.query.weight.grad.abs().max() > 0


def test_shared_tables_get_both_gradients():
    def gradients(of):
        torch.manual_seed(3)
        model = tiny.joint()
        getattr(model(**tiny.batch()), of).backward()
        return {name: dict(model.named_parameters())[name].grad for name in SHARED}

    together, generator, main = (gradients(of) for of in ("loss", "generator_loss", "main_loss"))
    for name in SHARED:
        assert torch.allclose(together[name], generator[name] + 50 * main[name], atol=1e-5), name
        assert main[name].abs().max() > 0


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_without_the_discriminator_the_generator_trains_as_a_stock_one(dropout):
    """With dropout, too: sampling takes no random numbers, and the discriminator's are a stream of its own."""
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    torch.manual_seed(1)
    model = tiny.joint(loss_weight=0.0, **drop).train()
    stock = model.export_generator().train()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.0) for m in (model, stock)]
    losses = []
    for trained, optimizer in zip((model, stock), optimizers, strict=True):
        torch.manual_seed(2)
        seen = []
        for step in range(4):
            batch = tiny.batch(seed=step)
            if trained is stock:
                loss = stock(batch["input_ids"], labels=batch["labels"]).loss
            else:
                loss = model(**batch).loss
            loss.backward()
            seen.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
        losses.append(seen)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    ours = dict(model.generator.named_parameters(remove_duplicate=False))
    for name, parameter in stock.named_parameters():
        assert torch.allclose(ours[name], parameter, atol=1e-5), name


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


# Joining published models.


def test_parts_of_published_models_are_joined():
    shape = {**tiny.SHAPE, "embedding_size": 16}
    discriminator = ElectraForPreTraining(ElectraConfig(**shape)).eval()
    generator = ElectraForMaskedLM(ElectraConfig(**{**shape, "hidden_size": 8, "num_attention_heads": 1}))
    generator.electra.embeddings.load_state_dict(discriminator.electra.embeddings.state_dict())
    joint = ElectraForJointPreTraining.from_parts(discriminator, generator.eval()).eval()
    ids = torch.randint(5, tiny.VOCAB, (2, tiny.LENGTH))
    assert torch.allclose(joint(ids).logits, discriminator(ids).logits, atol=1e-6)
    assert torch.allclose(joint.generator(ids).logits, generator(ids).logits, atol=1e-6)
    assert_tied(joint)


def test_parts_that_do_not_fit_are_refused():
    discriminator = ElectraForPreTraining(ElectraConfig(**{**tiny.SHAPE, "embedding_size": 16}))
    for changes, message in (
        ({"embedding_size": 8}, "`embedding_size` is 8, but the main model's is 16"),
        ({"vocab_size": 64}, "`vocab_size` is 64"),
        ({"hidden_size": 64}, "The generator is 64 wide, more than the 32"),
    ):
        generator = ElectraForMaskedLM(ElectraConfig(**{**tiny.SHAPE, "embedding_size": 16, **changes}))
        with pytest.raises(EffptError, match=message):
            ElectraForJointPreTraining.from_parts(discriminator, generator)


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
    with pytest.raises(EffptError, match="has no generator, to whose table"):
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
        ({"loss_weight": -1.0}, "`loss_weight` must be at least 0"),
        ({"tie_word_embeddings": False}, "cannot be False"),
        ({"objective": "mlm"}, "`objective` must be one of"),
        ({"objective": "replace_mlm"}, "use `ElectraForReplacedMaskedLM`"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(EffptError, match=message):
        ElectraForJointPreTraining(EffptElectraConfig(**{**tiny.SHAPE, "embedding_size": 32, **changes}))


# It learns.


def test_learns_to_tell_fakes_apart():
    """On 32 rows the generator comes to guess right, and the discriminator to find what is replaced."""
    torch.manual_seed(0)
    model = tiny.joint(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rates = []
    for step in range(400):
        output = model(**tiny.batch(32, seed=step % 8))
        output.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rates.append(output.replaced.double().mean().item())
    late = sum(rates[-8:]) / 8
    assert late < sum(rates[:8]) / 8
    figures = {name: value.item() for name, value in model.electra.tally.take().items()}
    assert figures["tokens"] == 400 * 32 * 16
    with torch.no_grad():
        output = model.eval()(**tiny.batch(32, seed=3))
    fake, real = output.logits[output.replaced], output.logits[~output.replaced]
    auc = (fake[:, None] > real[None]).double().mean().item()
    assert auc > 0.9
    assert output.main_loss < prior_entropy(output.replaced.double().mean().item())


def test_prior_entropy():
    for share, entropy in ((0.15, 0.423), (0.10, 0.325), (0.08, 0.279), (0.06, 0.227)):
        assert prior_entropy(share) == pytest.approx(entropy, abs=5e-4)
    assert prior_entropy(0.0) == prior_entropy(1.0) == 0.0


def test_figures_of_an_evaluation():
    model = tiny.joint()
    output = model.eval()(**tiny.batch(48))
    figures = model.figures({name: value.item() for name, value in output.sums.items()})
    rate = output.replaced.double().mean().item()
    assert figures["replaced_rate"] == pytest.approx(rate)
    assert figures["floor"] == pytest.approx(prior_entropy(rate))
    assert figures["discriminator_loss"] == pytest.approx(output.main_loss.item(), rel=1e-5)
    assert figures["generator_loss"] == pytest.approx(output.generator_loss.item(), rel=1e-5)
