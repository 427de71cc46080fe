"""LoRA by PEFT attaches to, trains, is saved with and is merged into every model class that has a head."""

import copy

import pytest
import torch
from transformers import PreTrainedModel

import hf_effpt
from hf_effpt.core.errors import EffptError
from hf_effpt.core.gates import WidthGates
from hf_effpt.core.objectives import objective_of
from hf_effpt.evaluation.lora import TASKS, add_lora
from hf_effpt.models import pruned_bert, pruned_modernbert
from hf_effpt.models.base import EffptMixin
from tests import tiny

peft = pytest.importorskip("peft")
# PEFT asks models by a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

WIDTHS = [[2, 40], [0, 3], [1, 1], [1, 64]]
SETTINGS = {**tiny.SHAPE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def with_head(source, names):
    found = [getattr(source, name) for name in names if "For" in name]
    return [cls for cls in found if isinstance(cls, type) and issubclass(cls, PreTrainedModel)]


OURS = with_head(hf_effpt, hf_effpt.__all__)
PRUNED = [cls for home in (pruned_bert, pruned_modernbert) for cls in with_head(home, home.__all__)]
NAMED = tuple(
    f"{name}Bert"
    for name in ("Compressible", "Early", "LayerDrop", "LayerSkip", "Lottery", "Selection", "Stackable", "TNF")
)
CASES = [
    *((cls, "whole") for cls in OURS),
    # Classes named by a method are those of `EffptBert`; two cut layers themselves, and start from whole ones.
    *((cls, "sliced") for cls in OURS if not cls.__name__.startswith(NAMED)),
    *((cls, "gated") for cls in OURS if cls.__name__.startswith("EffptBert")),
    *((cls, "sliced") for cls in PRUNED),
]


def build(cls, kind):
    torch.manual_seed(0)
    own = {"candidates": 5} if "McBert" in cls.__name__ else {}
    own |= {"objective": "replace_mlm"} if cls.__name__.endswith("ForReplacedMaskedLM") else {}
    own |= {"layer_widths": WIDTHS} if kind == "sliced" else {}
    settings = SETTINGS
    if "Modern" in cls.__name__:
        settings = tiny.MODERN
    elif "DistilBert" in cls.__name__:
        settings = {"vocab_size": tiny.VOCAB, "dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 64, "dropout": 0.0,
                    "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "max_position_embeddings": 32}  # fmt: skip
    model = cls(cls.config_class(**settings, **own))
    if kind == "gated":
        gates = WidthGates(model.base_model)
        gates.attach(model.base_model)
        gates.on = True
    return model


def batch_for(cls):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, tiny.VOCAB, (4, 8), generator=generator)
    if cls.__name__.endswith("MultipleChoice"):
        return {"input_ids": ids.view(2, 2, 8), "labels": torch.tensor([0, 1])}
    if cls.__name__.endswith("SequenceClassification"):
        return {"input_ids": ids, "labels": torch.tensor([0, 1, 1, 0])}
    if cls.__name__.endswith("TokenClassification"):
        return {"input_ids": ids, "labels": ids % 2}
    if cls.__name__.endswith("QuestionAnswering"):
        return {"input_ids": ids, "start_positions": ids[:, 0] % 8, "end_positions": ids[:, 1] % 8}
    batch = tiny.batch(4, objective=objective_of(build(cls, "whole").config))
    names = ("input_ids", "attention_mask", "labels", "masked_positions", "original_ids")
    return batch if issubclass(cls, EffptMixin) else {name: batch[name] for name in names if name in batch}


def loss_of(model, batch):
    torch.manual_seed(1)
    return model(**batch).loss


@torch.no_grad()
def output_of(model, batch):
    torch.manual_seed(1)
    given = {"input_ids": batch["input_ids"]}
    return model.eval()(**given)[0]


@pytest.mark.parametrize(("cls", "kind"), CASES, ids=[f"{cls.__name__}-{kind}" for cls, kind in CASES])
def test_adapters_train_are_saved_and_merged(cls, kind, tmp_path):
    model = build(cls, kind)
    fresh, before, batch = copy.deepcopy(model), tiny.weights(model), batch_for(cls)
    adapted = add_lora(model, 2).train()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    rate = 0.1
    if "Modern" in cls.__name__ or "DistilBert" in cls.__name__:  # whose adapters change much less than new heads
        rate = 1.0 if cls.__name__.endswith("MaskedLM") else 0.01
    optimizer = torch.optim.SGD(trained, lr=rate)
    first = loss_of(adapted, batch)
    first.backward()
    optimizer.step()
    assert loss_of(adapted, batch) < first
    frozen = {name: parameter for name, parameter in adapted.named_parameters() if not parameter.requires_grad}
    for name, parameter in frozen.items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")
        assert torch.equal(parameter, before[plain]), name
    changed = [name for name in trained_names(adapted) if "lora_B" in name]
    assert changed
    assert any(parameter.any() for name, parameter in adapted.named_parameters() if "lora_B" in name)
    expected = output_of(adapted, batch)
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path)
    torch.testing.assert_close(output_of(again, batch), expected, rtol=0, atol=1e-6)
    merged = adapted.merge_and_unload()
    assert type(merged) is cls
    assert set(tiny.weights(merged)) == set(before)
    torch.testing.assert_close(output_of(merged, batch), expected, rtol=0, atol=1e-5)


def trained_names(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    "cls", [cls for cls in OURS if cls.__name__.endswith(tuple(TASKS))], ids=lambda cls: cls.__name__
)
def test_the_head_of_a_task_is_trained_whole(cls):
    names = trained_names(add_lora(build(cls, "whole"), 2))
    heads = {name.split(".")[2] for name in names if "modules_to_save" in name} - {
        "bert",
        "electra",
        "distilbert",
        "model",
    }
    assert heads
    assert all("lora_" in name or "modules_to_save" in name for name in names)


def test_gates_that_are_not_one_are_refused_until_they_are_folded():
    model = build(hf_effpt.EffptBertForSequenceClassification, "gated")
    with torch.no_grad():
        model.bert.width_gates.heads[1][0] = 0.5
    with pytest.raises(EffptError, match=r"gates that are not all 1.*fold them into the weights"):
        add_lora(model, 2)
    before = output_of(model, batch_for(type(model)))
    model.bert.width_gates.fold(model.bert)
    adapted = add_lora(model, 2)
    torch.testing.assert_close(output_of(adapted, batch_for(type(model))), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"learn": "supermask"}])
def test_masks_that_leave_weights_out_are_refused_until_the_model_is_exported(settings):
    config = hf_effpt.LotteryBertConfig(**SETTINGS, methods={"lottery": settings})
    model = hf_effpt.LotteryBertForSequenceClassification(config)
    with torch.no_grad():
        for kept in model.bert.masks.parameters() if settings else model.bert.masks.buffers():
            kept[0] = -1.0 if settings else False
    with pytest.raises(EffptError, match=r"masks that leave weights out.*export the model"):
        add_lora(model, 2)
    add_lora(model.export(), 2)
