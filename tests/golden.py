"""Ten fixed tiny runs of every objective and method, and the hash of the weights that each ends with.

A change of the inside of the package must not move a bit of them. Hashes hold for one kind of processor and one torch:

    python -m tests.golden --write golden.json    # before a change
    python -m tests.golden --check golden.json    # after it

`tests/golden.json` was written before the package was rearranged. What the compression comes to was written again when
its importance became a mean over rows; the FLOPs of compression and LiGO, when those of their own losses were counted
on a copy; and the hash with notes, when kinds of tokens became numbers of 64 bits.
`tests/invariant/test_golden.py` checks it where it holds.
"""

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from hf_effpt.training.flops import FlopCounter
from hf_effpt.training.reference_time_table import this_system
from tests import tiny

# name -> objective, methods, dropout
RUNS: dict[str, tuple[str, dict[str, dict], float]] = {
    "mlm, stacking, LayerDrop": ("mlm", {"stacking": {"depth": 1, "at": [0.3, 0.7]}, "layerdrop": {"p": 0.4}}, 0.1),
    "mlm, layer skipping": ("mlm", {"layerskip": {"target": 0.4}}, 0.1),
    "mlm, EarlyBERT": ("mlm", {"earlybert": {"max_search_steps": 0.15, "every": 1, "window": 2}}, 0.0),
    "electra_15, lottery": ("electra_15", {"lottery": {"sparsity": 0.6, "rounds": 3}}, 0.0),
    "mlm, compression": (
        "mlm",
        {"compress": {"depth": 3, "head_keep": 0.5, "distill": 1.0, "at": 0.4, "rounds": 2, "until": 0.7}},
        0.1,
    ),
    "mlm, selection": (
        "mlm",
        {"selection": {"strategy": "perceptron_ensemble", "keep": 0.5, "start": 0.0, "end": 1.0, "interrupt": 3}},
        0.1,
    ),
    "electra, notes, selection": (
        "electra",
        {
            "tnf": {"k": 2, "min_count": 5, "max_count": 7},
            "selection": {"strategy": "least_confidence", "keep": 0.5, "start": 0.0, "end": 1.0, "interrupt": 0},
        },
        0.1,
    ),
    "replace_mlm, LiGO": ("replace_mlm", {"stacking": {"operator": "ligo_depth", "depth": 2, "at": [0.5]}}, 0.0),
    "all_tokens_mlm, progressive layer dropping": (
        "all_tokens_mlm",
        {"layerdrop": {"p": 0.8, "rate": "pld", "heads": 0.3}},
        0.1,
    ),
    "mcbert, supermask": ("mcbert", {"lottery": {"learn": "supermask", "signs": "keep_sign", "rescale": True}}, 0.1),
}


WRITTEN = Path(__file__).with_name("golden.json")


def system() -> str:
    """The processor, its vector instructions and the torch that hashes hold for."""
    return f"{this_system(torch.device('cpu'))}, {torch.backends.cpu.get_cpu_capability()}"


def run(name: str, folder: Path) -> dict[str, Any]:
    """The hash of the weights and buffers that a run ends with, its losses, tokens and FLOPs."""
    objective, methods, dropout = RUNS[name]
    trainer = tiny.trainer(
        folder, methods, objective=objective, dropout=dropout, gradient_accumulation_steps=2, save_strategy="no",
        counter=FlopCounter(),
    )  # fmt: skip
    trainer.train()
    digest = hashlib.sha256()
    for key, tensor in sorted(trainer.model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "weights": digest.hexdigest(),
        "losses": losses,
        "tokens": trainer.clock.tokens,
        "flops": trainer.clock.flops,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="FILE", help="run all and write what they come to")
    action.add_argument("--check", type=Path, metavar="FILE", help="run all and compare with what was written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # each step is logged
        found = {name: run(name, Path(folder) / str(place)) for place, name in enumerate(RUNS)}
    if args.write:
        content = {"system": system(), "runs": found}
        args.write.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return
    written = json.loads(args.check.read_text(encoding="utf-8"))["runs"]
    changed = [name for name in RUNS if found[name] != written[name]]
    for name in RUNS:
        print(f"{name}: {'CHANGED' if name in changed else 'equal'} {found[name]['weights'][:12]}")
    sys.exit(bool(changed))


if __name__ == "__main__":
    main()
