"""Takes secrets, home folders and absolute paths out of what leaves the machine.

Secrets never reach a file. Paths stay in the records of a run, which are read here again, and are left out of cards
and of everything that is uploaded.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from hf_effpt.core.files import finite

HIDDEN = "***"
SECRET_NAMES = re.compile(r"(token|api[_-]?key|password|secret)$", re.IGNORECASE)
# Access tokens of the Hugging Face Hub, and keys of Weights & Biases.
SECRETS = re.compile(r"\bhf_[A-Za-z0-9]{8,}\b|\bwandb_v\d_\w{20,}\b")
SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "CODECARBON_API_KEY", "TRACKIO_TOKEN")
# An absolute path, with spaces only within quotes; not the end of an address or of a word, as in `nats/token`.
_PATH = re.compile(r"(?<![\w.:/~\\-])(?:~|[A-Za-z]:(?=\\)|(?=/))[/\\][^\s\"'`<>|,;:()\[\]{}*]+")


def without_secrets(text: str) -> str:
    """Text with `***` for access tokens: those that look like one, and those in the environment."""
    for name in SECRET_VARIABLES:
        if len(value := os.environ.get(name, "")) >= 8:
            text = text.replace(value, HIDDEN)
    return SECRETS.sub(HIDDEN, text)


def words_without_secrets(words: Sequence[str]) -> list[str]:
    """Words of a command line with `***` for the value of each flag that is named like a secret, and for tokens."""
    kept, secret = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        kept.append(HIDDEN if secret else f"{name}={HIDDEN}" if equals and _is_secret(name) else without_secrets(word))
        secret = not equals and _is_secret(word)
    return kept


def _is_secret(flag: str) -> bool:
    return flag.startswith("-") and SECRET_NAMES.search(flag) is not None


def scrubbed(value: Any) -> Any:
    """A copy of a text, or of lists and mappings of texts, without secrets and with names in the place of paths.

    `/home/anna/corpora/german` becomes `german`. A path is absolute, and begins with a folder that this machine has.
    """
    if isinstance(value, str):
        return _PATH.sub(_name, without_secrets(value))
    if isinstance(value, dict):
        return {scrubbed(key): scrubbed(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrubbed(one) for one in value]
    return value


def _name(found: re.Match[str]) -> str:
    path = found[0]
    if path.startswith("/") and not Path("/", *PurePath(path).parts[1:2]).exists():
        return path
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or HIDDEN


def scrubbed_file(path: Path) -> bytes | None:
    """Content of a file of text for the public; `None` if nothing has to be taken out of it, or it is no text."""
    if path.suffix not in (".json", ".yaml", ".md", ".txt"):
        return None
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":  # by value, since text of JSON is escaped
        content = json.loads(text)
        public = finite(scrubbed(content))
        new = text if public == content else json.dumps(public, indent=2, ensure_ascii=False, allow_nan=False)
    else:
        new = scrubbed(text)
    return None if new == text else new.encode()
