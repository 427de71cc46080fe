"""Export to stock Transformers, model cards, and the Hugging Face Hub.

- `export`: turns a training checkpoint into a stock model.
- `push`: uploads an exported model.
- `card`: writes the model card, with `card_losses`, `card_scores` and `card_rows` for its parts.
- `scores`: adds scores measured later to `run.json` and the card.
- `folders`: checks, lists and reads the files of model folders.
"""
