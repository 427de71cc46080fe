"""Comparisons of pre-training recipes: paired runs of equal budget, their differences, and a report with verdicts.

experiment     `compare`: trains all arms and writes the report
sweep          `budget_sweep`: the best model size on a budget
arms           arms: recipes that differ only in what is compared
run_grid       the runs, their order, folders and plan
run_launcher   execution of the runs, one process each
run_worker     the process of one run
progress       how long the runs take, and how far they are
arm_losses     kinds and floors of losses, and which of them can be compared
statistics     intervals, paired tests, Holm's correction, verdicts
speed          speed-up to the baseline's loss
controls       the random-rows control of row selection
cost_law       the gain that row selection needs to pay
caveats        reasons against a verdict, notes on runs
summary        the content of `report.json`: runs, arms, verdicts
report_tables  tables and number formats, shared by page and Markdown
chart_series   curves and points, shared by page and pictures
markdown, page, plots  the report as Markdown, as HTML, as pictures
"""
