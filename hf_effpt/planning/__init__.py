"""Plans: what a run on this machine will take and give, before it is made.

- `plan`: `plan` proposes a recipe for a text and a budget; `dry_run` forecasts a given recipe.
- `pilot`: the process that trains for some seconds; `measuring`: starts it; `measurement`: what it found.
- `text_of_pilot`: the text, or a sample of it, that is trained on.
- `forecasting`: time, tokens, passes, energy and loss of a budget; `law`: the loss, by the runs in `evidence.json`.
- `proposing`: size, batch and learning rate of a budget, and why; `writing`: the recipe as YAML.
- `report`: the forecast as text.
"""
