#!/usr/bin/env bash
# Runs the tests of what meets transformers with the oldest one that is supported; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/setup_venv.sh
setup_venv .venv constraints.txt dev,plot
# All other packages are those of the first environment, which this one is laid over.
wanted=$(cat .venv/installed-* tests/constraints-minimum.txt)
if [[ ! -f .venv-min/installed || $(<.venv-min/installed) != "$wanted" ]]; then
    rm -rf .venv-min
    python3 -m venv --without-pip .venv-min
    .venv/bin/python -m pip --python .venv-min/bin/python install -qq --no-compile --no-deps \
        --requirement tests/constraints-minimum.txt
    below=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    over=$(.venv-min/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "import site; site.addsitedir('$below')" > "$over/below.pth"
    echo "$wanted" > .venv-min/installed
fi
# What calls transformers or the hub client: classes that are loaded, saved and found by Auto classes, arguments and
# checkpoints of the Trainer, export and push; a run of every method and objective, resumed. What a method computes, what
# pairs of methods do to each other, what a failing disk leaves, and the reading of data, recipes and results, do not
# depend on the release, and the full suite tests them with the newest.
unset PYTHONDONTWRITEBYTECODE
OMP_NUM_THREADS=1 .venv-min/bin/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder -m "not slow" \
    -k "not of_a_pair and not a_pair_with and not previous_checkpoint_whole and not charged and not compiled and not variant and not no_activations" \
    tests/contract/test_runs.py::Test{WithoutDropout,ModernBert,OtherObjectives} \
    tests/unit/models/test_{pruned_bert,classes,electra,electra_tables}.py \
    tests/unit/training/test_{trainer,checkpoints,arguments,stock_arguments,best_and_trials,schedule}.py \
    tests/unit/hub/test_{stock_export,electra_export,push_to_hub}.py \
    tests/unit/{test_pretraining,evaluation/test_finetune,evaluation/test_finetune_steps}.py "$@"
