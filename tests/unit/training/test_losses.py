"""Arguments of the Trainer that change the loss: with their published value, or refused when the trainer is made."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers.trainer_pt_utils import LabelSmoother

from hf_effpt.core.errors import EffptError
from hf_effpt.models import EffptBertForSequenceClassification
from tests import tiny

DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def logged(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def smoothed(logits_BLV, labels_BL, epsilon):
    """By hand: of each labelled token, a part of the loss is the mean over the vocabulary."""
    total, count = 0.0, 0
    for row, place in (labels_BL != -100).nonzero().tolist():
        log_V = logits_BLV[row, place].double().log_softmax(dim=0)
        total -= (1 - epsilon) * log_V[labels_BL[row, place]].item() + epsilon * log_V.mean().item()
        count += 1
    return total / count


@pytest.mark.parametrize("positions", [True, False])
def test_label_smoothing_is_the_stock_one_at_labelled_tokens(positions):
    model, batch = tiny.model(**DRY).train(), tiny.batch(6, objective="mlm")
    batch["labels"][2, :9] = -100  # a row with fewer labels than the others
    with torch.no_grad():
        logits = model(batch["input_ids"]).logits
    if not positions:
        del batch["masked_positions"]
    plain = model(**batch).loss.item()
    model.label_smoothing = 0.2
    found = model(**batch).loss.item()
    assert found == pytest.approx(smoothed(logits, batch["labels"], 0.2), abs=1e-5)
    assert found == pytest.approx(LabelSmoother(0.2)({"logits": logits}, batch["labels"]).item(), abs=1e-5)
    assert abs(found - plain) > 1e-3
    assert model.eval()(**batch).loss.item() == pytest.approx(plain, abs=1e-6)  # held-out losses are comparable


def test_a_run_with_label_smoothing_learns_from_it(tmp_path):
    """Over all micro-batches of a step, and after a resumption."""
    settings = {"label_smoothing_factor": 0.3, "gradient_accumulation_steps": 2, "budget": "4steps"}
    plain = tiny.trainer(tmp_path / "plain", **{**settings, "label_smoothing_factor": 0.0})
    weights, fetch, first = tiny.model(**DRY), plain.get_batch_samples, []
    weights.load_state_dict(plain.model.state_dict())
    plain.get_batch_samples = lambda *args: first.append(fetch(*args)) or first[-1]
    plain.train()
    batches, _ = first[0]
    with torch.no_grad():
        logits = torch.cat([weights(batch["input_ids"]).logits for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])

    straight = tiny.trainer(tmp_path / "straight", save_strategy="steps", save_steps=2, **settings)
    straight.train()
    assert logged(straight)[0] == pytest.approx(smoothed(logits, labels, 0.3), abs=1e-4)
    assert logged(plain)[0] == pytest.approx(smoothed(logits, labels, 0.0), abs=1e-4)
    resumed = tiny.trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    tiny.assert_same_weights(straight.model, resumed.model)
    assert straight.clock.flops == plain.clock.flops


def test_rows_are_selected_by_smoothed_losses_too(tmp_path):
    ledger = {"selection": {"strategy": "highest_loss", "start": 0.0, "end": 1.0, "interrupt": 0}}
    trainer = tiny.trainer(tmp_path, ledger, label_smoothing_factor=0.1, budget="3steps")
    trainer.train()
    assert all(np.isfinite(logged(trainer)))


def focal(outputs, labels, num_items_in_batch=None):
    """A loss of a user's: hard tokens weigh more."""
    losses = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).sum() / num_items_in_batch


def with_function(folder, function, methods=None, **changes):
    args = tiny.arguments(folder, **changes)
    tiny.set_seed(args.seed)
    return tiny.EffptTrainer(
        tiny.model(methods, **DRY), args, train_dataset=tiny.rows(), processing_class=tiny.tokenizer(),
        compute_loss_func=function,
    )  # fmt: skip


@pytest.mark.usefixtures("counted")
def test_a_loss_function_of_the_users_is_charged_with_logits_everywhere(tmp_path):
    trainer = with_function(tmp_path / "own", focal, gradient_accumulation_steps=2, budget="2steps")
    trainer.train()
    plain = tiny.trainer(tmp_path / "plain", gradient_accumulation_steps=2, budget="2steps")
    plain.train()
    assert 0 < logged(trainer)[0] < logged(plain)[0]
    tokens, masked, own = 8 * 16, 8 * 2, 16 * (8 * 32**2 + 4 * 32 * 64 + 4 * 16 * 32)
    head = 2 * 32 * 32 + 2 * 32 * tiny.VOCAB
    last = own - 16 * 4 * 32 * 32  # of the last layer, all but keys and values is computed at masked positions only
    saved = (tokens - masked) * head + 8 * (last - last * 2 // 16)
    assert trainer.clock.flops - plain.clock.flops == 2 * 3 * saved


def test_a_penalty_is_counted_once_with_a_loss_function(tmp_path):
    """The user's loss is divided already, so the penalty is divided by the number of micro-batches."""
    found = []
    for size, steps in ((8, 1), (2, 4)):
        data = Dataset.from_dict({"input_ids": tiny.rows(8)["input_ids"], "labels": [0, 1] * 4})
        args = tiny.arguments(
            tmp_path / str(size), budget="1steps", per_device_train_batch_size=size,
            gradient_accumulation_steps=steps, max_grad_norm=1e9,
        )  # fmt: skip
        torch.manual_seed(0)
        model = EffptBertForSequenceClassification(tiny.config({"layerskip": {"target": 0.5, "after": 0.0}}, **DRY))
        model.methods[0].penalty = lambda backbone: backbone.embeddings.LayerNorm.weight.square().sum()
        trainer = tiny.EffptTrainer(
            model, args, train_dataset=data,
            compute_loss_func=lambda outputs, labels, num_items_in_batch: 0 * outputs.logits.sum(),
        )  # fmt: skip
        trainer.train()
        found.append(logged(trainer)[0])
    assert found == pytest.approx([32.0, 32.0])


@pytest.mark.parametrize("objective", ["electra", "electra_15", "replace_mlm", "all_tokens_mlm", "mcbert"])
def test_losses_of_models_with_a_generator_cannot_be_replaced(tmp_path, objective):
    with pytest.raises(EffptError, match=f"`label_smoothing_factor` changes the loss .* objective `{objective}`"):
        tiny.trainer(tmp_path, objective=objective, label_smoothing_factor=0.1)
    with pytest.raises(EffptError, match=f"`compute_loss_func` changes the loss .* objective `{objective}`"):
        tiny.EffptTrainer(tiny.joint(objective), tiny.arguments(tmp_path), compute_loss_func=focal)


SELECTION = {"selection": {"strategy": "infobatch"}}


@pytest.mark.parametrize(
    ("methods", "changes", "message"),
    [
        (None, {"label_smoothing_factor": 0.1}, "replaces the loss that it smooths"),
        (SELECTION, {}, "`selection` reads the model's loss token by token"),
        ({"layerskip": {"estimator": "reinforce"}}, {}, "reads the model's loss token by token"),
        (None, {"budget": "3s_rst"}, "no time for a `compute_loss_func`"),
    ],
)
def test_what_needs_the_models_own_loss_refuses_another(tmp_path, methods, changes, message):
    with pytest.raises(EffptError, match=message):
        with_function(tmp_path, focal, methods, **changes)


@pytest.mark.parametrize("objective", ["mlm", "electra"])
def test_labels_of_other_names_are_refused(tmp_path, objective):
    model = tiny.model() if objective == "mlm" else tiny.joint(objective)
    with pytest.raises(EffptError, match="are called `labels`"):
        tiny.EffptTrainer(model, tiny.arguments(tmp_path, label_names=["start_positions"]))


@pytest.mark.parametrize("objective", ["mlm", "electra", "mcbert"])
def test_arguments_that_only_count_leave_the_loss_alone(tmp_path, objective):
    plain = tiny.trainer(tmp_path / "a", objective=objective, budget="2steps")
    plain.train()
    counting = tiny.trainer(
        tmp_path / "b", objective=objective, budget="2steps", include_num_input_tokens_seen="all",
        average_tokens_across_devices=False, label_names=["labels"],
    )  # fmt: skip
    counting.train()
    assert logged(counting) == logged(plain)
    assert counting.state.num_input_tokens_seen == counting.clock.tokens


MEASURING = [
    {"compress": {"head_keep": 0.5}},
    {"compress": {"head_keep": 0.5, "importance": "random"}},
    {"earlybert": {"ticket": "michel"}},
    {"stacking": {"depth": 2, "at": [0.5], "operator": "ligo_depth"}},
    {"selection": {"strategy": "highest_loss"}},
]


@pytest.mark.parametrize("ledger", MEASURING, ids=str)
def test_a_loss_function_beside_a_method_that_measures_the_models_own_is_refused(tmp_path, ledger):
    with pytest.raises(EffptError, match=f"`{next(iter(ledger))}`.* the model computes itself.*`compute_loss_func`"):
        with_function(tmp_path, focal, ledger)


@pytest.mark.parametrize(
    "ledger", [{"compress": {"depth": 2}}, {"compress": {"head_keep": 0.5, "importance": "magnitude"}}], ids=str
)
def test_a_loss_function_beside_one_that_does_not_is_taken(tmp_path, ledger):
    with_function(tmp_path, focal, ledger)
