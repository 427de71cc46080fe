"""Loss curves of runs, against tokens, time and FLOPs."""

import importlib.util
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import write_atomically
from hf_effpt.core.objectives import floor_in, measured_as, objective_in
from hf_effpt.core.targets import check_file

from .run_record import entries_of, main_loss, read_record

ENDINGS = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")
AXES = {"tokens": "tokens", "seconds": "seconds of training", "flops": "FLOPs"}


def draw_losses(runs: Sequence[str | os.PathLike], out: str | os.PathLike) -> Path:
    """Draws the training and held-out losses of one or several runs against tokens, seconds and FLOPs.

    Dashed is the floor, the loss of a model that knows nothing of the context; vertical lines are events of methods.

    Args:
        runs (`Sequence`): folders of runs, finished or with a checkpoint.
        out (`str` or `os.PathLike`): the picture to write, of the kind that its ending names.

    Raises:
        EffptError: matplotlib is not installed, `out` cannot be written, a folder holds no run, or losses are of
            several kinds.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise EffptError(
            "Loss curves are drawn with matplotlib, which is not installed: `pip install 'hf_effpt[plot]'`."
        )
    from matplotlib.figure import Figure  # without pyplot, which would choose a window system

    out = check_file(out, ENDINGS)
    records = {name: read_record(Path(run)) for name, run in zip(_names(runs), runs, strict=True)}
    kinds = {(kind.per, kind.floor): objective_in(one) for one in records.values() if (kind := _kind(one))}
    if len(kinds) > 1:
        raise EffptError(
            f"The losses of these runs, of {' and '.join(kinds.values())}, have scales of their own; plot each alone."
        )
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(AXES), sharey=True), AXES.items(), strict=True):
        for number, (name, record) in enumerate(records.items()):
            _draw(axes, record, key, name, f"C{number}", events=len(records) == 1)
        for floor in sorted({round(floor, 3) for one in records.values() if (floor := floor_in(_evaluation(one)))}):
            axes.axhline(floor, linestyle="--", color="grey", linewidth=1)
        axes.set_xlabel(title)
        axes.grid(alpha=0.25, linewidth=0.6)
    per, floor_name = next(iter(kinds))
    figure.axes[0].set_ylabel(f"loss, nats a {per}")
    figure.axes[-1].plot([], [], "--", color="grey", label=floor_name)
    figure.axes[-1].plot([], [], "o", color="black", markersize=3, label="held-out loss")
    figure.axes[-1].legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, partial(figure.savefig, dpi=120))
    return out


def _draw(axes: Any, record: dict[str, Any], key: str, name: str, colour: str, events: bool) -> None:
    """Draws one run: a thin line of its training loss, points of its held-out loss."""
    entries = [entry for entry in entries_of(record) if key in entry]
    label = name.replace("$", r"\$").lstrip("_")
    axes.plot(
        [one[key] for one in entries], [main_loss(one) for one in entries], color=colour, linewidth=1, label=label
    )
    measured = [entry for entry in record.get("history") or () if entry.get("eval_loss") is not None and key in entry]
    axes.plot([one[key] for one in measured], [one["eval_loss"] for one in measured], "o", color=colour, markersize=3)
    for event in (record.get("ledger") or {}).get("events") or () if events else ():
        at = next((entry[key] for entry in entries if entry["step"] >= event["step"]), None)
        if at is not None:
            axes.axvline(at, color="C2", linewidth=0.8)
            axes.annotate(event["what"], (at, axes.get_ylim()[1]), fontsize=6, rotation=90, va="top", ha="right")


def _names(runs: Sequence[str | os.PathLike]) -> list[str]:
    """Shortest names that tell the runs apart: their paths below the folder that all are in."""
    folders = [Path(run).absolute() for run in runs]
    if len(set(folders)) < len(folders):
        raise EffptError("A run is given twice; name each once.")
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    return [str(folder.relative_to(common)) for folder in folders]


def _evaluation(record: dict[str, Any]) -> dict[str, Any]:
    return record.get("evaluation") or {}


def _kind(record: dict[str, Any]) -> Any:
    return measured_as(objective_in(record), _evaluation(record))
