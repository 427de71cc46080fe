"""Masked-language-modelling batches whose masks are a pure function of seed, epoch and example."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.core.objectives import OBJECTIVES
from hf_effpt.core.random import fold, mix
from hf_effpt.data.vocabulary import special_ids
from hf_effpt.data.words import word_edges

# Low bits of a sort key that hold the position, so that keys of a row never tie.
POSITION_BITS = 16
UNMASKABLE = np.uint64(1 << 63)
# Columns of one number per token that are passed on to the model; and of one per example.
PER_TOKEN = ("attention_mask", "document_ids", "token_type_ids", "position_ids")
PER_EXAMPLE = ("example_id", "epoch")


class DataCollatorForMaskedLM:
    """Masks a fixed share of the tokens of each example; as in BERT (Devlin et al., 2019) 80 % of them become the mask
    token, 10 % a random token and 10 % stay unless `shares` says otherwise.

    Masks and replacements are a pure function of `seed`, the example's epoch and id, and the place among its tokens:
    equal in every batch, order, worker and resumed run, and on whichever side and by whomever the example is padded.
    Special tokens and padding are never masked. Padding has 0 in `document_ids` and `attention_mask`; without either
    it is the padding token.

    Attributes:
        keyed (`bool`): If `True`, batches also hold `example_id` and `epoch` of each row. `False` at first.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): Has a pad, cls, sep and mask token.
        mlm_probability (`float`, *optional*, defaults to 0.15): Share of the tokens of each example, special ones
            counted, that are masked: rounded, at least one, and at most all that can be masked.
        whole_word (`bool`, *optional*, defaults to `False`): If `True`, masks all tokens of a word together; only the
            last word chosen is cut to the count. Words are those of [`WordEdges`], within one document.
        seed (`int`, *optional*, defaults to 0): Seed of the masks.
        shares (`tuple[float, float, float]`, *optional*): Shares, to the hundredth, of the chosen tokens that become
            the mask token, become a random token, and stay; by default BERT's, in a Trainer those of the objective.

    Raises:
        EffptError: the tokenizer lacks a special token, `mlm_probability` is no share, `shares` do not add up to 1, or
            the tokenizer does not mark words.
    """

    def __init__(
        self,
        tokenizer,
        mlm_probability: float = 0.15,
        whole_word: bool = False,
        seed: int = 0,
        shares: tuple[float, float, float] | None = None,
    ):
        if not 0 < mlm_probability < 1:
            raise EffptError(f"mlm_probability={mlm_probability} must be a share between 0 and 1, such as 0.15.")
        if shares is not None and (len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6):
            raise EffptError(
                f"shares={shares} must be three shares that add up to 1: tokens that become the mask token, become a "
                "random one, and stay, such as (0.8, 0.1, 0.1)."
            )
        self.tokenizer, self.mlm_probability, self.whole_word = tokenizer, mlm_probability, whole_word
        self.seed, self.shares, self.keyed = seed, shares, False
        self._ids = special_ids(tokenizer)
        self._special = np.zeros(len(tokenizer), bool)
        self._special[tokenizer.all_special_ids] = True
        self._ordinary = np.flatnonzero(~self._special)
        # A padding token that is also a separator is told from it by the other columns only.
        self._padding = -1 if self._ids.pad in (self._ids.cls, self._ids.sep) else self._ids.pad
        self._words = word_edges(tokenizer) if whole_word else None

    @property
    def separator(self) -> int:
        """Id of the token between documents."""
        return self._ids.sep

    def masked_count(self, sequence_length: int) -> int:
        """Number of `masked_positions` in each row of this length, padding included."""
        return max(1, round(self.mlm_probability * sequence_length))

    def __call__(
        self, examples: Mapping[str, np.ndarray] | Sequence[Mapping], token_rates: np.ndarray | None = None
    ) -> dict[str, torch.Tensor]:
        """Builds a batch.

        Args:
            examples: Arrays of shape `(batch_size, sequence_length)`: `input_ids` and, optionally, `attention_mask`,
                `document_ids`, `token_type_ids` and `position_ids`; and of shape `(batch_size,)`, optionally,
                `example_id` and `epoch`. Or a list with one dict of these per example, of any length, which is padded
                on the right to the longest. Other columns are left out. An example without an id is identified by
                its tokens; the default epoch is 0.
            token_rates (`np.ndarray` of shape `(vocab_size,)`, *optional*): Positive relative rates at which tokens
                are masked; the number masked stays the same. Tokens are drawn one by one without replacement, in
                proportion to their rates; a whole word has the rate of its first token. Equal rates have no effect.
                A model's vocabulary may have more rows than the tokenizer has tokens.

        Returns:
            int64 tensors: `input_ids` with masks and `labels` (-100 where nothing is predicted) of shape
            `(batch_size, sequence_length)`; `masked_positions` of shape `(batch_size, masked_count)`, ascending in
            each row: all positions with a label, filled up with others; the other columns of one number per token, if
            given; `attention_mask` if there is padding that no column tells, or in a list; `example_id` and `epoch`
            of shape `(batch_size,)` if `keyed` is `True`.

        Raises:
            EffptError: there is no token that can be masked, unless `example_id` names rows of a run, of whose batches
                one may be without; a token id is not in the tokenizer's vocabulary; a column is missing in some
                examples, or not of one number per token; a rate is missing or not above 0.
        """
        rates = None if token_rates is None else self._checked(token_rates)
        batch = self.read(examples)
        extra = {name: batch[name].astype(np.int64) for name in PER_TOKEN if name in batch}
        masked = self._mask(batch, rates) | extra
        return {name: torch.from_numpy(values) for name, values in masked.items()}

    def read(self, examples: Mapping[str, np.ndarray] | Sequence[Mapping]) -> dict[str, np.ndarray]:
        """Columns of a batch before it is masked, as arrays; `examples` and errors are those of a call.

        `input_ids` are int64; `attention_mask` is there if padding is that no other column tells. Further columns are
        `real`, `True` where there is no padding, and `maskable`, `True` at those of them that are not special.
        """
        batch = _arrays(examples) if isinstance(examples, Mapping) else self._padded(examples)
        original = batch["input_ids"] = batch["input_ids"].astype(np.int64)
        if original.min() < 0 or original.max() >= len(self._special):
            raise EffptError(
                f"The batch holds token ids {original.min()}..{original.max()}, but the tokenizer's vocabulary has "
                f"{len(self._special)} tokens. Pack the text with the tokenizer that masks it."
            )
        given = [batch[name] != 0 for name in ("attention_mask", "document_ids") if name in batch]
        real = np.logical_and.reduce(given) if given else original != self._padding
        if not given and not real.all():  # the model does not know padding by its token
            batch["attention_mask"] = real
        return {**batch, "real": real, "maskable": real & ~self._special[original]}

    @staticmethod
    def original(batch: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Undoes the masking of a batch; returns arrays that can be masked again.

        Raises an `EffptError` if the batch has no `example_id` and `epoch`, as batches of a `keyed` collator have.
        """
        if "example_id" not in batch or "epoch" not in batch:
            raise EffptError(
                f"The batch has {', '.join(sorted(batch))}, but masking it again needs `example_id` and `epoch`; set "
                "`keyed = True` on the collator that makes it."
            )
        arrays = {name: batch[name].cpu().numpy() for name in (*PER_TOKEN, *PER_EXAMPLE) if name in batch}
        labels = batch["labels"].cpu().numpy()
        return arrays | {"input_ids": np.where(labels != -100, labels, batch["input_ids"].cpu().numpy())}

    def _mask(self, batch: dict[str, np.ndarray], rates: np.ndarray | None) -> dict[str, np.ndarray]:
        original, real, maskable = batch["input_ids"], batch["real"], batch["maskable"]
        size, length = original.shape
        place = real.cumsum(axis=1) - 1  # among the tokens of the example; on padding it has no meaning
        example = batch["example_id"] if "example_id" in batch else _hashes(original, real, place)
        epoch = np.broadcast_to(batch.get("epoch", 0), size)
        noise = fold(fold(self.seed, epoch, example)[:, None], place)
        if not maskable.any() and "example_id" not in batch:  # one of many batches of a run may be without text
            raise EffptError(
                f"None of the {real.sum()} tokens of the batch can be masked, since all are special, so that there is "
                "nothing to learn. Leave out examples without text."
            )
        joined = None if self._words is None else self._joined(original, maskable, real, batch.get("document_ids"))
        order = _order(noise, original, maskable, joined, rates)

        count = self.masked_count(length)
        chosen = np.argpartition(order, count - 1, axis=1)[:, :count]
        chosen.sort(axis=1)
        rank = np.take_along_axis(order, chosen, axis=1).argsort(axis=1).argsort(axis=1)
        labelled = rank < self._quota(maskable, real)[:, None]

        labels = np.full((size, length), -100)
        tokens = np.take_along_axis(original, chosen, axis=1)
        np.put_along_axis(labels, chosen, np.where(labelled, tokens, -100), axis=1)
        draw = mix(np.take_along_axis(noise, chosen, axis=1))
        tens, ones = (draw >> np.uint64(32)) % np.uint64(10), (draw >> np.uint64(32)) // np.uint64(10) % np.uint64(10)
        hundredth = tens * np.uint64(10) + ones
        other = self._ordinary[draw % np.uint64(len(self._ordinary))]
        masked, random, _ = self.shares or OBJECTIVES["mlm"].corruption
        kept = np.where(hundredth < round(100 * (masked + random)), other, tokens)
        replaced = np.where(hundredth < round(100 * masked), self._ids.mask, kept)
        corrupted = original.copy()
        np.put_along_axis(corrupted, chosen, np.where(labelled, replaced, tokens), axis=1)
        masked = {"input_ids": corrupted, "labels": labels, "masked_positions": chosen}
        keys = {"example_id": example.astype(np.int64), "epoch": epoch.astype(np.int64)}
        return masked | keys if self.keyed else masked

    def _checked(self, rates: np.ndarray) -> np.ndarray | None:
        """Validated rates, one for each token of the tokenizer; `None` if all are equal."""
        rates = np.asarray(rates, np.float64)
        wrong = rates.ndim != 1 or len(rates) < len(self._special)
        if wrong or not (np.isfinite(rates) & (rates > 0)).all():
            raise EffptError(
                f"token_rates of shape {rates.shape}, from {rates.min(initial=np.inf)} to {rates.max(initial=-np.inf)}"
                f", must be one finite number above 0 for each of the tokenizer's {len(self._special)} tokens."
            )
        rates = rates[: len(self._special)]
        return None if (rates == rates[0]).all() else rates

    def _quota(self, maskable: np.ndarray, real: np.ndarray) -> np.ndarray:
        """Number of tokens to mask in each row, as in BERT: the rate's share of all its tokens, at least one."""
        wanted = np.rint(self.mlm_probability * real.sum(axis=1)).astype(np.int64)
        return np.minimum(np.maximum(wanted, 1), maskable.sum(axis=1))

    def _joined(
        self, original: np.ndarray, maskable: np.ndarray, real: np.ndarray, documents: np.ndarray | None
    ) -> np.ndarray:
        """`True` at tokens that are masked together with the token before, if whole words are."""
        joined = self._words.joined(original) & maskable
        joined[:, 1:] &= real[:, :-1]
        if documents is not None:
            joined[:, 1:] &= documents[:, 1:] == documents[:, :-1]
        return joined

    def _padded(self, examples: Sequence[Mapping]) -> dict[str, np.ndarray]:
        """Examples as arrays padded on the right."""
        columns = [name for name in ("input_ids", *PER_TOKEN, *PER_EXAMPLE) if any(name in each for each in examples)]
        for name in columns:
            if not all(name in each for each in examples):
                raise EffptError(f"Only some examples of the batch have `{name}`; give it to all of them or to none.")
        if "input_ids" not in columns:
            return _checked_shapes({})
        lengths = np.array([len(example["input_ids"]) for example in examples])
        inside = np.arange(lengths.max(initial=0)) < lengths[:, None]
        batch, fillers = {}, {"input_ids": self._ids.pad, "token_type_ids": self.tokenizer.pad_token_type_id}
        for name in columns:
            values = [np.asarray(example[name]) for example in examples]
            if name in PER_EXAMPLE:
                batch[name] = np.array([int(value) for value in values])
                continue
            shapes = [value.shape for value in values]
            if wrong := [place for place, shape in enumerate(shapes) if shape != (lengths[place],)]:
                raise EffptError(
                    f"`{name}` of example {wrong[0]} of the batch has the shape {shapes[wrong[0]]}, but must have one "
                    f"number for each of its {lengths[wrong[0]]} tokens."
                )
            batch[name] = np.full(inside.shape, fillers.get(name, 0), np.int64)
            batch[name][inside] = np.concatenate(values)
        if "attention_mask" not in batch:
            batch["attention_mask"] = inside if "document_ids" in batch else batch["input_ids"] != self._padding
        if batch["attention_mask"].all():
            del batch["attention_mask"]
        return _checked_shapes(batch)


def _arrays(examples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of a batch that masking needs, or passes on, as arrays."""
    columns = [name for name in ("input_ids", *PER_TOKEN, *PER_EXAMPLE) if name in examples]
    try:
        batch = {name: np.asarray(examples[name]) for name in columns}
    except ValueError as error:
        raise EffptError(
            f"The rows of the batch's arrays ({', '.join(columns)}) differ in length; pad them, or pass a list with "
            "one dict per example."
        ) from error
    return _checked_shapes(batch)


def _checked_shapes(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a batch; raises an `EffptError` unless it has tokens, and one number per token in each such column."""
    shape = batch["input_ids"].shape if "input_ids" in batch else ()
    if len(shape) != 2 or not all(shape):
        raise EffptError(
            f"A batch needs rows of tokens, `input_ids`, but here they have the shape {shape}: there is nothing to "
            "mask. Leave out examples without text."
        )
    for name in PER_TOKEN:
        if name in batch and batch[name].shape != shape:
            raise EffptError(
                f"`{name}` of the batch has the shape {batch[name].shape}, but must have one number for each token: "
                f"{shape}."
            )
    return batch


def _hashes(original: np.ndarray, real: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Hash of the tokens of each row, without padding."""
    return np.where(real, fold(original, place), np.uint64(0)).sum(axis=1, dtype=np.uint64)


def _order(
    noise: np.ndarray, original: np.ndarray, maskable: np.ndarray, joined: np.ndarray | None, rates: np.ndarray | None
) -> np.ndarray:
    """Sort keys of the positions, all different; positions with the smallest are masked first."""
    position, leading = np.arange(original.shape[1]), original
    if joined is not None:
        word_start = np.maximum.accumulate(np.where(joined, 0, position), axis=1)
        noise = np.take_along_axis(noise, word_start, axis=1)
        # A word cut at the start of the row starts, by its noise, at the special token before it.
        first = word_start + ~np.take_along_axis(maskable, word_start, axis=1)
        leading = np.take_along_axis(original, np.minimum(first, position[-1]), axis=1)
    if rates is not None:
        noise = _races(noise, rates[leading])
    order = (noise >> np.uint64(1)) & ~np.uint64((1 << POSITION_BITS) - 1)
    order |= position.astype(np.uint64)
    return np.where(maskable, order, order | UNMASKABLE)


def _races(noise: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Replaces uniform 64-bit `noise` by keys of which those of higher rates are more often among the smallest.

    Exponential arrival times at these rates draw without replacement in proportion to the rates, as do the keys of
    Efraimidis and Spirakis (2006). They rise with `noise`, so near-equal rates change few choices.
    """
    below_one = ((noise >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    # Floating-point numbers above 0 are in the order of their bits.
    return (-np.log1p(-below_one) / rates).view(np.uint64) << np.uint64(1)
