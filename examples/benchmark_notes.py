"""Measures time and memory of the look-up and the update of a dictionary of notes (TNF).

    python examples/benchmark_notes.py --out model_cards/results/benchmark_notes.json

The rows are made-up words. As large a share of them as rare words have in real text is in the dictionary of 200,000.
Times are medians of five calls. `whole` is all that notes add to a training step: look-up, blending and update.
"""

import argparse
import json
import platform
import statistics
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from hf_effpt import TNF, EffptBertConfig, EffptBertModel
from hf_effpt.methods.tnf.dictionary import NoteDictionary
from hf_effpt.methods.tnf.lookup import hashes_of, words_of

ENTRIES, VOCABULARY, LENGTH, SHARE = 200_000, 32_768, 512, 0.007  # of the words, 0.65 to 0.75 % are rare


class Text:
    """Random text. One half of the vocabulary begins words, the other half continues them."""

    mask, pad, specials = 4, 0, range(5)
    continues = np.arange(VOCABULARY) >= VOCABULARY // 2

    def __init__(self, rows: int, generator: torch.Generator):
        first = torch.randint(5, VOCABULARY // 2, (rows, LENGTH), generator=generator)
        more = torch.randint(VOCABULARY // 2, VOCABULARY, (rows, LENGTH), generator=generator)
        self.ids = torch.where(torch.rand(rows, LENGTH, generator=generator) < 0.3, more, first)
        self.ids[:, 0], self.ids[:, -1] = 2, 3


def dictionary(text: Text, width: int, generator: torch.Generator) -> NoteDictionary:
    """Returns a dictionary with notes of some words of `text` and of many others."""
    from hf_effpt.methods.tnf.lookup import kinds_of

    notes = NoteDictionary(TNF(entries=ENTRIES), width, VOCABULARY)
    notes.kinds.copy_(kinds_of(text, VOCABULARY))
    words = words_of(text.ids, notes.kinds)
    there = hashes_of(text.ids, words)[words.whole_BL].unique()
    there = there[torch.randperm(len(there), generator=generator)[: int(SHARE * len(there))]]
    others = torch.randint(-(2**62), 2**62, (ENTRIES - len(there),), generator=generator)
    notes.keys.copy_(torch.cat([there, others]).sort().values)
    notes.draw(0)
    return notes


def measure(block, device: str) -> dict[str, float]:
    """Returns the median seconds of five calls and their peak extra memory in MB."""
    process, peak, running = psutil.Process(), [0], threading.Event()
    running.set()

    def watch() -> None:
        while running.is_set():
            peak[0] = max(peak[0], process.memory_info().rss)
            time.sleep(0.001)

    block()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device == "cuda" else process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        block()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    running.clear()
    watcher.join()
    most = torch.cuda.max_memory_allocated() if device == "cuda" else peak[0]
    return {"seconds": statistics.median(seconds), "extra_mb": max(0, most - before) / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 768])
    parser.add_argument("--tokens", type=int, default=131_072, help="tokens of a micro-batch (default 131,072)")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = {}
    for width in args.widths:
        generator = torch.Generator().manual_seed(0)
        text = Text(args.tokens // LENGTH, generator)
        notes = dictionary(text, width, generator).to(device)
        config = EffptBertConfig(
            vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
        backbone = EffptBertModel(config).to(device).train()  # whose outputs are made up, too
        ids = text.ids.to(device)
        hidden = torch.randn(*ids.shape, width, generator=generator).to(device)

        def look_up(backbone=backbone, ids=ids, notes=notes):
            notes.begin(backbone, (ids,), {})
            return notes._reading

        def whole(backbone=backbone, hidden=hidden, notes=notes, look_up=look_up):
            look_up()
            notes.blend(hidden)
            notes.finish(backbone, (), (hidden,))

        reading = look_up()
        found = results[f"width {width}"] = {
            "hits": int(reading.found.used_C.sum()),
            "dictionary_mb": notes.vectors.numel() * 4 / 1e6,
            "look-up": measure(look_up, device),
            "update": measure(lambda notes=notes, hidden=hidden, at=reading: notes.write(hidden, at), device),
            "whole": measure(whole, device),
        }
        print(f"width {width}: {found['hits']:,} hits, dictionary of {found['dictionary_mb']:.0f} MB", flush=True)
        for part in ("look-up", "update", "whole"):
            print(f"  {part:8} {found[part]['seconds'] * 1e3:7.0f} ms, {found[part]['extra_mb']:6.0f} MB more")
    if args.out:
        command = f"python examples/benchmark_notes.py --tokens {args.tokens}"
        machine = {"device": torch.cuda.get_device_name() if device == "cuda" else platform.machine()}
        machine |= {"threads": torch.get_num_threads(), "entries": ENTRIES, "tokens": args.tokens}
        args.out.write_text(json.dumps({"command": command, **machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
