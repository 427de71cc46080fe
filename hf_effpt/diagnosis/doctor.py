"""`diagnose`: tells a run, a recipe and a dataset apart, gathers facts of it, and runs the checks for them."""

import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hf_effpt.core.errors import EffptError, first_line
from hf_effpt.data.corpus import Corpus, open_corpus
from hf_effpt.data.tokenizer_report import TokenizerReport, tokenizer_report
from hf_effpt.recipe.file import BUILT_IN
from hf_effpt.recipe.recipe import Recipe

from . import course_checks, recipe_checks, result_checks, speed_checks, text_checks
from .finding import Diagnosis, Finding
from .range_test import RateRange, measure_range, rate_in_range
from .recipe_facts import BYTES_A_TOKEN, RecipeFacts, recipe_facts
from .run_facts import RunFacts, run_facts
from .run_record import is_run, read_record
from .text_facts import TextFacts, first_documents, text_facts

# Checks by the facts that they need.
CHECKS: dict[type, tuple[Callable[[Any], Finding | None], ...]] = {
    TextFacts: (
        text_checks.blank, text_checks.doubles, text_checks.leakage, text_checks.garbled, text_checks.lengths,
        text_checks.scripts,
    ),
    TokenizerReport: (text_checks.unknown, text_checks.fragments),
    RecipeFacts: (
        recipe_checks.rate, recipe_checks.warmup, recipe_checks.schedule, recipe_checks.batch, recipe_checks.passes,
        recipe_checks.memory,
    ),
    RateRange: (rate_in_range,),
    RunFacts: (
        course_checks.diverged, course_checks.spikes, course_checks.gradients, result_checks.floor,
        result_checks.plateau, result_checks.overfit, result_checks.leaked, result_checks.unfinished,
        result_checks.decay, speed_checks.data_bound, speed_checks.launch_bound,
    ),
}  # fmt: skip


def diagnose(target: str, overrides: Sequence[str] = (), range_test: bool = False) -> Diagnosis:
    """Looks for faults of a run, a recipe or a dataset.

    Args:
        target (`str`): folder of a run, a recipe's file or name, or a dataset as `data.dataset` takes it.
        overrides (`Sequence[str]`, *optional*): command-line flags that change a recipe.
        range_test (`bool`, *optional*, defaults to `False`): if `True`, measure the learning rates that suit a recipe.

    Raises:
        EffptError: for a target that cannot be read, and flags or a range test for what is no recipe.
    """
    path = Path(target)
    if path.suffix in (".yaml", ".yml") or (not path.exists() and (BUILT_IN / f"{target}.yaml").is_file()):
        return _diagnosis(target, "recipe", _facts_of_recipe(target, overrides, range_test))
    if overrides or range_test:
        given = " ".join(overrides) or "--range_test"
        raise EffptError(f"`{given}` goes with a recipe, but {target} is none; give a YAML file or a built-in name.")
    if path.is_dir() and is_run(path):
        return _diagnosis(target, "run", _facts_of_run(path))
    corpus, validation = open_corpus(target), None
    if "split" in corpus.heeds:
        with suppress(EffptError):  # it has no such split
            validation = open_corpus(target, split="validation")
    return _diagnosis(target, "dataset", [text_facts(corpus, validation)])


def findings_in(facts: Sequence[Any]) -> list[Finding]:
    """Findings of the checks in these facts, errors first."""
    found = [finding for one in facts for check in CHECKS[type(one)] if (finding := check(one)) is not None]
    return sorted(found, key=lambda one: one.severity != "error")


def _diagnosis(target: str, kind: str, facts: Sequence[Any]) -> Diagnosis:
    figures = {name: text for one in facts for name, text in _figures(one).items()}
    return Diagnosis(target, kind, figures, tuple(findings_in(facts)))


def _figures(facts: Any) -> dict[str, str]:
    if isinstance(facts, TokenizerReport):
        return {
            "tokenizer": f"{facts.vocab_size:,} tokens, {facts.fertility:.2f} a word, {facts.bytes_per_token:.2f} "
            f"bytes each; {facts.unknown_rate:.3%} of the characters unknown"
        }
    return facts.figures()


def _facts_of_run(folder: Path) -> list[Any]:
    record = read_record(folder)
    tokenizer = record.get("tokenizer") or {}
    known = all(field.name in tokenizer for field in fields(TokenizerReport))
    return [run_facts(record, str(folder)), *([TokenizerReport(**tokenizer)] if known else [])]


def _facts_of_recipe(source: str, overrides: Sequence[str], range_test: bool) -> list[Any]:
    recipe = Recipe.load(source, overrides)
    corpus, facts = _open(recipe, recipe.data.dataset, recipe.data.split), []
    held_out = recipe.data.held_out
    validation = _open(recipe, held_out, "validation") if isinstance(held_out, str | list) else None
    facts.append(text_facts(corpus, validation))
    vocabulary, bytes_a_token, given = (
        recipe.data.vocab_size,
        BYTES_A_TOKEN,
        recipe.data.tokenizer or recipe.model.from_,
    )
    if given is not None:  # one that is trained would take a pass over the text
        try:
            tokenizer = AutoTokenizer.from_pretrained(given)
        except (OSError, ValueError) as error:
            raise EffptError(f"The tokenizer {given!r} cannot be loaded: {first_line(error)}") from error
        report = tokenizer_report(tokenizer, first_documents(corpus)[0])
        bytes_a_token, vocabulary = report.bytes_per_token, report.vocab_size
        facts.append(report)
    text_tokens = None if corpus.num_bytes is None else corpus.num_bytes / bytes_a_token
    facts.append(recipe_facts(recipe, shlex.join([source, *overrides]), vocabulary, text_tokens))
    if range_test:
        facts.append(measure_range(source, overrides))
    return facts


def _open(recipe: Recipe, dataset: Any, split: str) -> Corpus:
    data = recipe.data
    return open_corpus(
        dataset,
        text_column=data.text_column,
        split=split,
        streaming=data.streaming,
        documents=data.documents,
        cache_dir=data.cache_dir,
    )
