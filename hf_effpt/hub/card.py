"""Writes the model card: the content of `run.json` as a README with metadata for the Hub, and scores added to both."""

import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, write_atomically, write_json
from hf_effpt.core.objectives import OBJECTIVES, objective_in
from hf_effpt.core.registry import METHODS, method_class
from hf_effpt.core.row_method import RowMethod
from hf_effpt.core.settings import written

from . import card_parts
from .card_parts import Rows, cell, part, rows
from .card_settings import CardSettings
from .private import scrubbed

logger = logging.getLogger(__name__)
SEMANTIC = "semantic"  # a value of `data.select.deduplicate`
TEMPLATE = Path(__file__).with_name("template.md")


def model_card(run: Mapping[str, Any], repo_id: str | None = None) -> ModelCard:
    """Writes the model card of a run; the same record gives the same card, and missing parts are left out.

    Args:
        run (`Mapping`): the content of `run.json`. Its `card`, or that of its recipe, has what [`CardSettings`] names.
        repo_id (`str`, *optional*): `ORG/NAME` on the Hub, for the title and the code that loads the model.
    """
    run = scrubbed(dict(run))
    recipe, model, evaluation = part(run, "recipe"), part(run, "model"), part(run, "evaluation")
    given = CardSettings(**{**part(recipe, "card"), **part(run, "card")}).metadata()
    tags = given.pop("tags", [])
    ledger, data, environment = part(run, "ledger"), part(run, "data"), part(run, "environment")
    stock_class, objective = model.get("stock_class", "BertModel"), objective_in(run)
    predicts = stock_class.endswith("ForMaskedLM")
    fills_masks = predicts and OBJECTIVES[objective].reads_mask
    used = part(ledger, "methods")
    output_dir = part(recipe, "training").get("output_dir")
    name = (repo_id or Path(output_dir or "").name or run.get("name") or stock_class).split("/")[-1]
    scores = part(run, "scores")
    results = [*card_parts.loss_results(objective, evaluation, data), *card_parts.score_results(scores, fills_masks)]
    address = repo_id or "path/to/this/folder"
    widths = model.get("layer_widths")
    methods = [_method(key, settings or {}) for key, settings in used.items()]
    accounts = [(account or {}).get("text") for account in part(run, "accounts").values()]
    metadata = ModelCardData(
        library_name="transformers",
        # Without a tag the Hub would assume a head that fills masks.
        pipeline_tag="fill-mask" if fills_masks else "feature-extraction" if predicts else None,
        tags=list(dict.fromkeys(["hf_effpt", "pretraining", *used, *tags])),
        model_name=name if results else None,  # the Hub lists results under a name
        eval_results=results or None,
        co2_eq_emissions=_emissions(part(run, "energy"), environment),
        **given,
    )
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        title=name,
        intro=_intro(run, stock_class),
        widths=widths,
        code="modeling_pruned_modernbert.py" if "ModernBert" in str(stock_class) else "modeling_pruned_bert.py",
        trust=", trust_remote_code=True" if widths else "",
        objective=f"Objective: `{objective}`. {OBJECTIVES[objective].summary}{_next_tokens(data)}",
        heads=card_parts.head_notes(objective, stock_class, address),
        auto_class="AutoModelForMaskedLM" if fills_masks else "AutoModel",
        address=address,
        random_module=card_parts.random_module(model),
        limits=card_parts.limits(run),
        verdict=card_parts.loss_verdict(objective, evaluation),
        losses=card_parts.loss_rows(objective, evaluation),
        about_losses=card_parts.loss_note(objective, evaluation),
        scores=card_parts.score_rows(scores),
        methods=methods,
        events=[{key: cell(value) for key, value in event.items()} for event in ledger.get("events") or ()],
        costs=_costs(part(run, "clock"), part(run, "energy"), part(run, "throughput")),
        accounts=[" ".join(text.split()) for text in accounts if text],
        data=_data(data, part(run, "tokenizer"), card_parts.untrained_positions(run)),
        recipe=yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).strip() if recipe else None,
        command=run.get("command"),
        parts=[_part(one) for one in run.get("parts") or ()],
        environment=[(key, cell(value)) for key, value in environment.items() if value is not None],
        bibtex="\n".join(method["bibtex"] for method in methods if method["bibtex"]),
    )


def add_scores(folder: str | os.PathLike, scores: Mapping[str, Any]) -> bool:
    """Adds scores to the `run.json` of a run's folder, and to its model card unless somebody has edited it.

    Args:
        folder (`str` or `os.PathLike`): folder of a finished run or an export; any other is left alone.
        scores (`Mapping[str, Any]`): by name, as `evaluate` returns them; scores of the same name are replaced.

    Returns:
        `bool`: `True` if the card has them now.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        return False
    run = read_json(folder / "run.json")
    try:
        own, address = card_of(folder, run)
    except EffptError as error:
        logger.warning("the scores are not in the card: %s", error)
        own, address = False, None
    run["scores"] = {**(run.get("scores") or {}), **scores}
    write_json(folder / "run.json", run)
    if own:
        write_atomically(folder / "README.md", model_card(run, address).save)
    return own


def card_of(folder: Path, run: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Returns `True` if a folder's card is as its run wrote it, and the Hub address that it was written for.

    Raises an `EffptError` if that cannot be told, since a method of the run is not known here.
    """
    path = folder / "README.md"
    if not path.is_file():
        return True, None
    text = path.read_text(encoding="utf-8")
    found = re.search(r'from_pretrained\("([^"]+)"', text)  # the card may name another repository than the run
    for address in (None, found[1] if found else None):
        if text == str(model_card(run, address)):
            return True, address
    for name in part(part(run, "ledger"), "methods"):
        method_class(name)  # without it the card above has no summary of the method
    return False, None


def _intro(run: Mapping[str, Any], stock_class: str) -> str:
    clock, pruning, parameters = part(run, "clock"), part(run, "pruning"), part(run, "model").get("parameters")
    tokens, seconds = clock.get("tokens"), clock.get("seconds")
    size = f", {parameters:,} parameters" if parameters else ""
    length = f" for {duration(seconds)}" if seconds else ""
    amount = f" on {tokens:,} tokens" if tokens else ""
    source = f" and exported from `{run['exported_from']}`" if run.get("exported_from") else ""
    if pruning:
        source += (
            f". Of its {pruning['layers']} layers, counted from 0, those left are "
            f"{', '.join(map(str, pruning['kept']))}, chosen by `{pruning['strategy']}` and not trained since"
        )
    kind = "It is an ordinary Transformers checkpoint: to use it"
    if part(run, "model").get("layer_widths"):
        kind = "Its layers are narrower than stock ones, so it brings the code that builds them; besides that"
    return (
        f"An encoder (`{stock_class}`{size}), pre-trained{length}{amount} with `hf_effpt`{source}. "
        f"{kind}, `transformers` is all you need."
    )


def _part(part: Mapping[str, Any]) -> str:
    """Sentence on the settings with which a run went on."""
    settings = {key: value for key, value in part.items() if key != "step"}
    changed = [f"`{key}: {new}` (before: {old})" for key, (old, new) in settings.items()]
    return f"From step {part['step']:,} on it was trained with {', '.join(changed)}."


def _method(name: str, settings: Mapping[str, Any]) -> dict[str, str]:
    given = {key: value for key, value in settings.items() if value is not None}
    text = {"name": name, "settings": ", ".join(f"{key}: {written(value)}" for key, value in given.items())}
    text |= {"summary": "", "departures": "", "citation": "", "bibtex": ""}
    if name not in METHODS:  # a method of another package, which may not be imported here
        return text
    paper, text["summary"] = METHODS[name].paper, METHODS[name].summary
    with suppress(EffptError, TypeError):  # this version may not have these settings
        method = METHODS[name](**given)
        text["departures"] = method.departures
        if isinstance(method, RowMethod):
            paper, text["summary"] = method.cited, method.describe
    if paper is not None:
        title = f"[{paper.title}]({paper.url})" if paper.url else paper.title
        text |= {"citation": f"{title} ({paper.authors}, {paper.year})", "bibtex": paper.bibtex}
    return text


def _costs(clock: Mapping[str, Any], energy: Mapping[str, Any], throughput: Mapping[str, Any]) -> Rows:
    seconds, joules, budget = clock.get("seconds"), clock.get("joules"), clock.get("budget")
    kwh, grams = energy.get("kwh"), energy.get("co2e_grams")
    if kwh is not None:
        spent = f"{_figures(kwh)} kWh ({energy.get('source') or 'source unknown'})"
    else:  # an older record, without a part on energy
        spent = None if joules is None else f"{joules / 1e3:,.3f} kJ"
    carbon = None if grams is None else f"{_figures(grams)} g CO2e{_carbon_source(energy, ' ({})')}"
    return rows(
        [
            ("Budget", None if budget is None else f"{budget:,.15g} {clock['unit']}", "{}"),
            ("Optimizer steps", clock.get("steps"), "{:,}"),
            ("Tokens", clock.get("tokens"), "{:,}"),
            ("FLOPs", clock.get("flops"), "{:.3g}"),
            ("Time", None if seconds is None else duration(seconds), "{}"),
            ("Energy", spent, "{}"),
            ("Carbon", carbon, "{}"),
            ("Tokens per second", throughput.get("tokens_per_second"), "{:,.0f}"),
            ("Model FLOPs utilization", throughput.get("mfu"), "{:.1%}"),
        ]
    )


def _figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _carbon_source(energy: Mapping[str, Any], form: str) -> str:
    """Source of the grams: `475 g/kWh, world average`, or `codecarbon for FRA, which counted 0.04 kWh`."""
    source, intensity = energy.get("carbon_source"), energy.get("carbon_intensity")
    if source == "codecarbon":
        country, kwh = (part(energy, "codecarbon").get(key) for key in ("country", "kwh"))
        facts = [f"codecarbon for {country}" if country else source]
        # codecarbon counts more than the energy in the row above
        facts += [] if kwh is None else [f"which counted {_figures(kwh)} kWh"]
    else:
        facts = [] if intensity is None else [f"{_figures(intensity)} g/kWh"]
        facts += [source.split(" (")[0]] if source else []
    said = ", ".join(facts)
    return form.format(said) if said else ""


def _emissions(energy: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any] | None:
    """Entry on carbon in the Hub's format (Hub documentation, "Displaying carbon emissions for your model")."""
    grams = energy.get("co2e_grams")
    if grams is None:
        return None
    by_codecarbon = energy.get("carbon_source") == "codecarbon"
    source = "" if by_codecarbon else f"hf_effpt, energy {energy.get('source') or 'from an unknown source'}"
    entry = {
        "emissions": grams,
        "source": source + _carbon_source(energy, "{}" if by_codecarbon else "; {}"),
        "training_type": "pre-training",
        "geographical_location": part(energy, "codecarbon").get("country"),
        "hardware_used": environment.get("device"),
    }
    return {key: value for key, value in entry.items() if value is not None}


def _chosen_from(data: Mapping[str, Any]) -> str | None:
    """Number of documents before selection, and the rules that selected; `None` if all documents are used."""
    chosen = part(data, "select")
    if not chosen:
        return None
    told = ("deduplicate", "similarity", "model", "keep", "band")
    rules = ", ".join(f"`{key}: {chosen[key]}`" for key in told if key in chosen)
    stays = "; of alike ones the farthest from their cluster's centre" if chosen.get("deduplicate") == SEMANTIC else ""
    return f"{chosen.get('documents', 0):,} documents, by {rules}{stays}"


def _held_out(data: Mapping[str, Any]) -> str | None:
    """Size of the held-out text, and its share or source; `None` if that is not known."""
    aside = part(data, "held_out")
    if not aside:
        return None
    source = f"{aside['share']:.2%} of the text" if "share" in aside else f"`{aside.get('dataset')}`"
    return f"{aside.get('documents', 0):,} documents, {aside.get('tokens', 0):,} tokens: {source}"


def _drawn(data: Mapping[str, Any]) -> str | None:
    """Documents drawn from each source of a mixture; `None` if there is one source."""
    drawn = [f"{one['documents']:,} documents of `{one['dataset']}`" for one in data.get("sources") or ()]
    return ", ".join(drawn) or None


def _data(data: Mapping[str, Any], tokenizer: Mapping[str, Any], untrained: int) -> Rows:
    size, isolated, accents = data.get("bytes"), data.get("isolated"), card_parts.accents_in(tokenizer)
    # Runs that do not tell of accents have counted tokens.
    unknown = "Unknown tokens" if accents is None else "Unknown characters"
    return rows(
        [
            ("Corpus", data.get("dataset"), "`{}`"),
            ("Fingerprint", data.get("fingerprint"), "`{}`"),
            ("Documents", data.get("documents"), "{:,}"),
            ("Chosen from", _chosen_from(data), "{}"),
            ("Drawn from", _drawn(data), "{}"),
            ("Documents of .txt files", data.get("documents_by"), "`{}`"),
            ("Held out", _held_out(data), "{}"),
            ("Training documents that equal held-out ones", data.get("doubles"), "{:,}"),
            ("Raw text", None if size is None else size / 1e6, "{:,.2f} MB"),
            ("Tokens, packed", data.get("tokens"), "{:,}"),
            ("Sequence length", _lengths(data), "{}"),
            ("Untrained positions beyond it", untrained or None, "{}"),
            ("Documents isolated", None if isolated is None else ("yes" if isolated else "no"), "{}"),
            ("Tokenizer", tokenizer.get("kind"), "{}"),
            ("Vocabulary", tokenizer.get("vocab_size"), "{:,}"),
            ("Accents", accents, "{}"),
            (unknown, tokenizer.get("unknown_rate"), "{:.3%}"),
            ("Tokens per word", tokenizer.get("fertility"), "{:.2f}"),
        ]
    )


def _next_tokens(data: Mapping[str, Any]) -> str:
    """Sentence on the phases of a run that learned next tokens; empty without any."""
    phases = [{**data, "since": 0.0}, *data.get("phases", ())]
    ends = [*(phase["since"] for phase in phases[1:]), 1.0]
    spans = [
        f"{phase['since']:g} to {end:g}"
        for phase, end in zip(phases, ends, strict=True)
        if phase.get("objective") == "clm"
    ]
    return f" From {', '.join(spans)} of the clock it learned next tokens (`clm`) instead." if spans else ""


def _lengths(data: Mapping[str, Any]) -> str | None:
    """Tokens per row, and those of longer rows with the fraction of the clock at which they began."""
    if (first := data.get("sequence_length")) is None:
        return None
    since = {first: 0.0}
    for phase in data.get("phases", []):
        since.setdefault(phase["sequence_length"], phase["since"])
    return ", ".join(f"{length} from {at:g} of the clock on" if at else str(length) for length, at in since.items())


def duration(seconds: float) -> str:
    """Formats seconds for people: `42.0 s`, `12 min 5 s`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"
