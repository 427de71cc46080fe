"""Taking notes on the fly: rare words carry a note of the contexts they have been seen in (Wu et al., 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import nn

from hf_effpt.core.context import RunContext
from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method, Paper
from hf_effpt.core.settings import Beside, Count, CountOrZero, In, When, check_settings

from .counting import bounds_for, choose_words, count_words
from .dictionary import NoteDictionary
from .lookup import kinds_of

Scale = Literal["none", "match"]
AtGrowth = Literal["keep", "reset", "fast"]
Use = Literal["pretraining", "frozen", "updating"]

# `at_growth: fast`: factor of `gamma`, and its duration relative to the number of steps before the growth.
FASTER, FOR_A_SHARE = 3.0, 0.1


@dataclass
class TNF(Method):
    """Keeps a note for every rare word, blends it in where the word occurs and updates it there (Wu et al., 2021).

    A note is a moving average of the encoder's outputs around the occurrences of its word. It is no parameter and has
    no gradient. The export is the stock model without notes.

    Args:
        k (`int`, *optional*, defaults to 16): number of tokens on either side of a word that its note averages.
        gamma (`float`, *optional*, defaults to 0.1): weight, in (0, 1], of a new occurrence in the moving average.
        weight (`float`, *optional*, defaults to 0.5): weight, in [0, 1), of the note in the input; the paper's lambda.
        min_count (`int`, *optional*): least occurrences, in the training rows, of a word with a note. By default
            2.9e-8 of all words, the paper's share, but at least 5.
        max_count (`int`, *optional*): most occurrences of a word with a note. By default 1.44e-7 of all words, but at
            least 5 times `min_count`.
        max_entries (`int`, *optional*, defaults to 200000): most words with a note; the more frequent ones come first.
        scale (`str`, *optional*, defaults to `"none"`): `"match"` scales a note to the norm of the embedding it is
            blended with; the paper does not.
        at_growth (`str`, *optional*, defaults to `"keep"`): treatment of notes when another method changes the
            architecture: `"keep"`; `"reset"`, initialise them again; or `"fast"`, triple `gamma` for a tenth of the
            number of steps before.
        use (`str`, *optional*, defaults to `"pretraining"`): `"pretraining"` reads and writes notes in training only.
            `"frozen"` and `"updating"` are for fine-tuning a model that has notes, and read them in evaluation, too;
            only the latter writes them in training. Such a model has no stock export.
        entries (`int`, *optional*): number of words in the dictionary; written by the run after it has counted them.

    Raises:
        EffptError: if a value is outside its range.
    """

    name: ClassVar[str] = "tnf"
    summary: ClassVar[str] = "Blends notes of the contexts of rare words into their embeddings; the export has none."
    example: ClassVar[Mapping[str, Any]] = {"k": 2, "min_count": 5, "max_count": 7}
    paper: ClassVar[Paper] = Paper.of(
        "@inproceedings{wu2021taking, title={Taking Notes on the Fly Helps Language Pre-Training}, "
        "author={Wu, Qiyu and Xing, Chen and Li, Yatao and Ke, Guolin and He, Di and Liu, Tie-Yan}, "
        "booktitle={ICLR}, year={2021}}",
        arxiv="2008.01466",
    )

    k: CountOrZero = 16
    gamma: Annotated[float, In("(0, 1]", "at 0 no note would ever change")] = 0.1
    weight: Annotated[float, In("[0, 1)", "at 1 rare words would have no embedding")] = 0.5
    min_count: Count | None = None
    max_count: Count | None = None
    max_entries: Count = 200_000
    scale: Annotated[Scale, When(weight=In("(0, 1)"))] = "none"
    at_growth: Annotated[AtGrowth, Beside("stacking", "compress", "earlybert", "lottery")] = "keep"
    use: Use = "pretraining"
    entries: Count | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.min_count is not None and self.max_count is not None and self.max_count < self.min_count:
            raise EffptError(
                f"`tnf.max_count` is {self.max_count}, below `tnf.min_count`, {self.min_count}: no word can be that "
                "rare; raise the one or lower the other."
            )
        if self.use != "pretraining" and self.entries is None:
            raise EffptError(
                f"`tnf.use` is `{self.use}`, which is for fine-tuning a model that has notes, with the stock Trainer: "
                "load the configuration of a training checkpoint, set `use` in its `methods['tnf']`, and pass it to "
                "`from_pretrained` with that checkpoint."
            )

    @property
    def departures(self) -> str:
        return (
            "how words are counted and notes begin, the clipping of windows and the order of repeats are ours, since "
            "the paper's code is not public and its text was read in write-ups."
        )

    def against_next_tokens(self, until: float) -> str:
        return (
            "gives each token of a word the note of the whole word, and so tells the tokens that are to be predicted"
        )

    def bind(self, config: Any, others: Mapping[str, Method]) -> None:
        dropped = getattr(others.get("layerdrop"), "p", 0.0)
        if dropped >= 0.5:
            raise EffptError(
                f"`tnf` writes notes from the layers that run, and `layerdrop.p` {dropped} leaves out half of them or "
                "more; set it below 0.5, or use `stacking` instead of `layerdrop`."
            )

    def prepare(self, backbone: Any, context: RunContext) -> None:
        text = context.text  # refuses a run without text, whether or not words are to be counted
        self._check_export()
        if self.entries is None:
            self._count(backbone, text, context.seed)
        elif not backbone.notes.vectors.any():
            raise EffptError(
                f"`tnf.entries` is {self.entries}, but the run itself writes it; leave it out, and set "
                "`tnf.max_entries` to limit the dictionary."
            )

    def _check_export(self) -> None:
        if self.use != "pretraining":
            raise EffptError(
                f"`tnf.use` is `{self.use}`, which is for fine-tuning a model that has notes, with the stock Trainer. "
                "It reads notes in evaluation, which no stock model does; keep it with `save_pretrained`, or leave "
                "`use` out to train it here or to export it without notes."
            )

    def _count(self, backbone: Any, text: Any, seed: int) -> None:
        """Counts the words of `text` and adds a dictionary of the rare ones to `backbone`."""
        kinds = kinds_of(text, backbone.config.vocab_size)
        keys, counts = count_words(text.batches(), kinds)
        least, most = bounds_for(int(counts.sum()), self.min_count, self.max_count)
        rare = torch.from_numpy(choose_words(keys, counts, least, most, self.max_entries))
        self.min_count, self.max_count, self.entries = least, most, len(rare)
        # A checkpoint's dictionary is built from these settings.
        backbone.config.methods = {**backbone.config.methods, self.name: self.settings()}
        self.inject(backbone)
        backbone.notes.keys.copy_(rare)
        backbone.notes.kinds.copy_(kinds)
        backbone.notes.draw(seed)
        backbone.notes.to(backbone.get_input_embeddings().weight.device)

    def inject(self, backbone: Any) -> None:
        if self.entries is not None:
            config = backbone.config
            NoteDictionary(self, config.hidden_size, config.vocab_size).attach(backbone)

    def schedule(self, backbone: Any, context: RunContext) -> None:
        events = [event for event in backbone.config.events or [] if not event.get("past")]
        if self.entries is None or not events or self.at_growth == "keep":
            return
        # Time since the last change by another method, from the configuration, so that a resumed run does the same.
        changed = events[-1]["step"]
        if self.at_growth == "reset" and changed == context.step:
            backbone.notes.draw((context.seed * 1_000_003 + context.step) % 2**63)
        if self.at_growth == "fast":
            recent = context.step - changed < max(1.0, FOR_A_SHARE * changed)
            backbone.notes.gamma = min(1.0, FASTER * self.gamma) if recent else self.gamma

    def eject(self, backbone: Any) -> None:
        self._check_export()
        if self.entries is not None:
            backbone.notes.detach(backbone)
        super().eject(backbone)

    def metrics(self, backbone: Any, sums: Mapping[str, float]) -> dict[str, float]:
        """`tnf_hits`, share of words with a note; `tnf_ratio`, mean norm of the note's part over the embedding's;
        `tnf_drift`, mean relative change of a written note; `tnf_overflow`, unwritten words for lack of space, if any.
        """
        if not sums.get("tnf_words"):
            return {}
        found = {"tnf_hits": sums["tnf_hits"] / sums["tnf_words"]}
        for name, per in (("tnf_ratio", "tnf_read"), ("tnf_drift", "tnf_written")):
            if sums.get(per):
                found[name] = sums[name] / sums[per]
        if sums["tnf_overflow"]:
            found["tnf_overflow"] = sums["tnf_overflow"]
        return found

    def cost_signature(self, backbone: nn.Module) -> str:
        return "" if self.entries is None else f"tnf {self.entries} k {self.k}"
