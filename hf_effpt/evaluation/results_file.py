"""File of evaluation results, which an interrupted call, or a call for other tasks, adds to."""

import hashlib
from pathlib import Path
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, write_json

WEIGHTS = ("*.safetensors", "*.bin", "config.json", "tokenizer.json")


class Record:
    """Results of one model in one file.

    Results in the file `path` are kept if they are of the same `model`, a folder. Raises an `EffptError` if the file
    holds something else.
    """

    def __init__(self, path: Path, model: Path) -> None:
        self.path = path
        self.weights = weights_of(model)
        before = _read(path)
        self._before = before if before.get("weights", self.weights) == self.weights else {}
        # Results of fine-tuning seeds by key; `evaluate` adds to them.
        self.finished: dict[str, dict[str, Any]] = dict(self._before.get("finished") or {})

    def save(self, result: dict[str, Any], partial: bool = False) -> None:
        """Writes a result of `evaluate`; scores of other names are kept, all else is replaced."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scores = {**(self._before.get("scores") or {}), **result["scores"]}
        content = {**self._before, **result, "scores": scores, "weights": self.weights, "finished": self.finished}
        write_json(self.path, {**content, "partial": partial})


def weights_of(model: Path) -> str:
    """Hash of a checkpoint's weights and tokenizer."""
    total = hashlib.sha256()
    for path in sorted(path for pattern in WEIGHTS for path in model.glob(pattern)):
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return total.hexdigest()[:32]


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise EffptError(f"{path} is there and holds no results ({error}); name another file by `--out`.") from error
    if not isinstance(content, dict) or not isinstance(content.get("scores", {}), dict):
        raise EffptError(f"{path} is there and holds no results of a model; name another file by `--out`.")
    return content
