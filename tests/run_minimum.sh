#!/usr/bin/env bash
# Runs the unit tests with the oldest transformers that is supported; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/setup_venv.sh
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
# all the other versions are those of constraints.txt
cat tests/constraints-minimum.txt <(grep -vE '^(transformers|huggingface_hub)==' constraints.txt) > "$constraints"
setup_venv .venv-min "$constraints" dev
OMP_NUM_THREADS=1 .venv-min/bin/python -m pytest -q -n 2 tests/unit "$@"
