"""Samples of what a run has learned: words it fills into held-out sentences, and the nearest neighbours of some words.

python examples/17_what_it_learned.py out
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_effpt.evaluation.held_out_text import held_out_text

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", type=Path, help="the folder of a finished run that predicts masked tokens")
parser.add_argument("--text", help="held-out text, by default that of the run")
parser.add_argument("--sentences", type=int, default=5, help="number of sentences, and of words (default 5)")
args = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(args.run)
model = AutoModelForMaskedLM.from_pretrained(args.run).eval()
rows = held_out_text(args.run, tokenizer, args.text, tokenizer.model_max_length).rows
pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
# A word begins with "Ġ" in a BPE vocabulary, and goes on with "##" in a WordPiece one.
begins = "Ġ" if any(piece.startswith("Ġ") for piece in pieces) else ""
is_word = [piece.startswith(begins) and piece[len(begins) :].isalpha() and len(piece) > 3 for piece in pieces]
goes_on = [piece[:1].isalpha() if begins else piece.startswith("##") for piece in pieces]

print("Held-out sentences, with the word that was there and what the model would put:")
shown = 0
for row in rows.select(range(0, len(rows), max(1, len(rows) // (4 * args.sentences)))):
    ids = [token for token in row["input_ids"] if token not in tokenizer.all_special_ids][:24]
    places = [
        place for place in range(8, len(ids) - 4)
        if is_word[ids[place]] and not goes_on[ids[place + 1]]
    ]  # fmt: skip
    if not places or shown == args.sentences:
        continue
    shown, place = shown + 1, places[len(places) // 2]
    original, masked = ids[place], [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
    with torch.no_grad():
        inputs = torch.tensor([[tokenizer.cls_token_id, *masked, tokenizer.sep_token_id]])
        at = (inputs[0] == tokenizer.mask_token_id).nonzero()[0, 0]
        best = model(input_ids=inputs).logits[0, at].topk(5).indices.tolist()
    answers = ", ".join(tokenizer.decode([token]).strip() for token in best)
    rank = " (right)" if original == best[0] else " (among them)" if original in best else ""
    print(f"  … {tokenizer.decode(masked)} …\n      was {tokenizer.decode([original]).strip()}; put {answers}{rank}")

print("Words whose vectors are nearest:")
table = torch.nn.functional.normalize(model.get_input_embeddings().weight.detach()[: len(tokenizer)], dim=1)
words = torch.tensor([token for token in range(len(tokenizer)) if is_word[token]])
for token in words[torch.linspace(len(words) // 50, len(words) // 3, args.sentences).long()]:
    near = words[(table[words] @ table[token]).topk(6).indices].tolist()
    print(
        f"  {tokenizer.decode([token]).strip()}: {', '.join(tokenizer.decode([other]).strip() for other in near[1:])}"
    )
