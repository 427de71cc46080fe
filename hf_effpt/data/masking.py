"""Masked-language-modelling batches whose masks are a pure function of seed, epoch and example."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.core.objectives import OBJECTIVES
from hf_effpt.core.random import fold, mix
from hf_effpt.data.vocabulary import continuations, special_ids

# Low bits of a sort key that hold the position, so that keys of a row never tie.
POSITION_BITS = 16
UNMASKABLE = np.uint64(1 << 63)
# Rows with a smaller share of maskable tokens (padding, short texts) are masked at the rate, not to the fixed count.
FULL_SHARE = 0.75
# Keys of a batch, besides its tokens, that masking it again needs.
KEPT = ("example_id", "epoch", "document_ids", "attention_mask")


class DataCollatorForMaskedLM:
    """Masks a fixed number of tokens in each row; as in BERT (Devlin et al., 2019) 80 % of them become the mask token,
    10 % a random token and 10 % stay unless `shares` says otherwise.

    Masks and replacements are a pure function of `seed`, the example's epoch and id, and the position: equal in every
    batch, order, worker and resumed run. Special tokens and padding are never masked.

    Attributes:
        keyed (`bool`): If `True`, batches also hold `example_id` and `epoch` of each row. `False` at first.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): Has a pad, cls, sep and mask token.
        mlm_probability (`float`, *optional*, defaults to 0.15): Share of each row that is masked.
        whole_word (`bool`, *optional*, defaults to `False`): If `True`, masks all tokens of a word together; only the
            last word chosen is cut to the count.
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
        self._continues = continuations(tokenizer) if whole_word else None

    def masked_count(self, sequence_length: int) -> int:
        """Number of `masked_positions` in each row of this length."""
        return max(1, round(self.mlm_probability * sequence_length))

    def __call__(
        self, examples: Mapping[str, np.ndarray] | Sequence[Mapping], token_rates: np.ndarray | None = None
    ) -> dict[str, torch.Tensor]:
        """Builds a batch.

        Args:
            examples: Arrays `input_ids` and, optionally, `document_ids` of shape `(batch_size, sequence_length)`,
                `example_id` and `epoch` of shape `(batch_size,)`. Or a list with one dict per example of `input_ids`
                and, optionally, the others and `attention_mask`, which is padded to the longest. An example without
                an id is identified by its tokens; the default epoch is 0.
            token_rates (`np.ndarray` of shape `(vocab_size,)`, *optional*): Positive relative rates at which tokens
                are masked; the number masked stays the same. Tokens are drawn one by one without replacement, in
                proportion to their rates; a whole word has the rate of its first token. Equal rates have no effect.
                A model's vocabulary may have more rows than the tokenizer has tokens.

        Returns:
            int64 tensors: `input_ids` with masks and `labels` (-100 where nothing is predicted) of shape
            `(batch_size, sequence_length)`; `masked_positions` of shape `(batch_size, masked_count)`, ascending in
            each row: all positions with a label, filled up with others; `document_ids` if given; `attention_mask` if
            there is padding; `example_id` and `epoch` of shape `(batch_size,)` if `keyed` is `True`.

        Raises:
            EffptError: a token id is not in the tokenizer's vocabulary, or a rate is missing or not above 0.
        """
        rates = self._checked(token_rates)
        if isinstance(examples, Mapping):
            batch = {name: np.asarray(values) for name, values in examples.items()}
            lengths = _lengths(batch)
        else:
            batch, lengths = self._padded(examples)
        extra = {name: batch[name].astype(np.int64) for name in ("attention_mask", "document_ids") if name in batch}
        masked = self._mask(batch, lengths, rates) | extra
        return {name: torch.from_numpy(values) for name, values in masked.items()}

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
        arrays = {name: batch[name].cpu().numpy() for name in KEPT if name in batch}
        labels = batch["labels"].cpu().numpy()
        return arrays | {"input_ids": np.where(labels != -100, labels, batch["input_ids"].cpu().numpy())}

    def _mask(
        self, batch: dict[str, np.ndarray], lengths: np.ndarray, rates: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        original = batch["input_ids"].astype(np.int64)
        size, length = original.shape
        if original.min() < 0 or original.max() >= len(self._special):
            raise EffptError(
                f"The batch holds token ids {original.min()}..{original.max()}, but the tokenizer's vocabulary has "
                f"{len(self._special)} tokens. Pack the text with the tokenizer that masks it."
            )
        maskable = ~self._special[original]
        if "attention_mask" in batch:
            maskable &= batch["attention_mask"] != 0
        epoch, example = np.broadcast_to(batch.get("epoch", 0), size), self._examples(batch, original, lengths)
        noise = fold(fold(self.seed, epoch, example)[:, None], np.arange(length))
        order = self._order(noise, original, maskable, rates)

        count = self.masked_count(length)
        chosen = np.argpartition(order, count - 1, axis=1)[:, :count]
        chosen.sort(axis=1)
        rank = np.take_along_axis(order, chosen, axis=1).argsort(axis=1).argsort(axis=1)
        labelled = rank < self._quota(maskable, lengths)[:, None]

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

    def _checked(self, rates: np.ndarray | None) -> np.ndarray | None:
        """Validated rates, one for each token of the tokenizer; `None` if all are equal."""
        if rates is None:
            return None
        rates = np.asarray(rates, np.float64)
        wrong = rates.ndim != 1 or len(rates) < len(self._special)
        if wrong or not (np.isfinite(rates) & (rates > 0)).all():
            raise EffptError(
                f"token_rates of shape {rates.shape}, from {rates.min(initial=np.inf)} to {rates.max(initial=-np.inf)}"
                f", must be one finite number above 0 for each of the tokenizer's {len(self._special)} tokens."
            )
        rates = rates[: len(self._special)]
        return None if (rates == rates[0]).all() else rates

    def _quota(self, maskable: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Number of tokens to mask in each row: the fixed count, in a row of little text at most the rate's share."""
        available = maskable.sum(axis=1)
        basis = np.where(available >= FULL_SHARE * lengths, lengths, available)
        return np.minimum(np.maximum(np.rint(self.mlm_probability * basis).astype(np.int64), 1), available)

    def _examples(self, batch: dict[str, np.ndarray], original: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Ids of the examples; hashes of their tokens if there are none."""
        if "example_id" in batch:
            return batch["example_id"]
        position = np.arange(original.shape[1])
        words = np.where(position < lengths[:, None], fold(original, position), np.uint64(0))
        return words.sum(axis=1, dtype=np.uint64)

    def _order(
        self, noise: np.ndarray, original: np.ndarray, maskable: np.ndarray, rates: np.ndarray | None
    ) -> np.ndarray:
        """Sort keys of the positions, all different; positions with the smallest are masked first."""
        position, leading = np.arange(original.shape[1]), original
        if self._continues is not None:
            inside = self._continues[original] & maskable
            word_start = np.maximum.accumulate(np.where(inside, 0, position), axis=1)
            noise = np.take_along_axis(noise, word_start, axis=1)
            # A word cut at the start of the row starts, by its noise, at the special token before it.
            first = word_start + ~np.take_along_axis(maskable, word_start, axis=1)
            leading = np.take_along_axis(original, np.minimum(first, position[-1]), axis=1)
        if rates is not None:
            noise = _races(noise, rates[leading])
        order = (noise >> np.uint64(1)) & ~np.uint64((1 << POSITION_BITS) - 1)
        order |= position.astype(np.uint64)
        return np.where(maskable, order, order | UNMASKABLE)

    def _padded(self, examples: Sequence[Mapping]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Examples as arrays padded on the right, and their lengths."""
        lengths = np.array([len(example["input_ids"]) for example in examples])
        inside = np.arange(lengths.max()) < lengths[:, None]
        batch = {}
        for name, filler in (("input_ids", self._ids.pad), ("document_ids", 0), ("attention_mask", 0)):
            if name in examples[0]:
                batch[name] = np.full(inside.shape, filler, np.int64)
                batch[name][inside] = np.concatenate([np.asarray(example[name]) for example in examples])
        attention = batch.pop("attention_mask", inside.astype(np.int64))
        if not attention.all():
            batch["attention_mask"] = attention
        for name in ("example_id", "epoch"):
            if name in examples[0]:
                batch[name] = np.array([int(example[name]) for example in examples])
        return batch, lengths


def _lengths(batch: dict[str, np.ndarray]) -> np.ndarray:
    """Lengths of the rows without trailing padding."""
    size, length = batch["input_ids"].shape
    if "attention_mask" not in batch:
        return np.full(size, length)
    return ((batch["attention_mask"] != 0) * np.arange(1, length + 1)).max(axis=1)


def _races(noise: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Replaces uniform 64-bit `noise` by keys of which those of higher rates are more often among the smallest.

    Exponential arrival times at these rates draw without replacement in proportion to the rates, as do the keys of
    Efraimidis and Spirakis (2006). They rise with `noise`, so near-equal rates change few choices.
    """
    below_one = ((noise >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    # Floating-point numbers above 0 are in the order of their bits.
    return (-np.log1p(-below_one) / rates).view(np.uint64) << np.uint64(1)
