"""Phases of a run: longer rows, larger batches, other shares of masked tokens or next tokens, by the clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd
from typing import Any

from hf_effpt.core.anatomy import encoders_of, rotary_base_of, set_rotary_base
from hf_effpt.core.clock import value_at
from hf_effpt.core.errors import EffptError
from hf_effpt.core.objectives import objective_of
from hf_effpt.core.row_method import candidates, row_methods
from hf_effpt.data.packed_rows import PackedRows, facts

from .batch_ramp import batch_sizes
from .checks import check_length, check_size
from .next_tokens import CLM, MLM, check_next_tokens, learned_until


@dataclass(frozen=True, eq=False)
class Phase:
    """Part of a run that trains on rows of one length, in batches of one size, by one share of masked tokens or none.

    Micro-batches of longer rows have fewer rows, so that they have as many tokens. A phase on the rows of the one
    before goes on where that has ended.

    Args:
        since (`float`): fraction of the clock, in [0, 1), from which it runs; 0 for the first.
        rows (`Dataset`): its rows, from [`pack`], of the same text as in the other phases; the same object in phases
            of one length.
        rotary_base (`float`, *optional*): base of the rotary positions of full attention from then on, as ModernBERT
            raises it for its long rows; by default it stays.
        mlm_probability (`float`, *optional*): share of the tokens to predict; by default the collator's.
        batch_size (`int`, *optional*): rows of a micro-batch of one process, were they as long as those of the first
            phase; by default `per_device_train_batch_size`.
        objective (`str`, *optional*): `clm`, with which each token predicts the next one and sees no later ones
            (Gisserot-Boukhlef et al., 2025), or `mlm`, masked tokens; by default what the model is made for. The last
            phase of a run has masked tokens, as the exported model.
    """

    since: float
    rows: Any
    rotary_base: float | None = None
    mlm_probability: float | None = None
    batch_size: int | None = None
    objective: str | None = None

    @property
    def is_causal(self) -> bool:
        """`True` if next tokens are learned."""
        return self.objective == CLM

    @property
    def length(self) -> int:
        """Tokens per row."""
        return PackedRows(self.rows).sequence_length


def phases_of(train_dataset: Any) -> list[Phase]:
    """Phases of a run on `train_dataset`: those that it lists, or one."""
    if isinstance(train_dataset, Sequence) and train_dataset and isinstance(train_dataset[0], Phase):
        return list(train_dataset)
    return [Phase(0.0, train_dataset)]


def phases_in(
    splits: Any,
    lengths: Mapping[float, int],
    bases: Mapping[float, float],
    rates: Mapping[float, float],
    objectives: Mapping[float, str],
) -> list[Phase]:
    """Phases of the `splits` of [`pack_lengths`], by the fractions of the clock from which they have these lengths.

    `bases` are rotary bases by some of these fractions; `rates`, shares of masked tokens, and `objectives` go by
    fractions of their own.
    """
    names = dict(zip(lengths, ["train", *(f"train_{length}" for length in list(lengths.values())[1:])], strict=True))
    phases = []
    for since in sorted({*lengths, *rates, *objectives}):
        rate = value_at(rates, since) if len(rates) > 1 else None
        objective = value_at(objectives, since) if len(objectives) > 1 else None
        rows = splits[value_at(names, since)]
        phases.append(Phase(since, rows, bases.get(since), rate, objective=objective))
    return phases


def ramped(phases: Sequence[Phase], args: Any) -> list[Phase]:
    """Phases with the micro-batches of `batch_ramp` of the [`EffptTrainingArguments`], each cut where these grow."""
    if not (sizes := batch_sizes(args)):
        return list(phases)
    cuts = sorted({*sizes, *(one.since for one in phases)})
    return [replace(phases[phase_at(phases, cut)], since=cut, batch_size=value_at(sizes, cut)) for cut in cuts]


def facts_of_phases(phases: Sequence[Phase]) -> dict[str, Any]:
    """Facts of the rows of a run: those of the first, and in `phases` some of each later."""
    told = ("sequence_length", "rows", "tokens", "fingerprint")
    later = [
        {"since": one.since} | {name: facts(one.rows)[name] for name in told} | _changed(one) for one in phases[1:]
    ]
    own = _changed(phases[0])
    first = {name: own[name] for name in ("batch_size", "objective") if name in own}
    return facts(phases[0].rows) | first | ({"phases": later} if later else {})


def _changed(phase: Phase) -> dict[str, Any]:
    """What a phase has of its own, apart from its rows and what it changes in the model."""
    rate = None if phase.is_causal else phase.mlm_probability
    own = {"mlm_probability": rate, "batch_size": phase.batch_size, "objective": phase.objective}
    return {name: value for name, value in own.items() if value is not None}


def phase_at(phases: Sequence[Phase], fraction: float) -> int:
    """Number of the phase, from 0, that runs at a fraction of the clock."""
    return max(number for number, phase in enumerate(phases) if phase.since <= fraction or not number)


def apply_phase(phase: Phase, backbone: Any) -> None:
    """Gives the model, and its generator if there is one, what the phase changes in it."""
    for encoder in encoders_of(backbone):
        if phase.rotary_base is not None and phase.rotary_base != rotary_base_of(encoder.config):
            set_rotary_base(encoder, phase.rotary_base)


def position_in(totals: Mapping[str, Any] | None) -> dict[str, int]:
    """Position of the rows of a run, by the totals in a checkpoint: arguments of `TrainingStream.begin`."""
    return {"rows_seen": 0} if totals is None else {"rows_seen": totals["rows"], "phase": totals.get("phase", 0)}


def identity_of_run(trainer: Any) -> str | None:
    """Fingerprint and number of the rows of all phases of an [`EffptTrainer`]; `None` if not packed."""
    phases = trainer.stream.phases
    if len(phases) == 1:
        return identity_of(trainer.train_dataset)
    return "; ".join(f"from {one.since:g}: {identity_of(one.rows)}{_own(one)}" for one in phases)


def identity_of(dataset: Any) -> str | None:
    """Fingerprint of corpus, tokenizer and packing, and the number of rows; `None` if not packed."""
    try:
        return f"{facts(dataset)['fingerprint']}, {len(dataset)} rows"
    except (EffptError, AttributeError):
        return None


def _own(phase: Phase) -> str:
    masked = "" if phase.mlm_probability is None else f", masked {phase.mlm_probability:g}"
    masked = ", next tokens" if phase.is_causal else masked
    return masked + ("" if phase.batch_size is None else f", batches of {phase.batch_size}")


def check_rows(phases: Sequence[Phase], model: Any, args: Any, masks: bool) -> None:
    """Raises `EffptError` if the rows of a run do not fill a step, or its phases do not suit its model or each other.

    `args` are the [`EffptTrainingArguments`]; `masks` is `True` if a collator of packed rows makes the batches.
    """
    if phases[0].rows is None:
        return
    check_size(phases[0].rows, args, model.methods)
    for phase in phases:
        if phase.rotary_base is not None:
            _check_base(phase.rotary_base, model)
        if phase.mlm_probability is not None:
            _check_rate(phase.mlm_probability, masks)
    _check_objectives(phases, model, args, masks)
    if len(phases) > 1:
        _check_order(phases, masks)
        _check_lengths(phases, model, args.train_batch_size)
        _check_selection(phases, model, args)
    since, clock = phases[-1].since, args.clock
    if clock is not None and clock.unit == "steps" and since * clock.budget > clock.budget - 1:
        raise EffptError(f"Of {clock.budget:g} steps none begins at {since:g} of the clock or later; give more.")


def _check_order(phases: Sequence[Phase], masks: bool) -> None:
    if not masks or not all(PackedRows.fits(phase.rows) for phase in phases):
        raise EffptError("Several phases need rows from `pack(…)`, and a tokenizer to mask them.")
    since, lengths = [phase.since for phase in phases], [phase.length for phase in phases]
    if since[0] != 0 or not all(a < b for a, b in pairwise([*since, 1.0])):
        raise EffptError(f"Phases begin at {since} of the clock, but must from 0 on, each later than the one before.")
    if not all(a.rows is b.rows or a.length < b.length for a, b in pairwise(phases)):
        raise EffptError(
            f"The rows of the phases have {lengths} tokens, but each phase must have longer ones than the one before, "
            "or the same rows."
        )
    if len({PackedRows(phase.rows).columns for phase in phases}) > 1:
        raise EffptError("Only some phases have rows with `document_ids`; pack all with the same `isolate_documents`.")


def _check_lengths(phases: Sequence[Phase], model: Any, size: int) -> None:
    """Raises `EffptError` unless the model reads the longest rows and `size` first ones are whole others."""
    lengths = [phase.length for phase in phases]
    check_length(lengths[-1], model.config)
    for phase in phases[1:]:
        rows, length = phase.batch_size or size, phase.length
        if rows * lengths[0] % length:
            raise EffptError(
                f"A micro-batch has {rows} rows of {lengths[0]} tokens, as many as no number of rows of {length}; "
                f"make `{'batch_ramp' if phase.batch_size else 'per_device_train_batch_size'}` a multiple of "
                f"{length // gcd(length, lengths[0])} there."
            )


def _check_selection(phases: Sequence[Phase], model: Any, args: Any) -> None:
    """Raises `EffptError` if a method that selects rows cannot do so in every phase."""
    lengths = [phase.length for phase in phases]
    for method in row_methods(model.methods):
        if method.remembers:
            raise EffptError(
                f"`{method.name}` remembers rows by their number and masks, which differ from phase to phase; leave "
                "it out, or train on rows of one length, with one share of masked tokens and no `batch_ramp`."
            )
        if lengths[-1] > lengths[0]:
            raise EffptError(
                f"`{method.name}` selects among rows of one length, and the phases have {lengths} tokens; leave it "
                "out, or train on rows of one length."
            )
    for phase in phases:
        candidates(
            model.methods, (phase.batch_size or args.train_batch_size) * args.gradient_accumulation_steps, None, 0.0
        )


def _check_objectives(phases: Sequence[Phase], model: Any, args: Any, masks: bool) -> None:
    """Raises `EffptError` if a phase has an objective that there is not, or something does not go with next tokens."""
    own = objective_of(model.config)
    for phase in phases:
        if phase.objective not in (None, CLM, MLM):
            raise EffptError(f"The `objective` {phase.objective!r} of a phase must be `{CLM}` or `{MLM}`.")
        if phase.objective is not None and own != MLM:
            raise EffptError(
                f"A phase has the objective `{phase.objective}`, but a `{type(model).__name__}` learns `{own}`; leave "
                "it out, or train a masked language model."
            )
        if phase.objective is not None and not masks:
            raise EffptError("A phase has an `objective`, but no collator of this package makes its batches.")
    if until := learned_until({phase.since: phase.objective for phase in phases}):
        check_next_tokens(until, model.config, model.methods, args.branches)


def _check_rate(rate: float, masks: bool) -> None:
    if not 0 < rate < 1:
        raise EffptError(f"The `mlm_probability` {rate} of a phase must be a share between 0 and 1, such as 0.15.")
    if not masks:
        raise EffptError("A phase has an `mlm_probability`, but no collator of this package masks its rows.")


def _check_base(base: float, model: Any) -> None:
    if not 0 < base < float("inf"):
        raise EffptError(f"The rotary base {base} must be above 0 and finite.")
    if rotary_base_of(model.config) is None:
        raise EffptError(
            f"`{type(model).__name__}` has no rotary positions of full attention, whose base could become {base:g}; "
            "leave `rotary_base` out."
        )
