"""`pretrain`: trains a recipe's model and leaves a stock checkpoint."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from datasets import DatasetDict
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback, set_seed

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import finish_replacing
from hf_effpt.core.objectives import floor_in, measured_as
from hf_effpt.core.processes import failing_together
from hf_effpt.core.registry import build_methods, without_idle
from hf_effpt.data.added_tokens import pieces_of_added
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.data.mixture import parts_of_mixture
from hf_effpt.data.packing import facts
from hf_effpt.data.shards.opening import read_manifest
from hf_effpt.data.tokenizer_report import TokenizerReport, report_of_corpus
from hf_effpt.hub.card_parts import accents_in, longest_rows, untrained_positions
from hf_effpt.hub.folders import CODE_FILES, RECIPE, checkpoints_in, others_in, read_recipe
from hf_effpt.models.build import model_for
from hf_effpt.models.from_checkpoint import add_rows
from hf_effpt.preparation import prepare_data
from hf_effpt.recipe.recipe import Recipe, idle_in
from hf_effpt.recipe.settings import SECTIONS
from hf_effpt.training.checkpoints import fault
from hf_effpt.training.checks import check_folder, exclude_specials, is_unused
from hf_effpt.training.evaluation_loop import evaluate_rows
from hf_effpt.training.phases import Phase, facts_of_phases, phases_in
from hf_effpt.training.record import attention_record, cost_reports
from hf_effpt.training.start import set_cooccurrence_embeddings, set_unigram_bias
from hf_effpt.training.trainer import EffptTrainer

logger = logging.getLogger(__name__)
# Keys of a recipe that may change when its run is resumed; so may all of `training` but the seed.
FREE = {"num_proc", "cache_dir", "attn_implementation"}


@dataclass
class RunResult:
    """Result of a run.

    Args:
        output_dir (`Path`): run folder; its root holds the stock model.
        clock (`Clock`): time, tokens and FLOPs spent.
        evaluation (`Mapping[str, Any]`, *optional*): metrics on held-out text, as in `run.json`.
        accounts (`Mapping[str, Any]`, *optional*): cost reports of the methods, as in `run.json`.
        facts (`Mapping[str, Any]`, *optional*): `recipe`, `data` and `tokenizer`, as in `run.json`.
        branches (`Mapping[float, Any]`, *optional*): facts of each trained branch ([`Branches.train`]), by the share
            of the budget at which it ends.
    """

    output_dir: Path
    clock: Clock
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    accounts: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    branches: Mapping[float, Any] = field(default_factory=dict)

    @property
    def held_out_loss(self) -> float | None:
        """Held-out loss of the objective in nats, per masked token or per token as the objective defines."""
        return self.evaluation.get("held_out_loss")

    @property
    def floor(self) -> float | None:
        """Loss of a predictor that learned nothing from the text; the held-out loss must be below it."""
        return floor_in(self.evaluation)

    def summary(self) -> str:
        """Describes in a few lines the cost, the losses, and the next commands."""
        clock, loss, floor, found = self.clock, self.held_out_loss, self.floor, self.evaluation
        steps = f"{clock.steps:,} step{'' if clock.steps == 1 else 's'}"
        lines = [f"Trained for {steps}, {clock.tokens:,} tokens, {clock.flops:.3g} FLOPs, {clock.seconds:.0f} s."]
        if loss is not None and floor is not None:
            kind = measured_as(found.get("objective", "mlm"), found)
            lines.append(f"Held-out loss {loss:.4f} nats a {kind.per}, the {kind.floor} is {_against(loss, floor)}.")
        if loss is not None and (before := self.facts.get("before")):
            gained = before["held_out_loss"] - loss
            lines.append(
                f"Before the first step, as {before['from']} has it, it was {before['held_out_loss']:.4f}, "
                f"{abs(gained):.4f} {'more' if gained >= 0 else 'less'}."
            )
        if long := self.facts.get("long_rows"):
            lines.append(f"In rows of {long['sequence_length']:,} tokens it is {long['held_out_loss']:.4f}.")
        lines += text_told(self.facts.get("data") or {})
        if way := (self.facts.get("attention") or {}).get("documents"):
            lines.append(f"Documents of a row were kept apart by {way}.")
        prefix = "held_out_loss_"
        others = [f"{found[name]:.4f} by `{name.removeprefix(prefix)}`" for name in found if name.startswith(prefix)]
        if others:
            lines.append(f"Held-out loss other than as exported: {', '.join(others)}.")
        of_generator, unigram = found.get("generator_loss"), found.get("unigram_floor")
        if of_generator is not None and unigram is not None:
            lines.append(
                f"Its generator's loss is {of_generator:.4f} nats a masked token, the unigram floor is "
                f"{_against(of_generator, unigram)}."
            )
        lines += [account["text"] for account in self.accounts.values() if "text" in account]
        if tokenizer := self.facts.get("tokenizer"):
            lines.append(
                f"Its tokenizer has accents {accents_in(tokenizer)}, and {tokenizer['unknown_rate']:.3%} of the "
                "characters are unknown to it."
            )
        if untrained := untrained_positions(self.facts):
            lines.append(
                f"Its rows were of {longest_rows(self.facts)} tokens, so that its further {untrained} "
                "positions are untrained."
            )
        for share, branch in self.branches.items():
            found = "" if branch["held_out_loss"] is None else f"held-out loss {branch['held_out_loss']:.4f} nats, "
            lines.append(
                f"The model that decays by {share:g} of the budget is in {self.output_dir}/branch-{share:g}: {found}"
                f"{branch['tokens']:,} tokens, {branch['own_tokens']:,} of them its own."
            )
        # A model that brings its own code loads only with `trust_remote_code`.
        trust = any((Path(self.output_dir) / name).is_file() for name in CODE_FILES)
        arguments = f"{str(self.output_dir)!r}{', trust_remote_code=True' if trust else ''}"
        lines += [
            f"The {'exported' if trust else 'stock'} model is in {self.output_dir}. Next:",
            f"  AutoModelForSequenceClassification.from_pretrained({arguments})   # fine-tune it",
            f"  effpt push {self.output_dir} ORG/NAME",
        ]
        return "\n".join(lines)


def text_told(data: Mapping[str, Any]) -> list[str]:
    """Lines that tell how the text was drawn and cut into documents, and what of it was held out."""
    lines, aside = [], data.get("held_out")
    if "sources" in data:
        drawn = [
            f"{one['documents']:,} from {one['dataset']}"
            + (f" (share {one['weight']:.3g})" if "weight" in one else "")
            for one in data["sources"]
        ]
        lines.append(f"Documents were drawn: {', '.join(drawn)}.")
    if "documents_by" in data:
        lines.append(f"Documents of .txt files were cut by `{data['documents_by']}` (data.documents).")
    if aside:
        of = f"of {aside['of']:,}, {aside['share']:.2%} of the text" if "of" in aside else f"of {aside['dataset']}"
        of += f", cut by `{aside['documents_by']}`" if aside.get("documents_by") else ""
        documents = "was 1 document" if aside["documents"] == 1 else f"were {aside['documents']:,} documents"
        lines.append(f"Held out {documents} {of}, {aside['tokens']:,} tokens.")
    if data.get("doubles"):
        lines.append(f"{data['doubles']:,} training documents equal held-out ones (data.select would leave them out).")
    return lines


def _against(loss: float, floor: float) -> str:
    """Formats a floor and how far a loss is below or above it."""
    gap = floor - loss
    verdict = f"{gap:.4f} below" if gap > 0 else f"{-gap:.4f} above; it needs a longer budget than this"
    return f"{floor:.4f} ({verdict})"


def pretrain(recipe: Recipe, *, resume: bool | str = False) -> RunResult:
    """Trains a recipe's model within its budget and leaves a stock checkpoint in the root of its output folder.

    Args:
        recipe ([`Recipe`]): the settings of the run.
        resume (`bool` or `str`, *optional*, defaults to `False`): if `True`, continue from the last checkpoint in the
            output folder; a path continues from that checkpoint.

    Raises:
        EffptError: for data, settings or an output folder that cannot be used, before any training; later if the run
            diverges, which then leaves its checkpoints and exports nothing.
    """
    with failing_together():
        return _pretrain(recipe, resume)


def _pretrain(recipe: Recipe, resume: bool | str) -> RunResult:
    out = Path(recipe.training.output_dir)
    claim(out, recipe, bool(resume))
    corpus, tokenizer, rows = prepare_data(recipe, strict=not resume)
    trainer = build_trainer(recipe, tokenizer, rows, bool(resume))
    phases = trainer.stream.phases
    if corpus is None:
        report = TokenizerReport(**read_manifest(str(recipe.data.dataset))["tokenizer"])
    else:
        report = report_of_corpus(tokenizer, corpus, cache_dir=recipe.data.cache_dir)
    known = {"recipe": recipe.resolved(), "data": facts_of_phases(phases), "tokenizer": asdict(report)}
    if card := recipe.card_facts():
        known["card"] = card
    trainer.facts = known
    trainer.add_callback(RecipeSaver(recipe, out))
    logger.info(
        "tokenizer: %s tokens, %.3f %% of the characters unknown, accents %s, %.2f tokens a word",
        f"{report.vocab_size:,}", 100 * report.unknown_rate, accents_in(known["tokenizer"]), report.fertility,
    )  # fmt: skip
    for one in phases:
        own = "" if one.mlm_probability is None else f", {one.mlm_probability:.0%} of them masked"
        own = ", whose next ones are predicted" if one.is_causal else own
        own += "" if one.batch_size is None else f", in batches of {one.batch_size}"
        logger.info(
            "data: %s rows of %d tokens%s, from %g of the clock", f"{len(one.rows):,}", one.length, own, one.since
        )
    for line in text_told(facts(rows["train"])):
        logger.info("data: %s", line)
    methods = ", ".join(method.name for method in trainer.methods) or "none"
    logger.info("model: %s parameters; methods: %s", f"{trainer.model.num_parameters():,}", methods)
    if recipe.model.from_ is not None and trainer.eval_dataset is not None:
        trainer.evaluate()
        known["before"] = {"from": recipe.model.from_, "held_out_loss": (trainer.evaluation or {})["held_out_loss"]}
        logger.info("held-out loss before the first step: %.4f", known["before"]["held_out_loss"])
    trainer.train(resume_from_checkpoint=resume or None)
    evaluation: dict[str, Any] = {}
    if trainer.eval_dataset is not None:
        trainer.evaluate()
        evaluation = trainer.evaluation or {}
        if phases[-1].length > phases[0].length:
            known["long_rows"] = {"sequence_length": phases[-1].length}
            with trainer.cost.timekeeper.paused():
                found = evaluate_rows(trainer, rows[f"validation_{phases[-1].length}"])
            known["long_rows"]["held_out_loss"] = found["held_out_loss"]
    trainer.save_model()
    trainer.accelerator.wait_for_everyone()
    result = RunResult(out, trainer.clock, evaluation, cost_reports(trainer), known)
    known["attention"] = attention_record(trainer)
    branches = {share: trainer.branches.train(share) for share in trainer.branches.shares}
    trainer.accelerator.end_training()
    return replace(result, branches={share: found for share, found in branches.items() if found})


def build_trainer(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, rows: DatasetDict, resume: bool = False
) -> EffptTrainer:
    """Builds the trainer of a recipe; anything that Transformers refuses becomes an `EffptError`.

    With `resume` a checkpoint will replace all weights, and what `model.start` asks for is not computed again.
    """
    data, seed = recipe.data, recipe.training.seed
    collator = DataCollatorForMaskedLM(tokenizer, data.rates[0.0], data.whole_word, seed=seed)
    try:
        set_seed(seed)
        model = build_model(recipe, tokenizer)
        start = {} if resume else recipe.model.start or {}
        if start.get("bias") == "unigram":
            set_unigram_bias(model, rows["train"], tokenizer)
        if start.get("embeddings") == "cooccurrence":
            set_cooccurrence_embeddings(model, rows["train"], tokenizer, seed=seed)
        return EffptTrainer(
            model=model,
            args=recipe.training,
            train_dataset=phases_of_recipe(recipe, rows),
            eval_dataset=rows.get("validation"),
            processing_class=tokenizer,
            data_collator=collator,
        )
    except EffptError:
        raise
    except (ValueError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EffptError(f"Transformers cannot train with these settings: {reason} Change or install that.") from error


def claim(out: Path, recipe: Recipe, resume: bool) -> None:
    """Raises `EffptError` unless the output folder is free, or holds the run to resume."""
    check_folder(out)
    finish_replacing(out)
    written = [name for name in ("config.json", "run.json", "model.safetensors") if (out / name).exists()]
    if not resume:
        if written or checkpoints_in(out):
            found = ", ".join([*written, *(folder.name for folder in checkpoints_in(out))])
            raise EffptError(
                f"The output folder {out} holds another run already ({found}); continue it with `--resume`, or "
                "give another `training.output_dir`."
            )
        _check_unused(out)
        check_apart(out, recipe)
        return
    if not (out / RECIPE).is_file() and not checkpoints_in(out):
        raise EffptError(f"There is no run in {out} to resume (no recipe.yaml); start without `--resume`.")
    before = read_recipe(out / RECIPE)
    for section, kind in SECTIONS.items():
        if section == "card":
            continue
        old, new = before.get(section) or {}, recipe.resolved()[section]
        if section == "model" and "from" not in new:  # older runs have the only backbone that there was
            old = {"backbone": "bert", **old}
        if section == "training":  # the order and masks of the rows depend on the seed
            old, new = ({"seed": values.get("seed")} for values in (old, new))
        # Settings that older versions took, though they do nothing, are refused now, so that they cannot be the same.
        idle = idle_in(before).get(section, {})
        if kind is None:
            old, new = ({method.name: method.settings() for method in build_methods(without_idle(of))}
                        for of in (old, new))  # fmt: skip
        for key in sorted({*old, *new} - FREE - {*idle}):
            if old.get(key) != new.get(key):
                raise EffptError(
                    f"The run in {out} has `{section}.{key}: {old.get(key)}`, but the recipe now says {new.get(key)}; "
                    "resume with the recipe it was started with, or give another `training.output_dir`."
                    f"{_copy_of_recipe(out, before)}"
                )


def _copy_of_recipe(out: Path, found: dict[str, Any]) -> str:
    """Names the copy of a run's recipe in its last whole checkpoint, if `found` in the run folder is another one."""
    whole = next((one for one in reversed(checkpoints_in(out)) if fault(one) is None), None)
    if whole is None or not (whole / RECIPE).is_file() or read_recipe(whole / RECIPE) == found:
        return ""
    return f" If {out / RECIPE} was damaged, put back its copy: `cp {whole / RECIPE} {out / RECIPE}`."


def check_apart(out: Path, recipe: Recipe) -> None:
    """Raises `EffptError` if the output folder is one that text is read from, or below it.

    What the run writes would be read as text when it is resumed, and by the next run.
    """
    for texts in (recipe.data.dataset, recipe.data.held_out):
        sources = [texts] if isinstance(texts, str) else parts_of_mixture(texts)[0] if isinstance(texts, list) else []
        for folder in (Path(str(source)).expanduser() for source in sources):
            if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
                raise EffptError(
                    f"The output folder {out} is in {folder}, whose files are read as text; give a "
                    "`training.output_dir` outside of it."
                )


def _check_unused(out: Path) -> None:
    """Raises `EffptError` if a run in `out` would replace files of others, or scatter its own among them."""
    if out.resolve() == Path.cwd():
        raise EffptError(f"The output folder {out} is the one you are in; give a `training.output_dir` of its own.")
    others = others_in(out)
    if others == ["recipe.yaml"]:  # perhaps of a run that was killed before it had a checkpoint
        recipe = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
        training = (recipe.get("training") if isinstance(recipe, dict) else None) or {}
        if Path(str(training.get("output_dir"))).resolve() == out.resolve():
            return
    if others:
        raise EffptError(
            f"The output folder {out} holds {', '.join(others)}, which the run would replace; give a "
            "`training.output_dir` that is new or empty."
        )


class RecipeSaver(TrainerCallback):
    """Writes `recipe` into the folder `out` when training begins, since until then a run may be refused."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.out.mkdir(parents=True, exist_ok=True)
            for left in self.out.glob(f".{RECIPE}-*"):  # by a process that was killed here
                shutil.rmtree(left)
            self.recipe.save(self.out / "recipe.yaml")


def phases_of_recipe(recipe: Recipe, rows: DatasetDict) -> list[Phase]:
    """Phases of the run of a recipe on its `rows`."""
    return phases_in(rows, recipe.data.lengths, recipe.model.rotary_bases, recipe.data.rates, recipe.model.objectives)


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Builds the recipe's training model: a new one, or that of a checkpoint.

    The vocabulary of a new model, and of one to which tokens are added, is a multiple of 64.
    """
    tokens, own = len(tokenizer), {}
    if recipe.model.from_ is not None:
        model = recipe.model.load(recipe.methods)
        if tokens > model.config.vocab_size or recipe.data.add_tokens is not None:
            before = AutoTokenizer.from_pretrained(recipe.data.tokenizer or recipe.model.from_)
            size = max(model.config.vocab_size, -(-tokens // 64) * 64)
            add_rows(model, pieces_of_added(before, tokenizer), size)
        return model
    if recipe.model.exported == "mcbert":
        unused = [token_id for token, token_id in tokenizer.get_vocab().items() if is_unused(token)]
        own["nota_token_id"] = min(unused, default=tokens)
        tokens = max(tokens, own["nota_token_id"] + 1)
    if recipe.model.backbone == "modernbert":  # BERT's configuration has none of these
        own |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
        own |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    config = recipe.model.config(
        vocab_size=-(-tokens // 64) * 64, pad_token_id=tokenizer.pad_token_id, methods=recipe.methods, **own
    )
    exclude_specials(config, tokenizer)
    return model_for(config)
