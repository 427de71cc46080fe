"""Diagnosis of a text, a recipe or a run: what is wrong, why it matters, and the command or setting that mends it.

A check is a short pure function from facts to a [`Finding`], or `None`. Facts are small dataclasses, measured apart.

- `finding`: a finding, a diagnosis and their text.
- `text_facts`, `recipe_facts`, `run_facts`: what is measured or read; `run_record`: the record of a run.
- `text_checks`, `recipe_checks`, `course_checks`, `result_checks`, `speed_checks`: the checks.
- `advice`: which recommended flags a recipe takes.
- `doctor`: tells run, recipe and dataset apart, and runs the checks for whatever facts there are.
- `range_test`: the learning rate at which the loss falls quickest, and where it diverges.
- `loss_plot`: loss curves of runs.
"""
