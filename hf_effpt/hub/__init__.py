"""Export to stock Transformers, model cards, and the Hugging Face Hub.

- `export`: turns a training checkpoint into a stock model.
- `push`: uploads an exported model.
- `card`: writes the model card, with parts from `card_parts`, and adds scores that were measured later.
- `card_settings`: what the card says that no run can know.
- `private`: takes secrets and paths out of what leaves the machine.
- `folders`: checks, lists and reads the files of model folders.
"""
