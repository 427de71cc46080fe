#!/usr/bin/env bash
# From raw text to a fine-tuned encoder in a few minutes, in a virtual environment of its own.
#
#   bash examples/quickstart.sh                       # on the documentation of the installed Python packages
#   DATASET=my_texts/ bash examples/quickstart.sh     # on your own .txt, .jsonl or .parquet files
#   BUDGET=10min OUT=longer bash examples/quickstart.sh
set -euo pipefail
DATASET=${DATASET:-builtin:pydoc}
BUDGET=${BUDGET:-$(command -v nvidia-smi > /dev/null && echo 30s || echo 2min)}
[[ -e $DATASET ]] && DATASET=$(realpath "$DATASET")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-out/quickstart-$(date +%Y%m%d-%H%M%S)}

echo "== 1/5  Setting up .venv (a few minutes the first time)"
source tests/setup_venv.sh
setup_venv .venv constraints.txt plot
bin=$PWD/.venv/bin

echo "== 2/5  Pre-training on $DATASET for $BUDGET: tokenizer, packing, training, held-out loss, export"
"$bin/effpt" pretrain fast_tiny --data.dataset "$DATASET" --training.budget "$BUDGET" --training.output_dir "$OUT"

echo "== 3/5  Drawing the loss curve, and showing what the model has learned"
"$bin/python" examples/05_plot_loss.py "$OUT"
"$bin/python" examples/17_what_it_learned.py "$OUT"

echo "== 4/5  Loading it with plain AutoModel, in a process that cannot import this package"
"$bin/python" - "$OUT" <<'PYTHON'
import sys
sys.modules["hf_effpt"] = None
from transformers import AutoModel, AutoTokenizer, logging
logging.set_verbosity_error()  # else it reports that AutoModel leaves the head of pre-training out
logging.disable_progress_bar()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModel.from_pretrained(sys.argv[1])
output = model(**tokenizer("A stock checkpoint, loaded by stock code.", return_tensors="pt"))
print(f"{type(model).__name__} of {type(model).__module__}: hidden states {tuple(output.last_hidden_state.shape)}")
PYTHON

echo "== 5/5  Fine-tuning it with the stock Trainer"
"$bin/python" examples/make_task.py "$OUT/task.jsonl" --dataset "$DATASET"
"$bin/python" examples/04_finetune.py "$OUT" "$OUT/task.jsonl" --max_steps "${STEPS:-180}" --out "$OUT/finetuned"

cat <<END

Done. In $OUT:
  config.json, model.safetensors, tokenizer.json   a stock checkpoint: AutoModel.from_pretrained("$OUT")
  README.md, run.json                              its model card, and all that was measured
  loss.png                                         the loss curve
  checkpoint-*/                                    the training model, to go on from

Next:
  train longer     BUDGET=20min bash examples/quickstart.sh
  your own text    DATASET=my_texts/ bash examples/quickstart.sh
  a method         .venv/bin/effpt methods
                   .venv/bin/effpt pretrain tiny --model.num_hidden_layers 4 --methods.stacking '{}' --training.output_dir out/stacked
  what it is worth .venv/bin/effpt evaluate $OUT --tasks loss,$OUT/task.jsonl
  which pays       .venv/bin/effpt compare tiny layerdrop_tiny --model.num_hidden_layers 4 --budget 2min --out out/comparison
  publish          .venv/bin/effpt push $OUT YOUR_NAME/MODEL
END
