"""Parts of a model card: cells of its tables, losses beside their floors, scores, and notes on the exported heads."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import EvalResult

from hf_effpt.core.objectives import FLOORS, floor_in, measured_as

Rows = list[tuple[str, str]]


def part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return record.get(key) or {}


def cell(value: Any) -> str:
    """Formats `value` as one cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def rows(given: Iterable[tuple[str, Any, str]]) -> Rows:
    """Formats (name, value, format) and leaves out those without a value."""
    return [(name, cell(form.format(value))) for name, value, form in given if value is not None]


def accents_in(tokenizer: Mapping[str, Any]) -> str | None:
    """`stripped` or `kept`, by the statistics of a tokenizer in a record; `None` if it does not say."""
    return {True: "stripped", False: "kept"}.get(tokenizer.get("strip_accents"))


def longest_rows(record: Mapping[str, Any]) -> int | None:
    """Tokens of the longest training rows, by the record of a run; `None` if it does not say."""
    data = part(record, "data")
    return data["phases"][-1]["sequence_length"] if data.get("phases") else data.get("sequence_length")


def untrained_positions(record: Mapping[str, Any]) -> int:
    """Number of positions of a recipe's model beyond its training rows, by the record of its run."""
    positions = part(part(record, "recipe"), "model").get("max_position_embeddings")
    length = longest_rows(record)
    return 0 if positions is None or length is None else max(0, positions - length)


def loss_rows(objective: str, evaluation: Mapping[str, Any]) -> Rows:
    """Returns the rows for the held-out loss of the objective, its floor and margin, and those of a generator."""
    kind, loss, floor = measured_as(objective, evaluation), evaluation.get("held_out_loss"), floor_in(evaluation)
    generates = evaluation.get("generator_loss") is not None
    judged = "masked tokens" if objective in ("electra_15", "replace_mlm") else "all tokens"
    return rows(
        [
            (f"Held-out loss (nats per {kind.per})", loss, "{:.4f}"),
            (kind.floor.capitalize(), floor, "{:.4f}"),
            ("Margin", None if loss is None or floor is None else floor - loss, "{:.4f}"),
            ("Loss of detecting what is replaced (nats per token)", evaluation.get("detection_loss"), "{:.4f}"),
            ("Prior entropy of that", evaluation.get("detection_floor"), "{:.4f}"),
            ("Generator's held-out loss (nats per masked token)", evaluation.get("generator_loss"), "{:.4f}"),
            ("Its unigram floor", evaluation.get("unigram_floor") if generates else None, "{:.4f}"),
            ("Its accuracy", evaluation.get("generator_accuracy"), "{:.2%}"),
            (f"Replaced, share of {judged}", evaluation.get("replaced_rate"), "{:.2%}"),
            ("Masked tokens evaluated", evaluation.get("masked_tokens"), "{:,}"),
        ]
    )


def loss_verdict(objective: str, evaluation: Mapping[str, Any]) -> str:
    """Says in a sentence if the loss shows that anything was learned."""
    loss, floor = evaluation.get("held_out_loss"), floor_in(evaluation)
    name = measured_as(objective, evaluation).floor
    if loss is None:
        return "The loss on held-out text was not measured."
    if not math.isfinite(loss):
        return "**The held-out loss is not finite: training diverged.** Do not use this model."
    if floor is None:
        return f"The {name} was not measured, so this loss alone does not say whether anything was learned."
    if loss < floor:
        said = f"The held-out loss is {floor - loss:.4f} nats below the {name}."
        generator, unigrams = evaluation.get("generator_loss"), evaluation.get("unigram_floor")
        if generator is not None and unigrams is not None and generator >= unigrams:
            said += (
                " **But its generator knows no more than how frequent tokens are**, and what such a one puts in is "
                "easily told: train it longer."
            )
        return said
    by = " by token frequency" if objective == "mlm" else ""
    return (
        f"**This model is no better than guessing{by}**: its held-out loss is {loss - floor:.4f} nats above the "
        f"{name}. It can test a pipeline, but it has not learned language; train it longer."
    )


def loss_note(objective: str, evaluation: Mapping[str, Any]) -> str:
    """Explains the floor, and what the loss may be compared with."""
    name = measured_as(objective, evaluation).floor
    said = f"The {name} is the loss of a predictor that {FLOORS[name]}. A model is worth using only below it."
    if objective == "mlm":
        return said
    return (
        f"{said} This is the loss of `{objective}` with the generator of this run: it compares neither with the loss "
        "of a masked language model nor with that of a run whose generator is another. Compare scores."
    )


def loss_results(objective: str, evaluation: Mapping[str, Any], data: Mapping[str, Any]) -> list[EvalResult]:
    """Returns a masked-token loss as the Hub indexes it; losses of other objectives have no task there."""
    loss = evaluation.get("held_out_loss")
    if objective != "mlm" or loss is None or not math.isfinite(loss):  # JSON metadata cannot hold NaN
        return []
    dataset = data.get("dataset") or "unnamed"
    return [
        EvalResult(
            task_type="fill-mask",
            task_name="Masked language modeling",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="validation",
            metric_type="loss",
            metric_name="Held-out loss (nats per masked token)",
            metric_value=round(loss, 4),
        )
    ]


def head_notes(objective: str, stock_class: str, address: str) -> list[str]:
    """Returns what a user must know about the exported heads."""
    if objective == "mlm":
        return []
    said = []
    if stock_class == "ElectraForPreTraining":
        said.append(
            "With its head, `ElectraForPreTraining`, it scores each token of a text for having been replaced; it "
            "cannot fill masks."
        )
    elif not stock_class.endswith("ForMaskedLM"):
        said.append(
            "The head that it was pre-trained with has no stock class, so this is the encoder, to be fine-tuned."
        )
    else:
        reads = "This model has never read the mask token, so what it predicts at a masked position means little"
        if objective == "mcbert":
            reads += (
                "; and its head was trained under a softmax over a few candidates only, so that its probabilities "
                "over the vocabulary are uncalibrated"
            )
        said.append(f"{reads}. Fine-tune it, or use its hidden states.")
    generator = "meta controller" if objective == "mcbert" else "generator"
    kind = "ModernBertForMaskedLM" if "ModernBert" in stock_class else "ElectraForMaskedLM"
    said.append(
        f"`generator/` in this folder holds the {generator} as a stock `{kind}`, which does fill masks: "
        f'`AutoModelForMaskedLM.from_pretrained("{address}", subfolder="generator")`.'
    )
    return said


def random_module(model: Mapping[str, Any]) -> str | None:
    """Name of the module that a classifier has below its `classifier` and an exported model, by its record, has not.

    PEFT trains the `classifier` whole by itself, and freezes this one as it is.
    """
    beginnings = {"Bert": "pooler", "PrunedBert": "pooler", "DistilBert": "pre_classifier"}
    beginnings |= {"ModernBertModel": "head", "PrunedModernBertModel": "head"}
    name = "" if model.get("pooler") else model.get("stock_class") or ""
    return next((module for beginning, module in beginnings.items() if name.startswith(beginning)), None)


def limits(record: Mapping[str, Any]) -> list[str]:
    """Sentences on what the model of a record is not good for."""
    data, length, untrained = part(record, "data"), longest_rows(record), untrained_positions(record)
    said, text = [], f"`{cell(data['dataset'])}`" if data.get("dataset") else "its training text"
    if length is not None:
        known = part(part(record, "recipe"), "model").get("from")
        further = f" Its further {untrained:,} positions are untrained." if untrained else ""
        further = f" For longer ones it is at best what `{known}` was." if known else further
        said.append(
            f"Inputs of more than {length:,} tokens, the length that it was trained at: "
            f"`tokenizer(text, truncation=True, max_length={length})` cuts them.{further}"
        )
    return [
        *said,
        f"Text unlike {text}, such as that of another language or field.",
        "Decisions about people: the errors and prejudices of its text are in it, and nobody has looked for them.",
        "Writing text: it is an encoder, to be fine-tuned for a task.",
        "Similarity of sentences, before it is fine-tuned for it: its hidden states are no sentence vectors.",
    ]


def score_rows(scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns the cells of the card's table of scores; the held-out loss has its own table."""
    return [
        {
            "name": name,
            "value": "undefined" if score["value"] is None else f"{score['value']:.4f}",
            "spread": "" if score.get("spread") is None else f"{score['spread']:.4f}",
            "n": f"{score['n']:,}",
            "notes": cell("; ".join(score.get("notes") or ())),
        }
        for name, score in scores.items()
        if name != "held_out_loss"
    ]


def score_results(scores: Mapping[str, Mapping[str, Any]], fills_masks: bool) -> list[EvalResult]:
    """Returns the defined scores as the Hub indexes them; the protocol stays part of a metric's name.

    If `fills_masks` is `True`, BLiMP counts as a score of the task fill-mask.
    """
    of_blimp = "fill-mask" if fills_masks else "other"
    results = []
    for name, score in scores.items():
        task, _, figure = name.partition("/")
        if figure and score["value"] is not None:
            results.append(
                EvalResult(
                    task_type=of_blimp if task == "blimp" else "text-classification",
                    dataset_type=task,
                    dataset_name=task,
                    metric_type=figure.partition("@")[0],
                    metric_name=name,
                    metric_value=round(score["value"], 4),
                )
            )
    return results
