"""A BERT with narrower layers: its configuration, its code beside the weights, and what it is equal to."""

import json
import textwrap

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    Trainer,
    TrainingArguments,
)

import hf_effpt
from hf_effpt.core.depth import set_order
from hf_effpt.core.errors import EffptError
from hf_effpt.core.ticket import Ticket
from hf_effpt.core.width import cut_width
from hf_effpt.models import pruned_bert
from hf_effpt.models.build import config_for, model_for
from hf_effpt.models.pruned_bert import PrunedBertConfig, PrunedBertForMaskedLM, PrunedBertForSequenceClassification
from tests import tiny
from tests.processes import run

TICKET = Ticket(  # uneven, and one layer has no head left
    heads=((0, 1), (), (1,), (0,)),
    neurons=(tuple(range(64)), (3, 5, 60), (1,), tuple(range(0, 64, 2))),
    shape=((2, 64),) * 4,
)
WIDTHS = [[2, 64], [0, 3], [1, 1], [1, 32]]
CODE = {"configuration_pruned_bert.py", "modeling_pruned_bert.py"}
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
ATTENTION = ("eager", "sdpa")


def narrow(head="ForMaskedLM", attention="sdpa", **changes):
    """A training model after a cut, with no parameter that is zero."""
    torch.manual_seed(0)
    model = getattr(hf_effpt, f"EffptBert{head}")(tiny.config(attn_implementation=attention, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    cut_width(model.base_model, TICKET)
    return model


def inputs():
    ids = torch.randint(5, tiny.VOCAB, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 7:] = mask[2, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def outputs_of(model):
    return [value for value in model.eval()(**inputs(), return_dict=True).values() if isinstance(value, torch.Tensor)]


def equal(left, right, atol):
    assert len(left) == len(right) > 0
    for ours, theirs in zip(left, right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def without_package(script, *arguments, cache):
    """Runs a script where only transformers can be imported, with the code cache in a folder."""
    block = f"""
        import sys
        import transformers.dynamic_module_utils

        class Block:
            def find_spec(self, name, *rest):
                if name.split(".")[0] == "hf_effpt":
                    raise ImportError("hf_effpt is not here")

        sys.meta_path.insert(0, Block())
        transformers.dynamic_module_utils.HF_MODULES_CACHE = {str(cache)!r}
    """
    code = textwrap.dedent(block) + textwrap.dedent(script)
    run(code, *map(str, arguments), folder=cache.parent)


def test_every_auto_class_loads_it_where_only_transformers_is(tmp_path):
    """Outputs are those of the training model, also after the remote class has saved itself to another folder."""
    for head in HEADS:
        narrow(head).export().save_pretrained(tmp_path / head)
    choice = pruned_bert.PrunedBertForMultipleChoice(narrow("Model").config.stock()).eval()
    choice.save_pretrained(tmp_path / "ForMultipleChoice")
    torch.save(inputs(), tmp_path / "inputs.pt")
    script = """
        from pathlib import Path
        import torch, transformers

        root = Path(sys.argv[1])
        inputs = torch.load(root / "inputs.pt")
        found = {}
        for head in sys.argv[2:]:
            auto = getattr(transformers, "AutoModel" + head.removeprefix("Model"))
            given = {name: value[:, None] for name, value in inputs.items()} if "Choice" in head else inputs
            for attention in ("eager", "sdpa"):
                folder = root / head
                for _ in range(2):
                    model, report = auto.from_pretrained(
                        folder, trust_remote_code=True, attn_implementation=attention, output_loading_info=True
                    )
                    assert not any(report.values()), report
                    assert type(model).__name__ == "PrunedBert" + head
                    assert type(model).__module__.startswith("transformers_modules.")
                    with torch.no_grad():
                        values = model.eval()(**given, return_dict=True).values()
                        found.setdefault(head, []).append([x for x in values if isinstance(x, torch.Tensor)])
                    folder = root / ("again" + head + attention)
                    model.save_pretrained(folder)
            # whichever head was saved, the folder serves the others, too
            other = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
            assert type(other).__name__ == "PrunedBertModel"
        for head in sys.argv[2:]:
            auto = getattr(transformers, "AutoModel" + head.removeprefix("Model"))
            other = auto.from_pretrained(root / "againForMaskedLMsdpa", trust_remote_code=True)
            assert type(other).__name__ == "PrunedBert" + head
        torch.save(found, root / "outputs.pt")
    """
    without_package(script, tmp_path, *HEADS, "ForMultipleChoice", cache=tmp_path / "cache")
    found = torch.load(tmp_path / "outputs.pt")
    for head in HEADS:
        assert CODE <= {path.name for path in (tmp_path / f"again{head}sdpa").iterdir()}
        for attention, loaded in zip(("eager", "eager", "sdpa", "sdpa"), found[head], strict=True):
            equal(loaded, outputs_of(narrow(head, attention)), atol=1e-6)
    with torch.no_grad():
        expected = choice(**{name: value[:, None] for name, value in inputs().items()}).logits
    for (logits,) in found["ForMultipleChoice"]:
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)


def test_the_stock_trainer_fine_tunes_it_where_only_transformers_is(tmp_path):
    narrow().export().save_pretrained(tmp_path / "model")
    script = """
        import torch
        from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

        root = sys.argv[1]
        model = AutoModelForSequenceClassification.from_pretrained(
            root + "/model", trust_remote_code=True, num_labels=3
        )
        examples = [{"input_ids": [2, 5 + i, 6 + i, 3], "labels": i % 3} for i in range(24)]
        settings = dict(num_train_epochs=1, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True)
        before = model.bert.encoder.layer[1].output.dense.weight.clone()
        trainer = Trainer(model, TrainingArguments(root + "/out", **settings), train_dataset=examples)
        trainer.train()
        assert not torch.equal(model.bert.encoder.layer[1].output.dense.weight, before)
        trainer.save_model(root + "/tuned")
        ids = torch.tensor([[2, 7, 8, 3]])
        with torch.no_grad():
            expected = model.eval()(ids).logits
            again = AutoModelForSequenceClassification.from_pretrained(root + "/tuned", trust_remote_code=True)
            assert torch.allclose(again.eval()(ids).logits, expected, rtol=0, atol=1e-6)
    """
    without_package(script, tmp_path, cache=tmp_path / "cache")
    assert type(AutoModel.from_pretrained(tmp_path / "tuned")) is pruned_bert.PrunedBertModel
    tuned = PrunedBertForSequenceClassification.from_pretrained(tmp_path / "tuned")
    assert tuned.config.layer_widths == WIDTHS
    assert tuned.num_labels == 3


def test_the_package_fine_tunes_it_with_the_stock_trainer(tmp_path):
    narrow().export().save_pretrained(tmp_path / "model")
    model = PrunedBertForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=2)
    examples = [{"input_ids": [2, 5 + i, 6 + i, 3], "labels": i % 2} for i in range(24)]
    args = TrainingArguments(
        str(tmp_path / "out"), num_train_epochs=1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = Trainer(model, args, train_dataset=examples)
    assert trainer.model_accepts_loss_kwargs is False  # its losses are means
    trainer.train()
    trainer.save_model(tmp_path / "tuned")
    again = PrunedBertForSequenceClassification.from_pretrained(tmp_path / "tuned")
    equal(outputs_of(again), outputs_of(model), atol=1e-6)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("head", HEADS)
def test_export_is_the_training_model(head, attention):
    model = narrow(head, attention)
    small, dense = model.export(), model.export(dense=True)
    for each in (small, dense):
        each.set_attn_implementation(attention)
    assert type(small) is getattr(pruned_bert, f"PrunedBert{head}")
    assert small.config.layer_widths == WIDTHS
    assert type(dense) is model.stock_class
    assert type(dense.config) is BertConfig
    assert not {"layer_widths", "auto_map"} & set(dense.config.to_dict())
    equal(outputs_of(small), outputs_of(model), atol=1e-6)
    equal(outputs_of(dense), outputs_of(model), atol=1e-5)
    assert dense.num_parameters() > small.num_parameters() == model.num_parameters()


def test_a_dense_export_is_loaded_as_any_other(tmp_path):
    model = narrow()
    model.export(dense=True).save_pretrained(tmp_path)
    assert not CODE & {path.name for path in tmp_path.iterdir()}
    stock = BertForMaskedLM.from_pretrained(tmp_path)
    equal(outputs_of(stock), outputs_of(model), atol=1e-5)
    encoder = BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
    equal(outputs_of(encoder), outputs_of(model.bert), atol=1e-5)


def test_the_layers_that_run_are_those_that_are_exported():
    model = narrow()
    set_order(model.bert, [0, 2, 3])
    small = model.export()
    assert small.config.layer_widths == [WIDTHS[index] for index in (0, 2, 3)]
    assert model.config.stock().layer_widths == small.config.layer_widths
    equal(outputs_of(small), outputs_of(model), atol=1e-6)


def test_losses_and_gradients_without_heads_are_those_of_zeros():
    """Also in the forward that computes masked positions only."""
    model, batch = narrow(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), tiny.batch()
    dense = model.export(dense=True)
    loss = model(**batch).loss
    loss.backward()
    stock = {name: batch[name] for name in ("input_ids", "labels")}
    reference = dense(**stock).loss
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=0, atol=1e-5)
    bias = "encoder.layer.1.attention.output.dense.bias"
    ours, theirs = model.bert.get_parameter(bias).grad, dense.bert.get_parameter(bias).grad
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_hidden_states_and_attention_can_be_had_of_every_layer():
    model = narrow(attention="eager")
    small = model.export()
    small.set_attn_implementation("eager")
    for each in (model, small):
        outputs = each(**inputs(), output_hidden_states=True, output_attentions=True)
        assert [tuple(weights.shape) for weights in outputs.attentions] == [(3, heads, 12, 12) for heads, _ in WIDTHS]
        assert len(outputs.hidden_states) == 5


def test_a_narrow_model_can_be_trained_further(tmp_path):
    model = narrow()
    model.export().save_pretrained(tmp_path / "small")
    again = hf_effpt.EffptBertForMaskedLM.from_pretrained(tmp_path / "small")
    assert again.config.layer_widths == WIDTHS
    equal(outputs_of(again), outputs_of(model), atol=1e-6)
    again.save_pretrained(tmp_path / "training")
    assert not CODE & {path.name for path in (tmp_path / "training").iterdir()}
    saved = json.loads((tmp_path / "training" / "config.json").read_text())
    assert saved["model_type"] == "effpt_bert"
    assert "auto_map" not in saved  # which would name code that is not there
    back = AutoModelForMaskedLM.from_pretrained(tmp_path / "training")
    assert type(back) is hf_effpt.EffptBertForMaskedLM
    equal(outputs_of(back), outputs_of(model), atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", ["Effpt", "Pruned"])
def test_layers_are_checkpointed_where_the_configuration_says_so(tmp_path, family, head):
    """Whichever part takes the setting out of the configuration, as stock models do."""
    exported = narrow(head).export()
    exported.config.gradient_checkpointing = True
    exported.save_pretrained(tmp_path)
    module = hf_effpt.models.pruned_bert if family == "Pruned" else hf_effpt
    loaded = getattr(module, f"{family}Bert{head}").from_pretrained(tmp_path).train()
    assert [layer.gradient_checkpointing for layer in loaded.base_model.encoder.layer.children()] == [True] * 4
    assert not hasattr(loaded.config, "gradient_checkpointing")
    ran, layer = [], loaded.base_model.encoder.layer[1]
    layer.intermediate.dense.register_forward_hook(lambda *_: ran.append(1))
    outputs = loaded(**inputs())
    (outputs.last_hidden_state if head == "Model" else outputs[0]).sum().backward()
    assert len(ran) == 2  # and again in the backward pass


def test_with_the_package_no_code_need_be_trusted(tmp_path):
    narrow().export().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is PrunedBertConfig
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path)) is PrunedBertForMaskedLM
    assert type(AutoModelForMultipleChoice.from_pretrained(tmp_path)).__name__ == "PrunedBertForMultipleChoice"


@pytest.mark.parametrize("cls", [BertModel, BertForMaskedLM, BertForSequenceClassification])
def test_a_wrong_class_raises(tmp_path, cls):
    narrow().export().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        cls.from_pretrained(tmp_path)


def test_other_widths_raise(tmp_path):
    model = narrow()
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        hf_effpt.EffptBertForMaskedLM.from_pretrained(tmp_path, config=tiny.config(layer_widths=[[2, 64]] * 4))
    model.export().save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="the widths of 4 layers, but `num_hidden_layers` is 2"):
        PrunedBertForMaskedLM.from_pretrained(tmp_path / "small", num_hidden_layers=2)


def test_an_electra_exports_at_full_width():
    model = model_for(config_for("electra", **tiny.SHAPE, embedding_size=32)).eval()
    cut_width(model.base_model, TICKET)
    stock = model.export()
    assert type(stock).__name__ == "ElectraForPreTraining"
    assert stock.electra.encoder.layer[1].attention.self.query.out_features == 32
    equal(outputs_of(stock.electra), outputs_of(model.electra), atol=1e-5)


@pytest.mark.parametrize(
    ("widths", "says"),
    [
        ([[2, 64]] * 3, "the widths of 3 layers, but `num_hidden_layers` is 4"),
        ([[2, 64]] * 3 + [[3, 64]], "layer 3 3 attention heads; it can have 0 to 2"),
        ([[2, 64]] * 3 + [[-1, 64]], "layer 3 -1 attention heads"),
        ([[2, 0]] + [[2, 64]] * 3, "layer 0 0 feed-forward neurons; it can have 1 to 64"),
        ([[2, 65]] + [[2, 64]] * 3, "layer 0 65 feed-forward neurons"),
        ([[2, 64, 1]] + [[2, 64]] * 3, "must be two whole numbers"),
        ([[2.0, 64]] + [[2, 64]] * 3, "must be two whole numbers"),
    ],
)
def test_impossible_widths_are_refused(widths, says):
    with pytest.raises(ValueError, match=says):
        PrunedBertConfig(**tiny.SHAPE, layer_widths=widths)


@pytest.mark.parametrize("widths", [[[2, 64]] * 3, [[2, 64]] * 3 + [[3, 64]], [[2, 64]] * 3 + [[1, 0]]])
def test_a_training_model_cannot_have_them_either(widths):
    with pytest.raises(EffptError, match=r"`layer_widths` is .* fewer, and at least one neuron"):
        tiny.model(layer_widths=widths)


def test_by_default_layers_are_as_wide_as_in_a_stock_model():
    model = PrunedBertForMaskedLM(PrunedBertConfig(**tiny.SHAPE)).eval()
    assert model.config.layer_widths == [[2, 64]] * 4
    stock = BertForMaskedLM(BertConfig(**tiny.SHAPE))
    stock.load_state_dict(model.state_dict())
    equal(outputs_of(stock), outputs_of(model), atol=0)


def test_new_weights_are_drawn_as_in_a_stock_model():
    torch.manual_seed(0)
    model = PrunedBertForMaskedLM(PrunedBertConfig(**tiny.SHAPE, layer_widths=WIDTHS))
    layer = model.bert.encoder.layer[0]
    for linear in (layer.attention.self.query, layer.attention.output.dense, layer.output.dense):
        assert 0.015 < linear.weight.std().item() < 0.025  # `initializer_range` is 0.02
        assert not linear.bias.any()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
