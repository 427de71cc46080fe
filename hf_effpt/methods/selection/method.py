"""Selection: scores rows, learns from a share of them, and is charged for the scoring."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from hf_effpt.core.context import RunContext
from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method, Paper
from hf_effpt.core.objectives import objective_of
from hf_effpt.core.row_method import CostReport, RowMethod, SelectionContext
from hf_effpt.core.settings import Count, CountOrZero, Fraction, In, Share, check_settings
from hf_effpt.core.shares import part_of

from .config import check, resolve
from .cost import cost_report
from .memory import Memory
from .scoring import reference_losses, scores
from .state import Selector, changed_at
from .strategies import STRATEGIES
from .strategy import Level, Mode, Pool, Scorer, Strategy
from .table import IrreducibleLosses

Several = Annotated[int, In("[2, inf)")]


@dataclass
class Selection(RowMethod):
    """Scores more rows than a step can hold and learns from a share of them (Braasch, section 4.2).

    A step costs 1 + s / keep times one without selection, where s is the cost of scoring a row relative to learning
    from it. The gain in samples has to be larger. For BERT at an equal budget it was not in published results (Kaddour
    et al., 2023): compare with `strategy: random`.

    Args:
        strategy (`str`, *optional*, defaults to `"perceptron_ensemble"`): criterion for rows; the method card
            describes each.
        keep (`float`, *optional*): share, in (0, 1], of the scored rows to learn from; with 1 nothing is scored. By
            default the strategy's own, most often 0.5. For `token_selection` the share of the masked tokens, for
            `reweighting` the least weight of a row, for `adaptive_masking` the least masking rate relative to the
            highest.
        scorer (`str`, *optional*): input of the scores: `"full"`, a whole forward pass; `"first_layer"`, the outputs
            of the first layer; `"embedding"`, the mean input embedding; `"stale"`, the loss when the row was last
            trained on; `"generator"`, that of ELECTRA or MC-BERT. By default the strategy's own.
        rule (`str`, *optional*): variant of the strategy.
        mode (`str`, *optional*): `"topk"` takes the highest scores, `"rank_sample"` draws with probabilities that rise
            with the rank, `"weighted"` with the score. By default the strategy's own, most often `"topk"`.
        start, end (`float`, *optional*): fractions of the clock between which rows are selected, by default 0.5 and
            0.9: all data are needed at both ends.
        interrupt (`int`, *optional*): interval of steps that take rows as they come, 0 for none; by default 2.
        explore (`float`, *optional*): share of the picked rows, in [0, 1), that is drawn uniformly; by default 0.1
            with `topk`, else 0.
        outliers (`float`, *optional*): share of the scored rows, in [0, 1), of the highest scores that are not picked
            for them; by default 0.02 for `core_set` and `least_confidence`, else 0.
        warmup (`int`, *optional*): first steps, in which rows are taken as they come while a strategy learns.
        passes (`int`, *optional*): draws of dropout of `deep_bayesian`, by default 5.
        dropout (`float`, *optional*): dropout rate of these draws, in (0, 1), by default 0.1.
        level (`str`, *optional*): part of the model under these draws: the `"head"`, the default, or the `"full"` one.
        members (`int`, *optional*): networks of `perceptron_ensemble`, by default 5.
        queue (`int`, *optional*): number of recent rows that a strategy remembers.
        num_score_positions (`int`, *optional*): number of labelled positions at which a row is scored by strategies
            that see logits, which makes the head cheaper; by default all.
        max_age (`int`, *optional*): steps after which a stale score is ignored. By default only those from before a
            change of the architecture are.
        holdout (`str`, *optional*): folder of the masked language model, of the same vocabulary, that `rho` and
            `token_selection` compare with.
        table (`str`, *optional*): with `scorer: stale` a file of losses that such a run has left, to begin with; with
            `rho` a folder in which the losses of `holdout` are kept.
        rows (`int`, *optional*): number of rows of the dataset; written by the run.

    Raises:
        EffptError: if a value is outside its range, or the strategy does not have that setting or scorer.
    """

    name: ClassVar[str] = "selection"
    summary: ClassVar[str] = "Scores more rows than it trains on and learns from the best; the export is stock."
    example: ClassVar[Mapping[str, Any]] = {
        "strategy": "least_confidence",
        "keep": 0.5,
        "start": 0.0,
        "end": 0.9,
        "interrupt": 3,
    }
    paper: ClassVar[Paper] = Paper.of(
        "@misc{jiang2019accelerating, title={Accelerating Deep Learning by Focusing on the Biggest Losers}, "
        "author={Jiang, Angela H. and Wong, Daniel L.-K. and Zhou, Giulio and Andersen, David G. and Dean, "
        "Jeffrey and others}, eprint={1910.00762}, archivePrefix={arXiv}, year={2019}}",
        arxiv="1910.00762",
    )

    strategy: str = "perceptron_ensemble"
    keep: Share | None = None
    scorer: Scorer | None = None
    rule: str | None = None
    mode: Mode | None = None
    start: float | None = None
    end: float | None = None
    interrupt: CountOrZero | None = None
    explore: Fraction | None = None
    outliers: Fraction | None = None
    warmup: CountOrZero | None = None
    passes: Several | None = None
    dropout: Annotated[float, In("(0, 1)", "without dropout all draws agree")] | None = None
    level: Level | None = None
    members: Several | None = None
    queue: Count | None = None
    num_score_positions: Count | None = None
    max_age: Count | None = None
    holdout: str | None = None
    table: str | None = None
    rows: CountOrZero | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        self.resolved = resolve(self)

    @property
    def kind(self) -> type[Strategy]:
        """Class of the strategy."""
        return STRATEGIES[self.strategy]

    @property
    def measures_loss(self) -> bool:
        return self.kind.input_kind == "losses"

    @property
    def departures(self) -> str:
        return self.kind.departures

    @property
    def references(self) -> tuple[str, ...]:
        return () if self.holdout is None or self.resolved.keep == 1.0 else (self.holdout,)

    @property
    def remasks(self) -> bool:
        return self.strategy == "adaptive_masking"

    @property
    def remembers(self) -> bool:
        return self.kind.remembers or self.resolved.scorer == "stale" or self.table is not None

    @property
    def describe(self) -> str:
        """Name and description of the strategy, with its source."""
        said = (self.kind.__doc__ or "").strip().splitlines()[0]
        return f"`{self.strategy}`. {said}"

    @property
    def cited(self) -> Paper | None:
        """Paper of the method if the strategy comes from it, else `None`."""
        return self.paper if self.strategy == "selective_backprop" else None

    @property
    def control(self) -> dict[str, Any] | None:
        """Settings that select as many random rows at the same steps."""
        if self.strategy == "random" or not self.kind.picks_rows or self.resolved.keep == 1.0:
            return None
        same = {key: getattr(self.resolved, key) for key in ("keep", "start", "end", "interrupt")}
        return {"strategy": "random", **same}

    def bind(self, config: Any, others: Mapping[str, Method]) -> None:
        if config is not None:
            self.resolved = resolve(self, objective_of(config))
            check(self, objective_of(config))

    def prepare(self, backbone: Any, context: RunContext) -> None:
        text = context.text
        self.rows = len(text.rows)
        # The size of a checkpoint's loss memory follows from this setting.
        backbone.config.methods = {**backbone.config.methods, self.name: self.settings()}
        self.resolved = replace(self.resolved, rows=self.rows)
        if hasattr(backbone, "selector"):
            backbone.selector.detach(backbone)
        self.inject(backbone)
        selector = backbone.selector
        selector.begin(context.seed)
        selector.unknown.fill_(text.unknown)
        if self.table is not None and selector.memory is not None:
            selector.memory.load(self.table, text.identity)
        elif self.table is not None:
            self._open_table(selector, text.identity)

    def inject(self, backbone: Any) -> None:
        strategy = self.kind(self.resolved, backbone.config)
        memory = Memory(self.rows, self.max_age) if self.resolved.scorer == "stale" and self.rows else None
        selector = Selector(strategy, memory, backbone.config.vocab_size).to(backbone.device)
        selector.attach(backbone, observes=self.resolved.keep < 1.0)

    def candidates(self, number: int, step: int | None, fraction: float) -> int:
        keep = self.resolved.keep
        if keep == 1.0 or not self.kind.picks_rows:
            return number
        most = part_of(1.0 / keep, number)
        if most <= number:
            raise EffptError(
                f"`selection.keep` {keep} of a step of {number} rows asks for {most} to choose from, so that there is "
                "no choice; keep a smaller share, or make the batch larger."
            )
        return most if step is None or self.is_on(step, fraction) else number

    def is_on(self, step: int, fraction: float) -> bool:
        """`True` if rows are selected, or weighted, in optimizer step `step` (from 0)."""
        resolved = self.resolved
        within = resolved.start <= fraction < resolved.end or (resolved.end == 1.0 and fraction >= resolved.start)
        return within and step >= resolved.warmup and not (resolved.interrupt and step % resolved.interrupt == 0)

    def select(self, model: Any, rows: dict[str, Tensor], context: SelectionContext) -> dict[str, Tensor]:
        if self.resolved.keep == 1.0:
            return rows
        selector, ids_N, run = model.backbone.selector, rows["example_id"], context.run
        selector.dataset_id, strategy = context.dataset_id, selector.strategy
        strategy.on = self.is_on(run.step, run.fraction)
        pool = Pool(ids_N ^ (rows["epoch"] << 40), ids_N, None, run.step, run.fraction, run.seed)
        measures = selector.measure(rows)
        picks = strategy.on and strategy.picks_rows
        pool, scored = self._score(model, rows, context, pool, measures, picks)
        kept_N = torch.arange(context.number, device=ids_N.device)
        if picks:
            with context.count_flops():
                kept_N = strategy.pick(pool, context.number)
            judged_N = pool.seen if scored and strategy.input_kind != "vectors" else None
            selector.compare(model.backbone, kept_N, judged_N, measures)
            rows = {name: values[kept_N] for name, values in rows.items()}
            pool = pool.of(kept_N)
        elif strategy.on:
            rows = self._weigh(rows, context, strategy)
        weight_inputs = strategy.loss_weight_inputs(pool, kept_N) if picks else None
        selector.count(model.backbone, len(ids_N), scored, context.number)
        selector.expect(pool)
        return rows if weight_inputs is None else rows | {"loss_weight_inputs": weight_inputs}

    def _score(
        self, model: Any, rows: dict[str, Tensor], context: SelectionContext, pool: Pool, measures: Any, picks: bool
    ) -> tuple[Pool, int]:
        """Returns the pool with the scorer's output, and the number of rows scored."""
        selector, strategy = model.backbone.selector, model.backbone.selector.strategy
        # Strategies learn from vectors in every step until `end`.
        if strategy.input_kind == "vectors" and context.run.fraction < self.resolved.end:
            seen = torch.cat([scores(strategy, model, rows, context), torch.stack(measures, dim=1)], dim=1)
            return pool.seeing(seen), len(pool)
        if not picks or strategy.input_kind == "nothing":
            return pool, 0  # after `end` there is nothing to learn for
        if selector.memory is not None:
            strategy.mean = selector.memory.mean
            return pool.seeing(selector.memory.read(pool, changed_at(model.backbone))), 0
        seen = scores(strategy, model, rows, context)
        if strategy.compares:
            seen = seen - self._irreducible(selector, rows, context)
        return pool.seeing(seen), len(pool)

    def _irreducible(self, selector: Selector, rows: dict[str, Tensor], context: SelectionContext) -> Tensor:
        """Losses of the reference model, from the table if it has all of them."""
        assert self.holdout is not None
        table = None if self.table is None else self._open_table(selector, context.dataset_id)
        where = (context.masking_id, context.host["example_id"].numpy(), context.host["epoch"].numpy())
        known = None if table is None else table.read(*where)
        known_N = None if known is None else torch.from_numpy(known).to(rows["input_ids"].device, non_blocking=True)
        model = context.reference_model(self.holdout)
        losses_N = reference_losses(model, rows, context, tokens=False, known=known_N).float()
        if table is not None and known is None:
            table.add(*where, losses_N)
        return losses_N

    def _open_table(self, selector: Selector, dataset_id: str) -> IrreducibleLosses:
        """Table of irreducible losses on disk, opened once."""
        if selector.table is None:
            assert self.table is not None
            assert self.holdout is not None
            selector.table = IrreducibleLosses(Path(self.table), self.rows or 0, dataset_id, Path(self.holdout))
        return selector.table

    def _weigh(self, rows: dict[str, Tensor], context: SelectionContext, strategy: Any) -> dict[str, Tensor]:
        """Adds the inputs of a strategy that weights all rows instead of picking some."""
        if strategy.compares == "tokens":
            assert self.holdout is not None
            model = context.reference_model(self.holdout)
            return rows | {"loss_weight_inputs": reference_losses(model, rows, context, tokens=True)}
        if not self.remasks:
            return rows
        masked = context.mask_anew(context.host, strategy.rates_in(context.run.step))
        device = rows["input_ids"].device
        rows = {name: values.to(device, non_blocking=True) for name, values in masked.items()}
        return rows | {"loss_weight_inputs": rows["labels"].gather(1, rows["masked_positions"])}

    def advance(self, backbone: Any, context: RunContext) -> bool:
        if context.is_live and self.resolved.keep < 1.0:
            backbone.selector.settle(backbone)
        return False

    def eject(self, backbone: Any) -> None:
        backbone.selector.detach(backbone)
        super().eject(backbone)

    def save_artifacts(self, backbone: Any, folder: Path) -> None:
        """Writes the last losses of rows into the folder, for the `table` of another run."""
        selector = backbone.selector
        if selector.table is not None:
            selector.table.write()
        if selector.memory is not None and selector.dataset_id is not None:
            selector.memory.save(folder, selector.dataset_id)

    def metrics(self, backbone: Any, sums: Mapping[str, float]) -> dict[str, float]:
        """Rows seen, scored and trained on; deciles of scores of rows kept and left; and their differences."""
        return backbone.selector.metrics(sums)

    def cost_report(self, backbone: Any, costs: CostReport) -> dict[str, Any]:
        """Cost of scoring a row relative to learning from it, and the gain that selection needs."""
        if self.resolved.keep == 1.0:
            return {}
        counts = tuple(backbone.selector.counts.tolist())
        return cost_report(self.resolved, self.strategy, self.kind.picks_rows, counts, costs)
