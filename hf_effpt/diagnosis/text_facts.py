"""Facts of a text, measured on a bounded number of its documents."""

import re
import shlex
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_effpt.core.errors import NoText
from hf_effpt.data.corpus import Corpus, open_corpus
from hf_effpt.data.document_meter import content_keys, document_sizes

MAX_DOCUMENTS, MAX_BYTES, MAX_FILES = 20_000, 16 * 2**20, 64
# Characters of failed decoding: the replacement character, control characters, and UTF-8 read as Latin-1.
GARBLED = re.compile("[\ufffd\x00-\x08\x0e-\x1b\x7f-\x9f]|â€|Ã[\u0080-\u00bf]")
# Scripts that are written together, by the first word of the Unicode names of their letters.
TOGETHER = {"HIRAGANA": "CJK", "KATAKANA": "CJK"}


@dataclass(frozen=True, eq=False)
class TextFacts:
    """Facts of the documents that were looked at.

    Args:
        name (`str`): the dataset.
        num_bytes (`int`, *optional*): UTF-8 bytes of the whole text; `None` if unknown.
        words_N (`np.ndarray`): words of each document, int64 of shape `(documents,)`.
        bytes_N (`np.ndarray`): UTF-8 bytes of each document, of the same shape.
        doubles (`int`): documents that equal an earlier one up to case and white space.
        garbled (`float`): share of the characters that tell of text decoded wrongly.
        scripts (`dict[str, float]`): share of the letters by script, the largest first.
        cut (`str`, *optional*): how documents were cut from `.txt` files.
        validation (`str`): the dataset of the validation text, if there is one.
        held_out (`int`): documents of it that were looked at.
        leaked (`int`): how many of them equal a training document that was looked at.
        whole (`bool`): `True` if these are all training documents.
        blank (`tuple[str, ...]`): files without text, of those that were looked at.
    """

    name: str
    num_bytes: int | None
    words_N: np.ndarray
    bytes_N: np.ndarray
    doubles: int
    garbled: float
    scripts: dict[str, float]
    cut: str | None = None
    validation: str = ""
    held_out: int = 0
    leaked: int = 0
    whole: bool = True
    blank: tuple[str, ...] = ()

    @property
    def documents(self) -> int:
        """Number of documents looked at."""
        return len(self.words_N)

    def training_with(self, *flags: str) -> str:
        """The command that trains on the text with other settings."""
        return " ".join(["effpt pretrain RECIPE --data.dataset", shlex.quote(self.name), *flags])

    def figures(self) -> dict[str, str]:
        """Figures of the text that was read, as text by name."""
        looked = f"{self.documents:,} documents, {self.bytes_N.sum() / 1e6:.1f} MB looked at"
        size = "" if self.num_bytes is None or self.whole else f" of about {self.num_bytes / 1e6:,.0f} MB"
        low, middle, high = np.quantile(self.words_N, [0.1, 0.5, 0.9])
        scripts = ", ".join(f"{name.lower()} {share:.1%}" for name, share in self.scripts.items() if share > 0.001)
        lengths = f"{middle:,.0f} words in the middle one; a tenth have under {low:,.0f}, a tenth over {high:,.0f}"
        figures = {
            "text": f"{looked}{', all there are' if self.whole else size}",
            "documents": lengths,
            "doubles": f"{self.doubles:,} equal ones; near ones and languages are not looked for",
            "scripts": scripts or "no letters",
        }
        if self.held_out:
            figures["validation"] = (
                f"{self.held_out:,} documents looked at, {self.leaked:,} of them in the training text"
            )
        return figures


def text_facts(corpus: Corpus, validation: Corpus | None = None) -> TextFacts:
    """Measures a training text, and the validation text beside it.

    Raises the `EffptError` of text that cannot be read, or is empty.
    """
    texts, whole, blank = first_documents(corpus)
    keys = content_keys(texts)
    apart = content_keys(first_documents(validation)[0]) if validation is not None else np.zeros(0, np.uint64)
    characters: Counter[str] = Counter()
    for text in texts:
        characters.update(text)
    return TextFacts(
        name=corpus.name,
        num_bytes=corpus.num_bytes,
        words_N=np.array([len(text.split()) for text in texts]),
        bytes_N=document_sizes(texts),
        doubles=len(keys) - len(np.unique(keys)),
        garbled=sum(len(GARBLED.findall(text)) for text in texts) / max(1, characters.total()),
        scripts=scripts_of(characters),
        cut=corpus.documents,
        validation="" if validation is None else validation.name,
        held_out=len(apart),
        leaked=int(np.isin(apart, keys).sum()),
        whole=whole,
        blank=tuple(blank),
    )


def first_documents(corpus: Corpus) -> tuple[list[str], bool, list[str]]:
    """The first documents of each file, as many as the bounds allow; `True` if these are all; names of blank files.

    Raises an `EffptError` if no file has text in it.
    """
    sources, whole = [corpus], True
    blank: list[str] = []
    if 1 < len(corpus.files) and not corpus.members:
        files = corpus.files[:: -(-len(corpus.files) // MAX_FILES)]
        settings: dict[str, Any] = {"text_column": corpus.text_column, "documents": corpus.documents}
        sources = [open_corpus(path, **settings) for path in files if path.stat().st_size] or sources
        blank += [str(path) for path in files if not path.stat().st_size]
        whole = len(files) == len(corpus.files)
    texts: list[str] = []
    for source in sources:
        number, left = MAX_DOCUMENTS // len(sources), MAX_BYTES // len(sources)
        try:
            for text in source.texts():
                if number == 0 or left <= 0:
                    whole = False
                    break
                texts.append(text)
                number, left = number - 1, left - len(text.encode())
        except NoText:
            if source is corpus:
                raise
            blank.append(source.name)
    if not texts:
        raise NoText(f"The dataset {corpus.name!r} has no text in it: all files looked at are blank.")
    return texts, whole, sorted(blank)


def scripts_of(characters: Counter[str]) -> dict[str, float]:
    """Shares of the letters by script, the largest first; a script is the first word of a letter's Unicode name."""
    found: Counter[str] = Counter()
    for character, number in characters.items():
        if character.isalpha():
            script = unicodedata.name(character, "UNKNOWN").split()[0]
            found[TOGETHER.get(script, script)] += number
    total = max(1, found.total())
    return {script: number / total for script, number in found.most_common()}
