"""Steps of fine-tuning: accumulated gradients, rates of layers, and adapters."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from hf_effpt.evaluation import finetune as module
from hf_effpt.evaluation.finetune import make_accumulation_safe
from hf_effpt.evaluation.lora import add_lora
from hf_effpt.evaluation.protocols import Settings
from tests import tiny


def one_step(tmp_path, parts):
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(**tiny.SHAPE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    )
    make_accumulation_safe(model)
    rows = [{**row, "labels": i % 2} for i, row in enumerate(tiny.rows(8).to_list())]
    args = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=8 // parts,
        gradient_accumulation_steps=parts,
        optim="sgd",
        learning_rate=5.0,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, args, train_dataset=rows)
    trainer.train()
    return trainer.state.log_history[0]["grad_norm"], tiny.weights(model)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, parts):
    norm, weights = one_step(tmp_path, 1)
    cut_norm, cut_weights = one_step(tmp_path, parts)
    assert cut_norm == pytest.approx(norm, rel=1e-5)
    for name, weight in weights.items():
        assert torch.allclose(weight, cut_weights[name], atol=1e-6), name


def test_the_trainer_heeds_what_makes_accumulation_safe(tmp_path):
    model = make_accumulation_safe(BertForSequenceClassification(BertConfig(**tiny.SHAPE)))
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    assert Trainer(model, args).model_accepts_loss_kwargs is False
    assert Trainer(add_lora(model, 2), args).model_accepts_loss_kwargs is False


def test_layers_learn_slower_the_deeper_they_are():
    model = BertForSequenceClassification(BertConfig(**tiny.SHAPE))
    optimizer = module._layerwise(model, Settings(learning_rate=1.0, layer_decay=0.5, weight_decay=0.1))
    rate, decay = {}, {}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rate[names[parameter]], decay[names[parameter]] = group["lr"], group["weight_decay"]
    assert len(rate) == len(names)
    assert rate["classifier.weight"] == rate["bert.pooler.dense.bias"] == 1.0
    assert rate["bert.encoder.layer.3.output.dense.weight"] == 0.5  # the top one, which ELECTRA's code decays twice
    assert rate["bert.encoder.layer.0.output.dense.weight"] == 0.5**4
    assert rate["bert.embeddings.word_embeddings.weight"] == 0.5**5
    assert decay["classifier.weight"] == decay["bert.embeddings.word_embeddings.weight"] == 0.1
    assert decay["bert.encoder.layer.0.output.LayerNorm.weight"] == decay["classifier.bias"] == 0.0


def test_lora_trains_adapters_and_head_only_and_merges_into_the_same_predictions():
    model = BertForSequenceClassification(BertConfig(**tiny.SHAPE)).eval()
    adapted = add_lora(model, 4).eval()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or "classifier" in name or "pooler" in name for name in trained)
    assert sum("lora_A" in name for name in trained) == 4 * 4  # query, key, value and output of four layers
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.randint(5, tiny.VOCAB, (4, 12))
    with torch.no_grad():
        before = adapted(ids).logits
        plain = BertForSequenceClassification(model.config).eval()
        merged = adapted.merge_and_unload()
        assert torch.allclose(merged(ids).logits, before, atol=1e-5)
        assert set(merged.state_dict()) == set(plain.state_dict())
