"""`compute_metrics`, `preprocess_logits_for_metrics` and `predict` in pre-training, as in the stock Trainer."""

import numpy as np
import pytest
import torch

from hf_effpt.core.errors import EffptError
from tests import tiny


def trainer_of(folder, objective="mlm", compute=None, preprocess=None, **changes):
    torch.manual_seed(0)
    return tiny.EffptTrainer(
        tiny.masked_lm("bert") if objective == "mlm" else tiny.joint(objective),
        tiny.arguments(folder, per_device_eval_batch_size=5, **changes), train_dataset=tiny.rows(),
        eval_dataset=tiny.rows(12, seed=1), processing_class=tiny.tokenizer(), compute_metrics=compute,
        preprocess_logits_for_metrics=preprocess,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "shape"),
    [
        ("mlm", (12, 2, tiny.VOCAB)),
        ("replace_mlm", (12, 2, tiny.VOCAB)),
        ("electra", (12, 16)),
        ("electra_15", (12, 2)),
    ],
)
def test_predict_returns_logits_and_labels_where_the_model_predicts(tmp_path, objective, shape):
    trainer = trainer_of(tmp_path, objective)
    rows = tiny.rows(12, seed=1)
    found = trainer.predict(rows)
    assert found.predictions.shape == shape
    assert found.label_ids.shape == shape[:2]
    assert found.metrics["test_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-5)
    if objective == "mlm":
        batch = next(iter(trainer.get_test_dataloader(rows)))
        with torch.no_grad():
            logits = trainer.model(batch["input_ids"]).logits
        at = batch["masked_positions"][:, :, None].expand(-1, -1, tiny.VOCAB)
        assert np.abs(found.predictions[:5] - logits.gather(1, at).numpy()).max() < 1e-5
        assert (found.label_ids[:5] == batch["labels"].gather(1, batch["masked_positions"]).numpy()).all()


def test_metrics_are_computed_from_processed_logits_and_the_loss_stays_exact(tmp_path):
    seen = []

    def accuracy(found):
        seen.append((found.predictions.shape, found.label_ids.shape, found.inputs.shape, found.losses.shape))
        known = found.label_ids != -100
        return {"accuracy": (found.predictions == found.label_ids)[known].mean()}

    best = {"metric_for_best_model": "accuracy", "include_for_metrics": ["inputs", "loss"]}
    trainer = trainer_of(tmp_path, compute=accuracy, preprocess=lambda logits, labels: logits.argmax(-1), **best)
    metrics = trainer.evaluate({"one": tiny.rows(12, seed=1)})
    assert metrics["eval_one_loss"] == trainer.evaluation["held_out_loss"]
    assert 0 <= metrics["eval_one_accuracy"] <= 1
    assert seen == [((12, 2), (12, 2), (12, 16), (12,))]
    assert not {"tokens", "flops", "clock"} & metrics.keys()  # the default objective of a search sums up all metrics


def test_metrics_batch_by_batch_are_given_the_last_batch_too(tmp_path):
    sizes = []

    def count(found, compute_result):
        sizes.append(len(found.predictions))
        return {"rows": sum(sizes)} if compute_result else {}

    assert trainer_of(tmp_path, compute=count, batch_eval_metrics=True).evaluate()["eval_rows"] == 12
    assert sizes == [5, 5, 2]


def test_candidates_that_differ_from_token_to_token_are_refused(tmp_path):
    with pytest.raises(EffptError, match="`compute_metrics` reads logits, and a `McBertForPreTraining`"):
        trainer_of(tmp_path, "mcbert", compute=len)
