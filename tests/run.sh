#!/usr/bin/env bash
# Runs the tests in a virtual environment of their own; arguments go to pytest: tests/run.sh tests/unit -k recipe
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/setup_venv.sh
setup_venv .venv constraints.txt dev,plot
# Two workers with one thread each are quicker here than threads that share two cores; a file is for one of them, since
# its tests share what takes long to make, and the files with the longest tests come first.
unset PYTHONDONTWRITEBYTECODE  # each process that tests start would compile what it imports
OMP_NUM_THREADS=1 exec .venv/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder "$@"
