"""Damages of a checkpoint and of a run folder: files flipped, cut, emptied, removed, replaced, and added."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from hf_effpt.core.files import COMPLETE, STAGING
from hf_effpt.core.manifest import MANIFEST
from hf_effpt.hub.folders import RECIPE, checkpoints_in, step_of
from tests.faults.kills import until
from tests.faults.runs import EVERY, STEPS, Outcome, World

Harm = Callable[[Path, random.Random], None]


def flip(path: Path, draw: random.Random) -> None:
    """One bit, anywhere."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(1, len(data))])


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def reshape(path: Path, draw: random.Random) -> None:
    """JSON of another shape."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(draw.choice([[content], {"a": content}, None, "text", 3])), encoding="utf-8")


def swap(path: Path, draw: random.Random) -> None:
    """With the file of the first checkpoint of the run."""
    shutil.copyfile(checkpoints_in(path.parents[1])[0] / path.name, path)


def poison(path: Path, draw: random.Random) -> None:
    """NaN in one of the weights."""
    tensors = load_file(path)
    name = draw.choice([name for name in sorted(tensors) if name.endswith("weight")])
    tensors[name].view(-1)[draw.randrange(tensors[name].numel())] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})


def without_manifest(harm: Harm) -> Harm:
    """A harm of a checkpoint as older versions left it."""

    def both(path: Path, draw: random.Random) -> None:
        harm(path, draw)
        (path.parent / MANIFEST).unlink()

    both.__name__ = f"{harm.__name__}, and without manifest"
    return both


def add_file(folder: Path, draw: random.Random) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "more").mkdir()
    (folder / "more" / "weights.bin").write_bytes(draw.randbytes(1000))


def add_checkpoints(out: Path, draw: random.Random) -> None:
    """Folders and a file whose names are like those of checkpoints."""
    for name in ("checkpoint-last", "checkpoint-3-copy", "checkpoint-"):
        (out / name).mkdir()
    (out / "checkpoint-3.txt").write_text("mine")


def add_empty_checkpoint(out: Path, draw: random.Random) -> None:
    (out / f"checkpoint-{STEPS - 1}").mkdir()


def add_file_as_checkpoint(out: Path, draw: random.Random) -> None:
    (out / f"checkpoint-{STEPS - 1}").write_text("mine")


def add_remains(out: Path, draw: random.Random) -> None:
    """Half-written folders under the names of those that are being written."""
    (out / STAGING / f"checkpoint-{STEPS}").mkdir(parents=True)
    (out / STAGING / f"checkpoint-{STEPS}" / "optimizer.pt").write_bytes(draw.randbytes(1000))
    (out / f".{RECIPE}-abc").mkdir()


def add_complete(out: Path, draw: random.Random) -> None:
    """An empty folder under the name of an export all of whose files are written."""
    (out / COMPLETE).mkdir()


def clear_last(out: Path, draw: random.Random) -> None:
    shutil.rmtree(checkpoints_in(out)[-1])


def harm_two(out: Path, draw: random.Random) -> None:
    """The last two checkpoints."""
    for one in checkpoints_in(out)[-2:]:
        truncate(one / "model.safetensors", draw)


def harm_all(out: Path, draw: random.Random) -> None:
    for one in checkpoints_in(out):
        flip(one / "optimizer.pt", draw)


def rename_last(out: Path, draw: random.Random) -> None:
    """Names a checkpoint as if it were of a later step."""
    checkpoints_in(out)[-1].rename(out / f"checkpoint-{STEPS - 1}")


ANY: tuple[Harm, ...] = (flip, truncate, empty, remove)
OF_RUN: tuple[Harm, ...] = (
    add_file, add_checkpoints, add_empty_checkpoint, add_file_as_checkpoint, add_remains, add_complete, clear_last,
    harm_two, harm_all, rename_last,
)  # fmt: skip


def of_files(out: Path) -> list[tuple[Path, Harm]]:
    """Damages of each file of the last checkpoint of a run."""
    last, found = checkpoints_in(out)[-1], []
    for path in sorted(one for one in last.rglob("*") if one.is_file()):
        harms = [*ANY, *([reshape] if path.suffix == ".json" else [])]
        if path.suffix in (".safetensors", ".pt"):
            harms.append(swap)
        found += [(path, harm) for harm in harms]
    names = ("config.json", "model.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    found += [(last / name, without_manifest(truncate)) for name in names]
    found += [(last / name, without_manifest(reshape)) for name in ("config.json", "trainer_state.json")]
    return found


def special(out: Path) -> list[tuple[Path, Harm]]:
    """Damages of the run folder itself and of its recipe, and NaN in weights."""
    last = checkpoints_in(out)[-1]
    found = [(last / "model.safetensors", harm) for harm in (poison, without_manifest(poison))]
    return [*found, (last, add_file), *((out / RECIPE, harm) for harm in ANY), *((out, harm) for harm in OF_RUN)]


def stopped(world: World) -> Path:
    """A run folder with all checkpoints but those of the end; it is killed after its third."""
    out = world.new()
    process = world.launch(out)
    until(lambda: world.progress(out).steps > 3 * EVERY)
    process.kill()
    process.wait()
    for later in checkpoints_in(out)[3:]:
        shutil.rmtree(later)
    return out


def damages(world: World, draw: random.Random, number: int) -> list[Outcome]:
    """Damages copies of a run that was killed, half of them a file of its last checkpoint, and goes on with each."""
    whole, outcomes = stopped(world), []
    done = step_of(checkpoints_in(whole)[-1])
    folder, files = special(whole), of_files(whole)
    found = draw.sample(folder, min(len(folder), number // 2))
    for path, harm in found + draw.sample(files, min(len(files), number - len(found))):
        out, place = world.new(), path.relative_to(whole)
        shutil.copytree(whole, out)
        harm(out / place, draw)
        name = f"{'run folder' if path == whole else place}: {harm.__name__.replace('_', ' ')}"
        outcomes.append(world.go_on(out, name, done))
    return outcomes
