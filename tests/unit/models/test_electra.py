"""What decides whether this is ELECTRA: corruption, labels, the two losses, what is tied and what reaches what."""

import math

import pytest
import torch
from torch import nn
from transformers import ElectraForPreTraining

from hf_effpt.models.electra import prior_entropy
from tests import tiny

DROPS = ("hidden_dropout", "attention_probs_dropout")
SHARED = tiny.SHARED


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
    made = model._batch(batch)
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


@pytest.mark.parametrize(
    "changes", [{"generator_dropout": False}, {"generator": {f"{name}_prob": 0.0 for name in DROPS}}, {}]
)
def test_dropout_of_the_discriminator_is_drawn_anew_in_every_step(changes):
    """Also where the generator, whose stream its own begins at, draws nothing."""
    drop = {f"{name}_prob": 0.1 for name in DROPS}
    model, batch = tiny.joint(**drop, **changes).train(), tiny.batch()
    torch.manual_seed(0)
    drawn = [model(**batch) for _ in range(3)]
    assert len({output.main_loss.item() for output in drawn}) == 3
    if changes:  # the generator has no dropout, so it says the same each time
        assert (
            max(model.generator.config.hidden_dropout_prob, model.generator.config.attention_probs_dropout_prob) == 0
        )
        assert len({output.generator_loss.item() for output in drawn}) == 1


def test_documents_in_a_row_do_not_meet():
    """Neither in the generator nor in the discriminator; and padding counts in no mean."""
    documents = [torch.randint(5, tiny.VOCAB, (length,)) for length in (5, 3, 6)]
    packed = torch.cat([*documents, torch.zeros(2, dtype=torch.long)])[None]
    numbers = torch.tensor([[1] * 5 + [2] * 3 + [3] * 6 + [0] * 2])
    labels = torch.full_like(packed, -100)
    labels[0, [1, 6, 9]] = packed[0, [1, 6, 9]]
    masked = packed.masked_fill(labels != -100, 4)
    model = tiny.joint()
    output = model(masked, labels=labels, document_ids=numbers)
    assert model.count_items({"labels": labels, "document_ids": numbers}).tolist() == [3, 14]
    first, generator, main = 0, 0.0, 0.0
    for document in documents:
        here = slice(first, first + len(document))
        logits = model(output.corrupted_ids[:, here]).logits
        assert torch.allclose(output.logits[:, here], logits, atol=1e-5)
        fake = output.replaced[:, here].float()
        main += nn.functional.binary_cross_entropy_with_logits(logits, fake, reduction="sum").item()
        predicted = model.generator(masked[:, here]).logits.flatten(0, 1)
        generator += nn.functional.cross_entropy(predicted, labels[0, here], reduction="sum").item()
        first += len(document)
    assert output.main_loss.item() == pytest.approx(main / 14, abs=1e-5)
    assert output.generator_loss.item() == pytest.approx(generator / 3, abs=1e-5)


def test_stock_trainer_counts_labels_only():
    """A micro-batch then weighs as its labels do, and is not as many times too large as there are of them."""
    model, batch = tiny.joint(), tiny.batch()
    whole, share = model(**batch), model(**batch, num_items_in_batch=4 * 16)
    assert (batch["labels"] != -100).sum() == 16
    assert share.loss.item() == pytest.approx(whole.loss.item() / 4, rel=1e-5)


def test_a_step_without_chosen_positions_is_finite():
    ids, labels = torch.tensor([[2, 3]]), torch.full((1, 2), -100)
    model = tiny.joint()
    output = model(ids, labels=labels, num_items_in_batch=model.count_items({"labels": labels}))
    assert torch.isfinite(output.loss)
    assert output.generator_loss == 0


def test_projections_and_the_last_layer_begin_as_in_tensorflow():
    """Glorot, where the official code names no initialiser; the standard deviation is sqrt(2 / (in + out))."""
    model = tiny.joint(embedding_size=128, hidden_size=256, num_attention_heads=4, generator_size=0.5)
    for weight in (
        model.electra.embeddings_project.weight,
        model.discriminator_predictions.dense_prediction.weight,
    ):
        assert weight.std().item() == pytest.approx((2 / sum(weight.shape)) ** 0.5, rel=0.1)
    assert model.discriminator_predictions.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)


# It learns.


@pytest.mark.slow
def test_learns_to_tell_fakes_apart():
    """On 32 rows the generator comes to guess right, and the discriminator to find what is replaced."""
    torch.manual_seed(0)
    model = tiny.joint(num_hidden_layers=1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    batches, rates = [tiny.batch(32, seed=seed) for seed in range(8)], []
    for step in range(80):
        output = model(**batches[step % 8])
        output.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rates.append(output.replaced.double().mean().item())
    late = sum(rates[-8:]) / 8
    assert late < sum(rates[:8]) / 8
    figures = {name: value.item() for name, value in model.electra.metric_accumulator.take().items()}
    assert figures["tokens"] == 80 * 32 * 16
    with torch.no_grad():
        output = model.eval()(**batches[3])
    fake, real = output.logits[output.replaced], output.logits[~output.replaced]
    auc = (fake[:, None] > real[None]).double().mean().item()
    assert auc > 0.8
    assert output.main_loss < 0.8 * prior_entropy(output.replaced.double().mean().item())


def test_prior_entropy():
    for share, entropy in ((0.15, 0.423), (0.10, 0.325), (0.08, 0.279), (0.06, 0.227)):
        assert prior_entropy(share) == pytest.approx(entropy, abs=5e-4)
    assert prior_entropy(0.0) == prior_entropy(1.0) == 0.0


def test_figures_of_an_evaluation():
    model = tiny.joint()
    output = model.eval()(**tiny.batch(48))
    figures = model.metrics({name: value.item() for name, value in output.sums.items()})
    rate = output.replaced.double().mean().item()
    assert figures["replaced_rate"] == pytest.approx(rate)
    assert figures["floor"] == pytest.approx(prior_entropy(rate))
    assert figures["discriminator_loss"] == pytest.approx(output.main_loss.item(), rel=1e-5)
    assert figures["generator_loss"] == pytest.approx(output.generator_loss.item(), rel=1e-5)
