"""Memory and throughput of `effpt pack`: writes text from a seed, packs it with 1 and 2 workers, kills it and goes on.

python examples/benchmark_pack.py --gigabytes 0.5 --out model_cards/results/benchmark_pack.json

Peak memory is the largest resident set of each process that the system tells of, read five times a second. Seconds of
the clock are those of an idle machine only. With `--only_killed` there is one packing, with 2 workers, killed when a
few of its tasks were done and continued. Each worker has one core.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from hf_effpt.data import facts, open_rows
from hf_effpt.data.tokenizer_training import train_tokenizer

FILES, WORDS, DOCUMENT_WORDS = 16, 50_000, 300  # 300 words a document on average
POLL_SECONDS = 0.2


def write_text(folder: Path, num_bytes: int, seed: int = 0) -> int:
    """Writes documents of words whose frequencies fall as in language (Zipf, 1935); returns the bytes."""
    draw = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwygpbvkxqjz"))
    words = np.array(["".join(draw.choice(letters, size)) for size in draw.integers(2, 11, WORDS)])
    written = 0
    for number in range(FILES):
        with (folder / f"{number:02d}.jsonl").open("w") as file:
            while written < num_bytes * (number + 1) // FILES:
                ranks = np.minimum(draw.zipf(1.2, draw.integers(20, 2 * DOCUMENT_WORDS)), WORDS) - 1
                line = json.dumps({"text": " ".join(words[ranks])}) + "\n"
                written += file.write(line)
    return written


def watched(command: list[str], cores: int, kill_after: int | None = None, rows: Path = Path()) -> dict:
    """Runs a command on so many cores and reads the peak memory and CPU seconds of its processes.

    Kills it after so many shards.
    """
    started, process = time.monotonic(), psutil.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    process.cpu_affinity(process.cpu_affinity()[:cores])  # one worker would tokenize with a thread for each core
    peaks: dict[int, float] = {}
    seconds: dict[int, float] = {}
    killed = False
    while process.poll() is None:
        for one in (process, *process.children(recursive=True)):
            try:
                status = Path(f"/proc/{one.pid}/status").read_text()
                peaks[one.pid] = int(status.partition("VmHWM:")[2].split()[0]) / 1024
                times = one.cpu_times()
                seconds[one.pid] = times.user + times.system
            except (psutil.Error, OSError, IndexError):
                continue
        if kill_after and len(list(rows.glob("logs/1_tokens/completions/*"))) >= kill_after:
            os.killpg(process.pid, signal.SIGKILL)
            killed = True
        time.sleep(POLL_SECONDS)
    process.wait()
    if process.returncode and not killed:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    workers = sorted((peak for pid, peak in peaks.items() if pid != process.pid), reverse=True)
    return {
        "peak_mb": {"main": peaks[process.pid], "workers": workers},
        "cpu_seconds": sum(seconds.values()),
        "seconds": time.monotonic() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.5], help="sizes of the text, in 10^9 bytes")
    parser.add_argument("--only_killed", action="store_true", help="leave out the packings that are not killed")
    parser.add_argument("--folder", default=None, help="folder for text and rows (default: a temporary one)")
    parser.add_argument("--out", required=True, help="file for the results")
    args = parser.parse_args()
    results = {}
    with TemporaryDirectory(dir=args.folder) as beside:
        for gigabytes in args.gigabytes:
            results[f"{gigabytes:g} GB"] = measure(Path(beside), gigabytes, args.only_killed)
            told = {"command": shlex.join(["python", "examples/benchmark_pack.py", *sys.argv[1:]]), "results": results}
            Path(args.out).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def measure(beside: Path, gigabytes: float, only_killed: bool = False) -> dict:
    """Packs so much text with 1 and 2 workers, and with 2 again that are killed once and continued."""
    text, tokenizer = beside / "text", beside / "tokenizer"
    text.mkdir()
    num_bytes = write_text(text, int(gigabytes * 1e9))
    train_tokenizer(str(text / "00.jsonl"), vocab_size=8192, out=tokenizer, max_bytes=8 * 2**20)
    found: dict = {"bytes": num_bytes, "load_at_start": os.getloadavg()[0], "cores": os.cpu_count()}
    for name, workers in (("1 worker", 1), ("2 workers", 2), ("2 workers, killed", 2)):
        if only_killed and "killed" not in name:
            continue
        rows = beside / "rows"
        command = [sys.executable, "-m", "hf_effpt.cli.main", "pack", str(text), "--out", str(rows)]
        command += ["--tokenizer", str(tokenizer), "--tasks", str(FILES), "--workers", str(workers)]
        parts = [watched(command, workers, kill_after=3, rows=rows)] if "killed" in name else []
        done = len(list(rows.glob("logs/1_tokens/completions/*")))
        parts.append(watched(command, workers))
        told = facts(open_rows(rows)["train"])
        found[name] = {
            "killed_after_tasks": done,
            "peak_mb": {
                "main": max(part["peak_mb"]["main"] for part in parts),
                "worker": max((peak for part in parts for peak in part["peak_mb"]["workers"][:workers]), default=None),
            },
            "cpu_seconds": sum(part["cpu_seconds"] for part in parts),
            "seconds": sum(part["seconds"] for part in parts),
            "rows": told["rows"], "tokens": told["tokens"], "documents": told["documents"],
            "fingerprint": told["fingerprint"],
        }  # fmt: skip
        shutil.rmtree(rows)
    shutil.rmtree(text)
    shutil.rmtree(tokenizer)
    return found


if __name__ == "__main__":
    main()
