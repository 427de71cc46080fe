from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, BertModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.bert.modeling_bert import eager_attention_forward as bert_attention
from transformers.models.modernbert.modeling_modernbert import eager_attention_forward as modern_attention

from hf_effpt.core.anatomy import layers_of
from hf_effpt.core.clock import Clock
from hf_effpt.core.depth import stack_of
from hf_effpt.core.document_layout import DocumentLayout
from hf_effpt.core.gates import importance
from hf_effpt.core.width import resize
from hf_effpt.training.flops import FlopCounter, ghost_of
from hf_effpt.training.reference_time_meter import step_operation
from tests import tiny
from tests.contract.settings import VARIANTS


def batch(rows=2, length=8, masked=3):
    ids = torch.randint(5, tiny.VOCAB, (rows, length))
    positions = torch.arange(masked).expand(rows, -1)
    labels = torch.full_like(ids, -100).scatter(1, positions, 7)
    return {"input_ids": ids, "labels": labels, "masked_positions": positions}


def analytic(rows, length, masked, *, layers=4, h=32, i=64, v=tiny.VOCAB):
    """Forward multiply-adds, twice: 8h² + 4hi + 4Lh a token and layer; the last at masked positions but for K, V."""
    tokens, wanted = rows * length, rows * masked
    full = tokens * (8 * h * h + 4 * h * i + 4 * length * h)
    last = tokens * 4 * h * h + wanted * (4 * h * h + 4 * h * i + 4 * length * h)
    return (layers - 1) * full + last + wanted * (2 * h * h + 2 * h * v)


def test_equals_the_formula_and_backward_is_twice_forward():
    model = tiny.model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    counted = FlopCounter().count(model, batch())
    assert counted == pytest.approx(3 * analytic(2, 8, 3), rel=0.01)


def test_equals_a_real_run_with_eager_attention():
    model, inputs = tiny.model().train(), batch()
    assert FlopCounter().count(model, inputs) == real_step(model, inputs)


def test_counting_touches_neither_weights_nor_generators_nor_watchers():
    model = tiny.model().train()
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    inputs = batch()
    weights, generator = tiny.weights(model), torch.get_rng_state()
    FlopCounter().count(model, inputs)
    assert torch.equal(generator, torch.get_rng_state())
    assert not seen
    assert all(torch.equal(weights[name], p) and p.grad is None for name, p in model.named_parameters())
    assert model.config._attn_implementation == "sdpa"


def test_equal_work_is_counted_once(monkeypatch):
    counter, model, runs = FlopCounter(), tiny.model().train(), []
    monkeypatch.setattr(FlopCounter, "_measure", staticmethod(lambda *_: runs.append(1) or 5))
    assert [counter.count(model, batch()), counter.count(model, batch()), counter.count(model, batch(rows=3))] == [
        5,
        5,
        5,
    ]
    assert len(runs) == 2


@pytest.mark.parametrize("objective", ["mlm", "electra", "all_tokens_mlm", "mcbert"])
def test_labels_without_positions_count_as_the_fullest_row(objective):
    """As a stock collator makes them: the work is that of the real step, which pads rows to the most labels of one."""
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = (tiny.model(**plain) if objective == "mlm" else tiny.joint(objective)).train()
    inputs = batch(rows=3)
    inputs["labels"][1, 3:7] = 9
    inputs["labels"][2, :3] = -100
    del inputs["masked_positions"]
    assert FlopCounter().count(model, inputs) == real_step(model, inputs)


def real_step(model, inputs):
    """What the counter counts of a real step, with eager attention."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as real:
        model(**inputs).loss.backward()
    return real.get_total_flops()


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_frozen_layers_run_forward_only_with_checkpointing(frozen):
    """Layers that a user has frozen with all below them: no graph reaches them, and gradients above are the same."""
    model, inputs = tiny.model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train(), batch()
    layers = list(layers_of(model.bert).children())
    for part in (model.bert.embeddings, *layers[:frozen]):
        part.requires_grad_(False)
    model(**inputs).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    outputs = []
    for layer in layers[:frozen]:
        layer.register_forward_hook(lambda module, args, output: outputs.append(output.requires_grad))
    model.zero_grad()
    tiny.checkpointing(model)
    counted = FlopCounter().count(model, inputs)
    model(**inputs).loss.backward()
    assert outputs == [False] * frozen
    assert len(gradients) > 16
    assert all(torch.equal(gradients[n], p.grad) for n, p in model.named_parameters() if n in gradients)
    assert counted == real_step(model, inputs)


def test_reentrant_checkpointing_reaches_layers_above_frozen_embeddings():
    """It needs inputs that require gradients, so frozen layers run backward, and that is counted."""
    model, inputs = tiny.model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train(), batch()
    for part in (model.bert.embeddings, model.bert.encoder.layer[0]):
        part.requires_grad_(False)
    tiny.checkpointing(model, {"use_reentrant": True})
    counted = FlopCounter().count(model, inputs)
    assert counted == real_step(model, inputs)
    assert model.bert.encoder.layer[1].output.dense.weight.grad.abs().sum() > 0


@pytest.mark.skipif(not hasattr(BertModel, "activation_checkpointing_enable"), reason="needs newer transformers")
def test_activations_that_wait_on_the_host_are_counted_without_it():
    model, inputs = tiny.model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train(), batch()
    plain = FlopCounter().count(model, inputs)
    tiny.checkpointing(model)
    checkpointed = FlopCounter().count(model, inputs)
    tiny.checkpointing(model, offload=True)
    assert FlopCounter().count(model, inputs) == checkpointed > plain


def test_a_layer_without_heads_keeps_its_own_forward():
    model = tiny.model().train()
    resize(model.bert, [[0, 64], [2, 64], [2, 64], [0, 8]])
    assert FlopCounter().count(model, batch()) == real_step(model, batch())


def test_ghost_has_no_storage():
    assert {tensor.device.type for tensor in ghost_of(tiny.model()).state_dict().values()} == {"meta"}


WORKS = {
    "whole": lambda model, batch: (inputs := model.head_inputs(batch)).head(inputs.hidden_BMD),
    "first layer": lambda model, batch: (inputs := model.head_inputs(batch, layers=1)).head(inputs.hidden_BMD),
    "generator": lambda model, batch: (inputs := model.head_inputs(batch, of_generator=True)).head(inputs.hidden_BMD),
    "first layer without a head": lambda model, batch: model.mean_pool(batch, layers=1),
    "words": lambda model, batch: model.mean_pool(batch, layers=0),
    "losses": lambda model, batch: model(**batch).loss,
}


def real_work(model, work, inputs):
    """What the counter counts of work that is done, with eager attention."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as real, torch.no_grad():
        work(model.eval(), inputs)
    return real.get_total_flops()


def isolated(lengths, rows=2):
    """A batch of rows of 1,024 tokens with these documents, then one of the rest, and 40 masked tokens a row."""
    numbers = np.repeat(np.arange(len(lengths) + 1) + 1, [*lengths, 1024 - sum(lengths)])
    return {**batch(rows, 1024, 40), "document_ids": torch.from_numpy(np.stack([numbers] * rows))}


LAYOUTS = ([1024], [500], [20, 30, 300, 7], [100] * 9)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "electra", "checkpointing"])
def test_documents_apart_in_blocks_cost_what_blocks_do(monkeypatch, kind):
    """Counted equals measured however documents lie, from counts of two ways to lie."""
    changes = {"max_position_embeddings": 1024, "num_hidden_layers": 2}
    if kind == "electra":
        model = tiny.joint(**changes).train()
    else:
        model = tiny.masked_lm("modernbert" if kind == "modernbert" else "bert", **changes).train()
    if kind == "checkpointing":
        tiny.checkpointing(model)
    counter, runs, counts = FlopCounter(), [], []
    measure = FlopCounter._measure
    monkeypatch.setattr(FlopCounter, "_measure", staticmethod(lambda *a, **k: runs.append(1) or measure(*a, **k)))
    rows = 2 if kind == "bert" else 1
    for lengths in LAYOUTS:
        inputs = isolated(lengths, rows)
        counts.append(counter.count(model, inputs))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as real:
            model(**inputs).loss.backward()
        assert counts[-1] == real.get_total_flops()
        assert counter.count(model, {**inputs, "documents": DocumentLayout.of(inputs["document_ids"])}) == counts[-1]
    assert len(runs) == 2
    assert counts[0] > counts[1] > counts[3]
    model.set_attn_implementation("eager")
    every = {counter.count(model, isolated(lengths, rows)) for lengths in LAYOUTS}
    assert every == {real_step(model, isolated([1024], rows))}


@pytest.mark.parametrize("name", ["whole", "first layer"])
def test_scoring_rows_with_documents_apart_costs_what_blocks_do(name):
    model, counter = tiny.model(max_position_embeddings=1024, num_hidden_layers=2), FlopCounter()
    for lengths in LAYOUTS:
        inputs = isolated(lengths)
        counted = counter.count_work(model, inputs, WORKS[name], name)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as real, torch.no_grad():
            WORKS[name](model.eval(), inputs)
        assert counted == real.get_total_flops()


def test_a_key_of_the_table_tells_batches_with_other_documents_apart():
    model = tiny.model(max_position_embeddings=1024)
    keys = [
        step_operation("train", model, isolated(lengths), torch.float32) for lengths in ([1024], [1023], [100] * 9)
    ]
    assert keys[0] == keys[1] != keys[2]
    assert "1.000 of the pairs of tokens" in keys[0]
    known = {"documents": DocumentLayout.of(isolated([1024])["document_ids"])}
    assert step_operation("train", model, isolated([1024]) | known, torch.float32) == keys[0]


REFUSED = [("generator", "mlm"), ("whole", "mcbert"), ("first layer", "mcbert")]
OBJECTIVES = ("mlm", "electra", "electra_15", "replace_mlm", "mcbert")


@pytest.mark.parametrize(("name", "objective"), [pair for pair in product(WORKS, OBJECTIVES) if pair not in REFUSED])
def test_work_equals_a_real_run_with_eager_attention(name, objective):
    """Spec test 9: what scoring costs."""
    model = (tiny.model() if objective == "mlm" else tiny.joint(objective)).train()
    inputs = {**batch(), "document_ids": torch.tensor([[1] * 5 + [2] * 3] * 2)}
    counted = FlopCounter().count_work(model, inputs, WORKS[name], name)
    assert model.training
    assert counted == pytest.approx(real_work(model, WORKS[name], inputs), rel=0.01)
    assert (counted > 0) == (name != "words")


def test_work_is_a_third_of_a_training_step_and_the_first_layer_a_fourth_of_it():
    model = tiny.model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    whole = FlopCounter().count_work(model, batch(), WORKS["whole"], "whole")
    assert whole == pytest.approx(analytic(2, 8, 3), rel=0.01)
    assert 3 * whole == pytest.approx(FlopCounter().count(model, batch()), rel=0.01)
    first = FlopCounter().count_work(model, batch(), WORKS["first layer"], "first")
    assert first == pytest.approx(analytic(2, 8, 3, layers=1), rel=0.01)


def test_work_needs_no_positions_and_no_mask():
    model, inputs = tiny.model(), batch()
    expected = FlopCounter().count_work(model, inputs, WORKS["whole"], 0)
    del inputs["masked_positions"]
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    assert FlopCounter().count_work(model, inputs, WORKS["whole"], 0) == expected


def test_equal_work_is_counted_once_whatever_mode_the_model_is_in():
    counter, model, runs = FlopCounter(), tiny.model({"layerdrop": {"p": 0.5}}).train(), []
    inputs, more = batch(), batch(rows=3)

    def work(copied, meta):
        runs.append((copied.training, torch.is_grad_enabled(), meta["input_ids"].device.type))

    generator = torch.get_rng_state()
    for dropped in ((), (1,), (1, 2)):
        stack_of(model.bert).dropped = frozenset(dropped)
        counter.count_work(model, inputs, work, "a")
    counter.count_work(model.eval(), inputs, work, "a")
    assert runs == [(False, False, "meta")]
    counter.count_work(model, inputs, work, "b")
    counter.count_work(model, more, work, "a")
    assert len(runs) == 3
    assert torch.is_grad_enabled()
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize("evaluation", ["all", "threshold", "hardened"])
def test_work_of_a_model_that_skips_layers_is_that_of_all(evaluation):
    settings = {"layerskip": {"evaluation": evaluation, "harden": 0.9}}
    model = tiny.model(settings).train()
    model.bert.gates.rates.fill_(0.1)
    plain = FlopCounter().count_work(tiny.model(), batch(), WORKS["whole"], 0)
    counted = FlopCounter().count_work(model, batch(), WORKS["whole"], 0)
    assert plain <= counted < 1.05 * plain  # with the gates' own


class Checked(FlopCounter):
    """A counter that compares each count with a new counter's, which is asked whenever anything of a model differs."""

    def __init__(self):
        super().__init__()
        self.counts, self.asked = [], {}

    def count(self, model, batch):
        state = [(name, p.shape, p.requires_grad) for name, p in model.named_parameters()]
        signatures = [method.cost_signature(model.backbone) for method in model.methods]
        fresh = self.asked.setdefault(repr((state, stack_of(model.backbone).active, signatures)), FlopCounter())
        self.counts.append(super().count(model, batch))
        assert self.counts[-1] == fresh.count(model, batch)
        return self.counts[-1]


CHANGING = {
    "grows and drops": {"stacking": {"depth": 1, "at": [0.3, 0.7]}, "layerdrop": {"p": 0.4}},
    "grows and freezes": VARIANTS["append_top"],
    "cuts and drops": {"earlybert": {"max_search_steps": 0.15, "every": 1, "window": 2}, "layerdrop": {"p": 0.4}},
    "cuts in rounds": VARIANTS["compress by importance"],
    "has a teacher": VARIANTS["compress, distilled"],
    "skips": {"layerskip": {"target": 0.4, "after": 0.5}},
}


@pytest.mark.parametrize("name", list(CHANGING))
def test_a_run_is_charged_for_what_its_methods_change(tmp_path, name):
    trainer = tiny.trainer(tmp_path, CHANGING[name], per_device_train_batch_size=2, counter=Checked())
    trainer.train()
    assert len(trainer.cost.counter.counts) == 8
    assert len(trainer.cost.counter.asked) > 1


def test_a_module_that_was_replaced_is_seen_when_the_optimizer_follows(tmp_path):
    trainer = tiny.trainer(tmp_path, counter=FlopCounter())
    counter, model = trainer.cost.counter, trainer.model.train()
    trainer.create_optimizer()
    before = counter.count(model, batch())
    block = layers_of(model.bert)[1]
    block.intermediate.dense, block.output.dense = torch.nn.Linear(32, 128), torch.nn.Linear(128, 32)
    trainer.refresh_optimizer()
    assert counter.count(model, batch()) == FlopCounter().count(model, batch()) > before


def test_the_order_of_unequal_layers_matters():
    """The last layer computes masked positions only."""
    counter, model = FlopCounter(), tiny.model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    stack = stack_of(model.bert)
    resize(model.bert, [[2, 64], [2, 16], [2, 64], [2, 64]])
    counts = []
    for stack.order in ((0, 1), (1, 0)):
        counts.append(counter.count(model, batch()))
        assert counts[-1] == FlopCounter().count(model, batch())
    assert counts[0] > counts[1]


# Attention of other implementations, and losses of methods' own.


@pytest.mark.parametrize("kind", ["bert", "modernbert", "electra", "replace_mlm"])
def test_attention_that_computes_every_position_is_counted_so(kind):
    """An implementation by another name, such as `flex_attention`, is not asked for some positions only."""
    torch.manual_seed(0)
    model = (tiny.masked_lm(kind) if kind in tiny.BACKBONES else tiny.joint(kind)).train()
    name, forward = f"every_position_{kind}", modern_attention if kind == "modernbert" else bert_attention
    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, eager_mask)
    inputs = tiny.batch(2, objective="mcbert")
    counter, counts = FlopCounter(), []
    for attention in ("sdpa", name, "eager"):  # a counter tells them apart
        model.set_attn_implementation(attention)
        counts.append(counter.count(model, inputs))
        if attention != "sdpa":
            with FlopCounterMode(display=False) as real:
                model(**inputs).loss.backward()
            assert counts[-1] == real.get_total_flops()
    assert counts[0] == counts[2] < counts[1]


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_slopes_of_gates_are_counted_whatever_the_attention(backbone):
    model, inputs = tiny.masked_lm(backbone).eval(), batch()
    counts = {}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        real = FlopCounterMode(display=False)

        def learning(given, parameters, attention=attention, real=real):
            counts[attention] = FlopCounter.count_gradients(model, given, parameters)
            return real

        importance(model.backbone, iter([inputs]), lambda given: model(**given).loss, learning)
    assert counts["sdpa"] == counts["eager"] == real.get_total_flops()
    assert counts["eager"] < FlopCounter().count(model, inputs)  # no gradients of weights


@pytest.mark.parametrize("objective", ["mlm", "electra"])
@pytest.mark.usefixtures("counted")
def test_what_a_method_learns_from_is_charged_on_a_copy(tmp_path, objective):
    trainer = tiny.trainer(tmp_path, objective=objective)
    cost, model = trainer.cost, trainer.model.train()
    cost.begin(Clock("steps", 4), None)
    grown = [parameter for layer in list(layers_of(model.backbone).children())[2:] for parameter in layer.parameters()]
    for _ in range(2):
        with cost.charged(model, batch(), grown):
            model(**batch()).loss.backward()
    assert cost.step_flops == 2 * FlopCounter.count_gradients(model, batch(), grown)
    for parameter in set(model.parameters()) - set(grown):
        parameter.requires_grad_(False)
    assert cost.step_flops == 2 * real_step(model, batch())
