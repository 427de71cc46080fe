"""Fine-tunes an exported model with the stock Trainer, in a process that cannot import this package.

python examples/make_task.py task.jsonl && python examples/04_finetune.py out task.jsonl --max_steps 60
"""

import argparse
import sys

sys.modules["hf_effpt"] = None  # from here on, importing it is an error: all below is plain Transformers

import datasets  # noqa: E402
import numpy as np  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    logging,
    set_seed,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="the folder of a finished run")
parser.add_argument("task", help="a .jsonl file with `text`, `label` and, in some tasks, `text_pair`")
parser.add_argument("--max_steps", type=int, default=60)
parser.add_argument("--out", default="out_finetuned")
args = parser.parse_args()

logging.set_verbosity_error()  # in the place of its report on weights, one line below
set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(args.model)
task = datasets.load_dataset("json", data_files=args.task, split="train").class_encode_column("label")
names = task.features["label"].names
columns = [name for name in ("text", "text_pair") if name in task.column_names]
task = task.map(
    lambda rows: tokenizer(*(rows[name] for name in columns), truncation=True, max_length=128), batched=True
)
task = task.train_test_split(0.2, seed=0, stratify_by_column="label")
model, report = AutoModelForSequenceClassification.from_pretrained(
    args.model, num_labels=len(names), output_loading_info=True
)
print("New, for the task to train:", ", ".join(sorted({name.rsplit(".", 1)[0] for name in report["missing_keys"]})))
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        args.out, max_steps=args.max_steps, per_device_train_batch_size=32, learning_rate=5e-4,
        logging_steps=20, save_strategy="no", report_to="none",
        dataloader_pin_memory=False,
    ),
    train_dataset=task["train"],
    eval_dataset=task["test"],
    processing_class=tokenizer,
    compute_metrics=lambda result: {"accuracy": np.mean(result.predictions.argmax(-1) == result.label_ids)},
)  # fmt: skip
trainer.train()
accuracy = trainer.evaluate()["eval_accuracy"]
majority = np.bincount(task["test"]["label"]).max() / len(task["test"])
print(f"{len(names)} classes, {len(task['train'])} examples: accuracy {accuracy:.3f} after {args.max_steps} steps "
      f"(always the commonest class: {majority:.3f})")  # fmt: skip
