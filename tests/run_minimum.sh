#!/usr/bin/env bash
# Runs the tests of what meets transformers with the oldest one that is supported; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/setup_venv.sh
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
# all the other versions are those of constraints.txt
cat tests/constraints-minimum.txt <(grep -vE '^(transformers|huggingface_hub)==' constraints.txt) > "$constraints"
setup_venv .venv-min "$constraints" dev
# What else there is sees nothing of it, or no more than these.
OMP_NUM_THREADS=1 .venv-min/bin/python -m pytest -q -n 2 tests/unit/{models,training,hub} tests/unit/test_pretraining.py \
    tests/unit/evaluation/test_finetune.py tests/unit/methods/test_selection_run.py "$@"
