import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForSequenceClassification,
)

import hf_effpt
from hf_effpt.core.errors import EffptError
from hf_effpt.core.precision import KeepsPrecision
from tests import tiny

AUTO = {
    "Model": AutoModel,
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
}
PAIRS = [
    (family, part)
    for family in (
        "EffptBert",
        "CompressibleBert",
        "EarlyBert",
        "LayerDropBert",
        "LayerSkipBert",
        "LotteryBert",
        "SelectionBert",
        "StackableBert",
        "TNFBert",
        "EffptModernBert",
        "EffptElectra",
        "McBert",
        "ModernElectra",
        "ModernMcBert",
    )
    for part in AUTO
    if hasattr(hf_effpt, family + part)
]


@pytest.mark.parametrize(("family", "part"), PAIRS)
def test_auto_classes_find_what_was_saved(tmp_path, family, part):
    shape = tiny.MODERN if "Modern" in family else tiny.SHAPE
    model = getattr(hf_effpt, family + part)(getattr(hf_effpt, family + "Config")(**shape)).eval()
    model.save_pretrained(tmp_path)
    again = AUTO[part].from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    assert again.config.methods == model.config.methods
    assert [type(method) for method in again.methods] == [type(method) for method in model.methods]
    ids = torch.randint(5, tiny.VOCAB, (2, 6))
    assert torch.allclose(again(ids)[0], model(ids)[0], atol=1e-6)


def test_named_configurations_switch_their_method_on():
    assert hf_effpt.EarlyBertConfig().methods == {"earlybert": {}}
    assert hf_effpt.LayerDropBertConfig().methods == {"layerdrop": {}}
    assert hf_effpt.LayerSkipBertConfig().methods == {"layerskip": {}}
    assert hf_effpt.LotteryBertConfig().methods == {"lottery": {}}
    assert hf_effpt.SelectionBertConfig().methods == {"selection": {}}
    assert hf_effpt.StackableBertConfig(num_hidden_layers=12).methods == {"stacking": {}}
    assert hf_effpt.TNFBertConfig().methods == {"tnf": {}}
    both = hf_effpt.StackableBertConfig(methods={"layerdrop": {"p": 0.1}})
    assert both.methods == {"stacking": {}, "layerdrop": {"p": 0.1}}
    assert hf_effpt.LayerDropBertConfig(methods={"layerdrop": {"p": 0.4}}).methods == {"layerdrop": {"p": 0.4}}


def test_stock_weights_can_go_on_training_with_a_method(tmp_path):
    tiny.model().export().save_pretrained(tmp_path)
    config = tiny.config({"layerdrop": {"p": 0.3}})
    model, report = hf_effpt.EffptBertForMaskedLM.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.methods[0].p == 0.3


@pytest.mark.parametrize(
    "methods",
    [
        {"earlybert": {}},
        {"layerskip": {}},
        {"lottery": {"learn": "supermask"}},
        {"selection": {}},
        {"tnf": {"entries": 4}},
    ],
    ids=lambda methods: next(iter(methods)),
)
def test_what_methods_learn_keeps_its_precision_in_a_model_loaded_in_half_precision(tmp_path, methods):
    model = tiny.model(methods)
    kept = {
        f"{prefix}.{name}": tensor
        for prefix, module in model.named_modules()
        if isinstance(module, KeepsPrecision)
        for name, tensor in module.state_dict().items()
    }
    assert kept
    with torch.no_grad():
        for tensor in kept.values():
            tensor.fill_(1.001 if tensor.is_floating_point() else 1)  # which half precision would round
    model.save_pretrained(tmp_path / "own")
    tiny.model().export().save_pretrained(tmp_path / "stock")
    of_own = hf_effpt.EffptBertForMaskedLM.from_pretrained(tmp_path / "own", dtype=torch.bfloat16)
    config = tiny.config(methods)
    of_stock = hf_effpt.EffptBertForMaskedLM.from_pretrained(tmp_path / "stock", config=config, dtype=torch.bfloat16)
    assert of_own.dtype == of_stock.dtype == torch.bfloat16
    for name, tensor in kept.items():
        assert torch.equal(of_own.state_dict()[name], tensor), name
        assert of_own.state_dict()[name].dtype == of_stock.state_dict()[name].dtype == tensor.dtype, name


def test_fine_tuning_heads_export_to_stock(tmp_path):
    config = tiny.config({"layerdrop": {"p": 0.3}}, num_labels=3)
    model = hf_effpt.EffptBertForSequenceClassification(config).eval()
    stock = model.export()
    assert type(stock) is BertForSequenceClassification
    assert stock.config.num_labels == 3
    ids = torch.randint(5, tiny.VOCAB, (2, 6))
    assert torch.equal(stock(ids).logits, model(ids).logits)


def test_a_method_can_be_added_to_a_model():
    model = tiny.model()
    model.add_method("layerdrop", p=0.4)
    assert model.methods[0].p == 0.4
    assert model.config.methods == {"layerdrop": {"p": 0.4}}
    with pytest.raises(EffptError, match="already"):
        model.add_method("layerdrop")
    with pytest.raises(EffptError, match="cannot grow"):
        model.add_method("stacking", depth=4)
    assert list(model.config.methods) == ["layerdrop"]


def test_stock_configuration_has_no_ledger():
    stock = tiny.config({"layerdrop": {}}, layer_order=[0, 2]).stock()
    assert type(stock).__name__ == "BertConfig"
    assert stock.num_hidden_layers == 2
    assert not {"methods", "layer_order", "events"} & set(stock.to_dict())
    assert AutoConfig.for_model("effpt_bert").model_type == "effpt_bert"


def test_public_names_all_exist():
    assert all(getattr(hf_effpt, name) is not None for name in hf_effpt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = hf_effpt.nonsense


def test_public_functions_are_no_modules():
    """Whatever has been imported before."""
    import hf_effpt.comparison.experiment
    import hf_effpt.evaluation.suite
    import hf_effpt.pretraining

    for name in ("pretrain", "evaluate", "compare", "export", "push", "pack", "train_tokenizer"):
        assert callable(getattr(hf_effpt, name)), name


def test_tuples_where_they_are_asked_for():
    model = tiny.model().eval()
    ids = torch.randint(5, tiny.VOCAB, (2, 6))
    (logits,) = model(ids, return_dict=False)
    assert torch.equal(logits, model(ids).logits)
    assert torch.equal(model(ids, labels=ids, return_dict=False)[0], model(ids, labels=ids).loss)
