"""The deciding tests of TNF on a model: what is read, what is written, and that nothing else changes."""

import copy

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from hf_effpt.core.depth import stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.metrics import accumulator_of
from hf_effpt.methods.tnf.dictionary import NoteDictionary
from hf_effpt.models import EffptBertForMaskedLM
from hf_effpt.models.sparse_layer import encode_at
from tests import tiny

from . import notes
from .notes import MASK, RARE

WITH_NOTES = [((6,), RARE[0], (7, 80)), (RARE[1], (8,), RARE[0])]
WITHOUT = [((6,), (7, 80)), ((8,),)]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def quiet_model(**settings):
    """Without dropout, so that two forwards can be compared."""
    return notes.model(config=NO_DROPOUT, **settings).train()


def five_steps(model):
    """Losses and weights of five steps with dropout on rows with rare words, and the generator's state after them."""
    torch.manual_seed(11)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2, weight_decay=0.1)
    seen = []
    for step in range(5):
        ids = torch.tensor(notes.rows()[3 * step : 3 * step + 3])
        logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
        loss.backward()
        seen += [loss.detach(), logits.detach()]
        optimizer.step()
        optimizer.zero_grad()
    return seen, tiny.weights(model), torch.get_rng_state()


@pytest.mark.parametrize("case", ["weight 0", "no hits", "not prepared"])
def test_off_is_stock_bit_for_bit(case):
    torch.manual_seed(3)
    stock = BertForMaskedLM(BertConfig(**tiny.SHAPE))
    after = torch.get_rng_state()
    if case == "not prepared":
        torch.manual_seed(3)
        model = tiny.model({"tnf": {}})
    else:
        model = notes.model(weight=0.0 if case == "weight 0" else 0.5)
        if case == "no hits":
            model.bert.notes.keys.copy_(torch.arange(len(RARE)))
    assert torch.equal(torch.get_rng_state(), after)  # drawing the dictionary takes nothing from the global generator
    assert set(stock.state_dict()) == {name for name in model.state_dict() if ".notes." not in name}
    expected, weights, generator = five_steps(stock)
    seen, our_weights, our_generator = five_steps(model)
    assert all(torch.equal(left, right) for left, right in zip(expected, seen, strict=True))
    assert all(torch.equal(weights[name], our_weights[name]) for name in weights)
    assert torch.equal(generator, our_generator)
    if case == "weight 0":
        assert accumulator_of(model.bert).sums["tnf_hits"] > 0


def test_rows_without_hits_are_unchanged():
    model = quiet_model()
    hidden = model.bert(notes.batch(WITH_NOTES[0], WITHOUT[0])).last_hidden_state
    model.bert.notes.keys.copy_(torch.arange(len(RARE)))
    without = model.bert(notes.batch(WITH_NOTES[0], WITHOUT[0])).last_hidden_state
    assert torch.equal(hidden[1], without[1])
    assert not torch.allclose(hidden[0], without[0], atol=1e-3)


def at_layer_norm(model, ids):
    """What reaches the LayerNorm of the embeddings."""
    seen = []
    hook = model.bert.embeddings.LayerNorm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output = model.bert(ids).last_hidden_state
    hook.remove()
    (seen,) = seen
    return seen, output


def test_only_the_sub_words_of_a_rare_word_are_blended():
    model = quiet_model(weight=0.25)
    ids = notes.batch(((6,), RARE[0]))
    vector = model.bert.notes.vectors[notes.entry(model, RARE[0])].clone()
    seen, _ = at_layer_norm(model, ids)
    table = model.bert.embeddings
    plain = table.word_embeddings(ids) + table.token_type_embeddings.weight[0] + table.position_embeddings.weight[:16]
    expected = plain.clone()
    expected[0, 2:5] = 0.75 * plain[0, 2:5] + 0.25 * vector
    assert torch.allclose(seen, expected, atol=1e-7)


@pytest.mark.parametrize("scale", ["none", "match"])
def test_gradients_at_a_note_are_those_of_the_embeddings_share(scale):
    model = quiet_model(weight=0.3, scale=scale)
    ids = notes.batch(((6,), RARE[1]))
    grads = {}
    table = model.bert.embeddings
    table.LayerNorm.register_forward_pre_hook(
        lambda _, args: args[0].register_hook(lambda g: grads.update(norm=g)) and None
    )
    table.position_embeddings.register_forward_hook(
        lambda *args: args[-1].register_hook(lambda g: grads.update(position=g)) and None
    )
    hidden = model.bert(ids).last_hidden_state
    (hidden * torch.randn(hidden.shape)).sum().backward()
    at_norm, at_position = grads["norm"][0], grads["position"][0]
    assert torch.allclose(at_position[2], 0.7 * at_norm[2], rtol=1e-4, atol=1e-6)
    assert torch.equal(at_position[3], at_norm[3])
    assert at_norm[2].abs().mean() > 1e-3


def test_the_dictionary_is_no_parameter_and_no_optimizer_touches_it():
    model = quiet_model(gamma=0.5)
    assert not any("notes" in name for name, _ in model.named_parameters())
    assert not any(buffer.requires_grad for buffer in model.bert.notes.buffers())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=1.0)
    ids = notes.batch(*WITH_NOTES)
    model(ids, labels=ids).loss.backward()
    before = model.bert.notes.vectors.clone()
    optimizer.step()
    assert torch.equal(before, model.bert.notes.vectors)


def test_a_note_is_written_after_it_is_read_from_the_outputs_around_it():
    model = quiet_model(k=2, weight=0.5)
    index = notes.entry(model, RARE[1])
    first = model.bert.notes.vectors.clone()
    ids = notes.batch(((6,), (7, 80), RARE[1]))
    seen, output = at_layer_norm(model, ids)
    other = copy.deepcopy(model)
    other.bert.notes.vectors.copy_(first)
    assert torch.equal(at_layer_norm(other, ids)[0], seen)  # the first occurrence saw the initial vector
    expected = first.clone()
    expected[index] = 0.9 * first[index] + 0.1 * output[0, 2:7].mean(0)  # the word is at 4
    assert torch.allclose(model.bert.notes.vectors, expected, atol=1e-6)
    assert not torch.equal(at_layer_norm(model, ids)[0], seen)


def test_labels_do_not_leak():
    """What is read and written is a function of the ids that the model sees, whatever the original ones were."""
    model = quiet_model()
    ids = notes.batch(((6,), RARE[0], (7, 80)), ((MASK,), (8,), RARE[1]))
    others = [torch.randint(5, tiny.VOCAB, ids.shape), notes.batch(*WITH_NOTES), ids.flip(0)]
    outcomes = []
    for labels in others:
        again = copy.deepcopy(model)
        hidden = again(ids, labels=labels, output_hidden_states=True).hidden_states[-1]
        outcomes.append((hidden, again.bert.notes.vectors))
    assert all(torch.equal(a, b) for outcome in outcomes for a, b in zip(outcome, outcomes[0], strict=True))
    assert not torch.equal(outcomes[0][1], model.bert.notes.vectors)
    hidden_word = notes.batch(((6,), (MASK, MASK, MASK), (7, 80)))
    model(hidden_word, labels=notes.batch(((6,), RARE[0], (7, 80))))
    assert accumulator_of(model.bert).take()["tnf_hits"] == 0


@pytest.fixture
def writes(monkeypatch):
    """A list that grows by one with every write."""
    calls, write = [], NoteDictionary.write
    monkeypatch.setattr(NoteDictionary, "write", lambda *args: calls.append(args) or write(*args))
    return calls


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_write_for_each_training_forward_and_none_in_evaluation(writes, checkpointing):
    model = notes.model().train()
    if checkpointing:
        new_name = getattr(model, "activation_checkpointing_enable", None)
        (new_name or model.gradient_checkpointing_enable)()
    ids = notes.batch(*WITH_NOTES)
    for number in range(1, 4):
        model(ids, labels=ids).loss.backward()
        assert len(writes) == number
    before = model.bert.notes.vectors.clone()
    model.eval()(ids)
    with torch.no_grad():
        model(ids, labels=ids)
    assert len(writes) == 3
    assert torch.equal(before, model.bert.notes.vectors)


def test_the_last_layer_is_whole_where_it_is_read():
    model = quiet_model()
    ids = notes.batch(*WITH_NOTES)
    batch = {"labels": ids, "masked_positions": torch.tensor([[1, 2]] * 2)}
    sparse = tiny.model(**NO_DROPOUT).train()

    def positions_computed(of):
        return encode_at(of.bert, batch["masked_positions"], ids)[0].last_hidden_state.shape[1]

    assert positions_computed(sparse) == 2
    assert positions_computed(model) == tiny.LENGTH
    assert positions_computed(model.eval()) == 2
    accumulator_of(model.bert).take()
    model.train()(ids, **batch).loss.backward()
    assert accumulator_of(model.bert).take()["tnf_written"] == 2


def test_export_has_no_notes_and_equals_the_model_in_evaluation():
    model = notes.model()
    for _ in range(3):
        model.train()(notes.batch(*WITH_NOTES))
    stock = model.export()
    assert type(stock) is BertForMaskedLM
    assert not any("notes" in name for name in stock.state_dict())
    for rows in (WITHOUT, WITH_NOTES):  # in evaluation notes are not read, on rare words either
        assert torch.equal(stock(notes.batch(*rows)).logits, model.eval()(notes.batch(*rows)).logits)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in stock.modules()]
    assert sum(hooks) == 0
    assert len(model.bert._forward_hooks) == len(model.bert._forward_pre_hooks) == 1  # and the model keeps its own
    assert stack_of(model.bert).read_whole


def test_the_hooks_of_a_copy_are_its_own():
    model = quiet_model()
    other = copy.deepcopy(model)
    before = model.bert.notes.vectors.clone()
    other(notes.batch(*WITH_NOTES))
    assert torch.equal(before, model.bert.notes.vectors)
    assert not torch.equal(before, other.bert.notes.vectors)
    other.methods[0].eject(other.bert)
    assert not hasattr(other.bert, "notes")
    assert not other.bert.embeddings.LayerNorm._forward_pre_hooks
    model(notes.batch(*WITH_NOTES))
    assert not torch.equal(before, model.bert.notes.vectors)


def test_another_encoder_that_shares_the_embeddings_reads_no_notes(writes):
    model = quiet_model()
    torch.manual_seed(5)
    generator = tiny.model(**NO_DROPOUT).train()
    generator.bert.embeddings = model.bert.embeddings
    ids = notes.batch(*WITH_NOTES)
    plain = generator(ids).logits
    model(ids)
    assert torch.equal(generator(ids).logits, plain)
    with pytest.raises(IndexError):
        model.bert(ids, token_type_ids=torch.full_like(ids, 9))  # which raises with a reading under way
    assert torch.equal(generator(ids).logits, plain)
    assert len(writes) == 1


def test_saving_and_resuming_is_exact(tmp_path):
    def train(model, optimizer, steps):
        for step in steps:
            ids = torch.tensor(notes.rows()[3 * step : 3 * step + 3])
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def optimizer_of(model):
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    straight = quiet_model()
    optimizer = optimizer_of(straight)
    train(straight, optimizer, range(2))
    straight.save_pretrained(tmp_path)
    state = copy.deepcopy(optimizer.state_dict())
    train(straight, optimizer, range(2, 5))
    resumed, report = EffptBertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert notes.method(resumed) == notes.method(straight)
    optimizer = optimizer_of(resumed.train())
    optimizer.load_state_dict(state)
    train(resumed, optimizer, range(2, 5))
    tiny.assert_same_weights(straight, resumed)


def test_in_bf16_notes_stay_exact(tmp_path):
    model = notes.model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(notes.batch(*WITH_NOTES))
    assert model.bert.notes.vectors.dtype is torch.float32
    model = model.bfloat16()
    model(notes.batch(*WITH_NOTES)).logits.sum().backward()
    assert model.bert.notes.vectors.dtype is torch.float32
    assert model.bert.embeddings.word_embeddings.weight.dtype is torch.bfloat16
    model.save_pretrained(tmp_path)
    again = EffptBertForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16).train()
    again(notes.batch(*WITH_NOTES))
    assert again.bert.embeddings.word_embeddings.weight.dtype is torch.bfloat16


def test_figures_say_what_happened():
    model = quiet_model()
    method = notes.method(model)
    assert method.metrics(model.bert, {}) == {}
    model(notes.batch(*WITH_NOTES))
    model.eval()(notes.batch(*WITH_NOTES))
    sums = {name: float(value) for name, value in accumulator_of(model.bert).take().items()}
    figures = method.metrics(model.bert, sums)
    assert sums["tnf_hits"] == 3
    assert figures["tnf_hits"] == 3 / sums["tnf_words"]
    assert figures["tnf_ratio"] > 0
    assert figures["tnf_drift"] > 0
    assert "tnf_overflow" not in figures
    model.train()(notes.batch(*[RARE[1:2] * 13] * 16))
    assert (
        method.metrics(model.bert, {k: float(v) for k, v in accumulator_of(model.bert).take().items()})["tnf_overflow"]
        == 16 * 13 - 64
    )


def test_counting_writes_into_the_configuration_what_it_found():
    model = notes.model()
    assert model.config.methods["tnf"] == {"min_count": 4, "max_count": 4, "entries": len(RARE)}
    before = model.bert.notes.vectors.clone()
    notes.prepare(model)  # a model that has its dictionary keeps it
    assert torch.equal(model.bert.notes.vectors, before)
    assert notes.method(model).cost_signature(model.bert) == "tnf 4 k 16"
    assert tiny.model({"tnf": {}}).methods[0].cost_signature(model.bert) == ""
    with pytest.raises(EffptError, match=r"`tnf.entries` is 9, but the run itself writes it"):
        notes.prepare(tiny.model({"tnf": {"entries": 9}}))
