"""Measures the cost of a training step of an encoder with 8 of 12 heads and 60 % of the neurons, against all of them.

    python examples/benchmark_width.py --out model_cards/results/benchmark_width.json

Forward, backward and AdamW of the layers alone, as in `benchmark_depth.py`. The arms run in one process and take
turns, one step each. A ratio is the median over the rounds, with the lower and upper quartile. Besides: the FLOPs of
both passes, with eager attention, whose operations the counter sees, and the bytes that are saved for the backward
pass. `in search` has all heads and neurons, and gates that learn which of them to keep.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import time
from pathlib import Path

import torch
from benchmark_depth import Given, flops, saved_bytes
from torch import Tensor

from hf_effpt import EffptBertConfig, EffptBertModel
from hf_effpt.core.gates import WidthGates
from hf_effpt.core.ticket import draw
from hf_effpt.core.width import cut_width, widths_of

VOCABULARY, SEED, FFN_KEEP = 512, 1, 0.6
SHAPES = {  # layers, hidden size, heads, heads kept, tokens a row, rows a batch
    "4x768, rows of 128 tokens": (4, 768, 12, 8, 128, 8),
    "4x512, rows of 128 tokens": (4, 512, 8, 5, 128, 16),
}
WHOLE, SEARCH, EVEN, UNEVEN = ARMS = (
    "all heads and neurons", "in search", "heads and neurons cut, layers alike", "the same, neurons by a global rank",
)  # fmt: skip


class Arm:
    """Encoder with its optimizer and the seconds of its steps."""

    def __init__(self, kind: str, shape: str) -> None:
        layers, hidden, heads, kept, length, rows = SHAPES[shape]
        torch.manual_seed(SEED)
        config = EffptBertConfig(
            vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=4 * hidden, max_position_embeddings=length, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.model = EffptBertModel(config, add_pooling_layer=False).train()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.embeddings = Given(torch.randn(rows, length, hidden))
        if kind == SEARCH:
            gates = WidthGates(self.model)
            gates.attach(self.model)
            gates.on = True
        if kind in (EVEN, UNEVEN):
            cut_width(self.model, self.ticket(layers, heads, kept, 4 * hidden, spread=kind == UNEVEN))
        self.model.to(self.device)
        self.ids = torch.randint(5, VOCABULARY, (rows, length), device=self.device)
        self.direction = torch.randn(rows, length, hidden, device=self.device)
        rested = {*self.model.embeddings.parameters()}
        learning = [parameter for parameter in self.model.parameters() if parameter not in rested]
        self.optimizer = torch.optim.AdamW(learning, lr=1e-4, fused=True)
        self.seconds: list[float] = []

    @staticmethod
    def ticket(layers: int, heads: int, kept: int, neurons: int, spread: bool):
        """Returns a random ticket. If `spread`, upper layers have higher scores, so that they keep more neurons."""
        generator = torch.Generator().manual_seed(SEED)
        scores = [torch.rand(neurons, generator=generator) + spread * 0.2 * layer / layers for layer in range(layers)]
        head_scores = [torch.rand(heads, generator=generator) for _ in range(layers)]
        return draw(head_scores, scores, kept, round(FFN_KEEP * layers * neurons))

    def loss(self) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            outputs = self.model(self.ids).last_hidden_state
        return (outputs.float() * self.direction).mean()

    def step(self) -> None:
        began = time.perf_counter()
        self.loss().backward()
        self.optimizer.step()
        self.model.zero_grad()
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - began)


def compare(shape: str, rounds: int) -> dict:
    arms = {kind: Arm(kind, shape) for kind in ARMS}
    for _ in range(rounds + 2):
        for arm in arms.values():
            arm.step()
    found = {}
    for kind, arm in arms.items():
        ratios = [mine / base for mine, base in zip(arm.seconds[2:], arms[WHOLE].seconds[2:], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[kind] = {
            "milliseconds": 1e3 * statistics.median(arm.seconds[2:]),
            "ratio": {"median": middle, "low": low, "high": high},
            "widths": widths_of(arm.model),
            "saved_mb": saved_bytes(arm.model, arm.loss) / 1e6,
            "gflops": flops(arm.model, arm.loss) / 1e9,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each arm (default 30)")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    args = parser.parse_args()
    results = {}
    for shape in SHAPES:
        results[shape] = compare(shape, args.rounds)
        print(shape)
        for kind, row in results[shape].items():
            ratio, share = row["ratio"], row["gflops"] / results[shape][WHOLE]["gflops"]
            print(
                f"  {kind:38} {row['milliseconds']:8.1f} ms  {row['saved_mb']:7.1f} MB  {row['gflops']:8.2f} GFLOP "
                f"({share:.3f}x)  {ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})",
                flush=True,
            )
    if args.out:
        command = shlex.join(["python", "examples/benchmark_width.py", "--rounds", str(args.rounds)])
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"command": command, **machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
