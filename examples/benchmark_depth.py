"""Measures the cost of a training step of a 12-layer encoder in which fewer layers run or learn, against all 12.

    python examples/benchmark_depth.py --out model_cards/results/benchmark_depth.json

Forward, backward and AdamW of the layers alone: random hidden states replace the embeddings and a random direction
replaces the head, so that neither hides the cost of layers. All arms run in one process and take turns, one step each,
so that a busy machine favours none. A ratio is the median over the rounds with the lower and upper quartile, and the
mean, which counts if the layers that run are sampled for every step. Besides: the bytes that are saved for the
backward pass, and the FLOPs of both passes; their means if they differ between steps.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from hf_effpt import EffptBertConfig, EffptBertModel
from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import set_order

LAYERS, VOCABULARY, SEED = 12, 512, 1
SHAPES = {  # hidden size, tokens a row, rows a batch
    "12x128, rows of 64 tokens": (128, 64, 32),
    "12x256, rows of 128 tokens": (256, 128, 32),
}
HALF_CLOSED = {"layerskip": {"target": 0.5, "after": 0.0}}
# number of layers, methods, True if the layers that run are sampled for every step
ARMS = {
    "all 12 layers": (12, {}, False),
    "stacking, 6 layers": (6, {}, False),
    "stacking, 3 layers": (3, {}, False),
    "layerdrop, p = 0.5": (12, {"layerdrop": {"p": 0.5}}, True),
    "layerskip, half of the gates closed": (12, HALF_CLOSED, True),
    **{
        f"append_top, {depth} layers, 3 of them learn": (
            depth, {"stacking": {"operator": "append_top", "depth": 3}}, False
        )
        for depth in (6, 9, 12)
    },
}  # fmt: skip


class Given(nn.Module):
    """Replacement of the embeddings: fixed hidden states that have a gradient, as those of embeddings have."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = nn.Parameter(hidden)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.hidden.clone()  # not a leaf, like the sum of embeddings


class Arm:
    """Encoder with its optimizer, its batches, and the seconds of its steps."""

    def __init__(self, depth: int, methods: dict, hidden: int, length: int, rows: int) -> None:
        torch.manual_seed(SEED)
        config = EffptBertConfig(
            vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=LAYERS, num_attention_heads=hidden // 64,
            intermediate_size=4 * hidden, max_position_embeddings=length, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, methods=methods,
        )  # fmt: skip
        self.model = EffptBertModel(config, add_pooling_layer=False).train()
        set_order(self.model, range(depth))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.embeddings = Given(torch.randn(rows, length, hidden))
        if "layerskip" in methods:
            open_half(self.model.gates)
        self.model.to(self.device)
        self.ids = torch.randint(5, VOCABULARY, (4, rows, length), device=self.device)
        self.direction = torch.randn(rows, length, hidden, device=self.device)
        rested = {*self.model.embeddings.parameters()}
        learning = [parameter for parameter in self.model.parameters() if parameter not in rested]
        self.optimizer = torch.optim.AdamW(learning, lr=1e-4, fused=True)
        self.seconds: list[float] = []

    def loss(self, number: int) -> Tensor:
        for method in self.model.methods:
            method.schedule(self.model, RunContext(number, 0.1, SEED))
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            outputs = self.model(self.ids[number % len(self.ids)]).last_hidden_state
        loss = (outputs.float() * self.direction).mean()
        for method in self.model.methods:
            if (penalty := method.penalty(self.model)) is not None:
                loss = loss + penalty
        return loss

    def step(self, number: int) -> None:
        began = time.perf_counter()
        self.loss(number).backward()
        self.optimizer.step()
        self.model.zero_grad()
        for method in self.model.methods:
            method.advance(self.model, RunContext(number + 1, 0.1))
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - began)


def saved_bytes(model: nn.Module, loss_of: Callable[[], Tensor]) -> int:
    """Returns the bytes saved for the backward pass, each storage once, without the parameters."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of()
    del loss
    return sum(size for pointer, size in kept.items() if pointer not in known)


def flops(model: Any, loss_of: Callable[[], Tensor]) -> int:
    """Returns the FLOPs of forward and backward with eager attention, whose operations the counter sees."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        loss_of().backward()
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    return counter.get_total_flops()


def open_half(gates: Any) -> None:
    """Sets each gate to open with probability one half for every row."""
    nn.init.zeros_(gates.out.weight)
    nn.init.zeros_(gates.out.bias)


def compare(shape: str, rounds: int) -> dict:
    arms = {name: Arm(depth, methods, *SHAPES[shape]) for name, (depth, methods, _) in ARMS.items()}
    for number in range(rounds + 3):
        for arm in arms.values():
            arm.step(number)
    first, *_ = arms.values()
    found = {}
    for name, arm in arms.items():
        numbers = range(3, rounds + 3) if ARMS[name][2] else [3]
        ratios = [mine / base for mine, base in zip(arm.seconds[3:], first.seconds[3:], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        losses = [partial(arm.loss, number) for number in numbers]
        found[name] = {
            "milliseconds": 1e3 * statistics.median(arm.seconds[3:]),
            "ratio": {"median": middle, "low": low, "high": high, "mean": statistics.fmean(ratios)},
            "drawn": ARMS[name][2],
            "saved_mb": statistics.fmean(saved_bytes(arm.model, partial(arm.loss, number)) for number in numbers)
            / 1e6,
            "gflops": statistics.fmean(flops(arm.model, loss) for loss in losses) / 1e9,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="which models")
    parser.add_argument("--rounds", type=int, default=60, help="steps of each arm (default 60)")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    args = parser.parse_args()
    results = {}
    for shape in args.shapes:
        results[shape] = compare(shape, args.rounds)
        print(shape)
        for name, row in results[shape].items():
            ratio = row["ratio"]
            print(
                f"  {name:38} {row['milliseconds']:8.1f} ms  {row['saved_mb']:7.1f} MB  {row['gflops']:7.2f} GFLOP  "
                f"{ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f}), mean {ratio['mean']:.2f}x",
                flush=True,
            )
    if args.out:
        command = shlex.join(
            ["python", "examples/benchmark_depth.py", "--rounds", str(args.rounds), "--shapes", *args.shapes]
        )
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"command": command, **machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
