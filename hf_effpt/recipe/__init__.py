"""Recipes: everything that a pre-training run is given, as one small YAML file.

- `recipe`: loads, checks and saves a recipe.
- `file`: finds a recipe file and reads its YAML.
- `overrides`: applies command-line flags.
- `sections`: turns a section's plain values into its dataclass.
- `settings`: declares the `model` and `data` sections, and lists all sections.
- `meanings`: explains every setting, from docstrings.
"""
