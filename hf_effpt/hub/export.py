"""Turns a training checkpoint into a model that needs nothing but `transformers`."""

import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoTokenizer, BertConfig, BertModel, ElectraModel, PreTrainedModel

import hf_effpt.models
from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, replacing_folder_contents, write_json
from hf_effpt.core.ledger import ledger_of
from hf_effpt.core.objectives import objective_of
from hf_effpt.core.targets import check_folder
from hf_effpt.models import pruned_bert, pruned_modernbert
from hf_effpt.models.base import EffptMixin, dense_of, exports_of, facts_of, fill, pooling_of, pruning_of
from hf_effpt.models.checkpoint_weights import take_average
from hf_effpt.models.configuration_electra import bert_settings
from hf_effpt.models.kept_heads import EXTRA, read_tensors, save_stock
from hf_effpt.models.quiet import without_bars

from .card import model_card
from .folders import CODE_FILES, RECIPE, TOKENIZER_FILES, check_free, check_whole, files_of, read_recipe, recipe_of

# Keys of a finished run's record that do not hold for an earlier checkpoint.
OF_THE_END = ("pruning", "evaluation", "throughput", "energy", "scores", "costs", "learning_rate")
MISFITS = ("missing_keys", "unexpected_keys", "mismatched_keys")
# Keys that do not hold once layers are removed.
OF_ALL_LAYERS = ("evaluation", "scores")

Prune = Callable[[PreTrainedModel], tuple[PreTrainedModel, dict[str, Any]]]

HOMES = (transformers, pruned_bert, pruned_modernbert)  # of the classes of exported models


def export(
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    *,
    as_bert: bool = False,
    dense: bool = False,
    pruner_of: Callable[[Path], Prune] | None = None,
) -> Path:
    """Writes the stock model of a training checkpoint, with tokenizer, card and run record, into the folder `out`.

    A BERT with narrower layers has no stock class, so it is written with the code that loads it, unless `dense`. The
    result is read back with the exported class and compared before anything in `out` changes. Of a run with
    `training.average` it is the average that the checkpoint holds, as at the end of the run.

    Args:
        checkpoint (`str` or `os.PathLike`): a training checkpoint (`OUT/checkpoint-900`), or the folder of a finished
            run (`OUT`), whose stock model is copied.
        out (`str` or `os.PathLike`): an empty or new folder, an earlier export, or the checkpoint's own run folder
            if that run never finished.
        as_bert (`bool`, *optional*, defaults to `False`): if `True`, write the encoder of an ELECTRA as a `BertModel`,
            the same function where embedding size and hidden size are equal.
        dense (`bool`, *optional*, defaults to `False`): if `True`, write a model with narrower layers as a stock one
            of the full width, with zeros for the removed parts: the same function, but as slow as an uncut model.
        pruner_of (`Callable`, *optional*): makes the model shallower, such as
            `hf_effpt.evaluation.pruning.pruner_of` with a depth. It is called with the checkpoint's folder before
            anything is loaded, and returns a function from the stock model to the pruned one and its entry for
            `run.json`. A generator keeps its depth.

    Returns:
        `Path`: `out`.

    Raises:
        EffptError: if `checkpoint` holds no complete checkpoint, if `out` holds other files, if the tokenizer does
            not fit the model, if the model cannot be a BERT, or if the disk is full.
    """
    checkpoint, out = Path(checkpoint), check_folder(out)
    check_whole(checkpoint)
    check_free(checkpoint, out)
    prune = None if pruner_of is None else pruner_of(checkpoint)
    architecture = (read_json(checkpoint / "config.json").get("architectures") or ["unknown"])[0]
    training_class = getattr(hf_effpt.models, architecture, None)
    changes = _Changes(prune, dense, as_bert)
    with without_bars(), replacing_folder_contents(out) as folder:
        if training_class is None:
            _copy_run(checkpoint, architecture, folder, changes)
        else:
            _export_checkpoint(checkpoint, training_class, folder, changes)
    return out


class _Changes(NamedTuple):
    """Changes to make to the exported model."""

    prune: Prune | None
    dense: bool
    as_bert: bool

    def apply(self, stock: PreTrainedModel, run: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Returns the changed model and its record."""
        if self.prune is not None:
            stock, said = self.prune(stock)
            if "pruning" in run:  # the model had been pruned already
                said = said | {"before": run["pruning"]}
            run = {key: value for key, value in run.items() if key not in OF_ALL_LAYERS} | {"pruning": said}
        stock = dense_of(stock) if self.dense else stock
        return to_bert(stock) if self.as_bert else stock, run


def _copy_run(root: Path, architecture: str, folder: Path, changes: _Changes) -> None:
    if not (root / "run.json").is_file():
        raise EffptError(
            f"{str(root)!r} holds a `{architecture}` that no run of hf_effpt has written (there is no run.json), "
            "so there is nothing to export; pass a training checkpoint, such as OUT/checkpoint-900."
        )
    if (root / RECIPE).is_file():
        read_recipe(root / RECIPE)
    for name in files_of(root):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(root / name, folder / name)
    run = read_json(root / "run.json") | {"exported_from": root.resolve().name}
    exported_class = next(getattr(home, architecture) for home in HOMES if hasattr(home, architecture))
    stock, report = exported_class.from_pretrained(root, output_loading_info=True)
    if heads := sorted(report["unexpected_keys"]):  # which the run kept of the checkpoint that it went on from
        stock.__dict__[EXTRA] = read_tensors(root, heads)
    if changes.prune is not None:
        for name in run.pop("artifacts", ()):  # such as a ticket, which names the parts of all layers of the run
            (folder / Path(name).name).unlink(missing_ok=True)
    if any(changes):
        stock, run = changes.apply(stock, run)
        for name in CODE_FILES:  # saving the changed model writes those that it needs
            (folder / name).unlink(missing_ok=True)
        save_stock(stock, folder)
        kept = {key: value for key, value in run.get("model", {}).items() if key != "layer_widths"}
        run["model"] = kept | facts_of(stock)
        model_card(run).save(folder / "README.md")
    write_json(folder / "run.json", run)
    verify(folder, stock)


def _export_checkpoint(checkpoint: Path, training_class: type[EffptMixin], folder: Path, changes: _Changes) -> None:
    trained, report = training_class.from_pretrained(  # all misfits are named in one error below
        checkpoint, output_loading_info=True, ignore_mismatched_sizes=True
    )
    if misfits := [name for kind in MISFITS for name in sorted(map(str, report[kind]))]:
        raise EffptError(
            f"The weights in {str(checkpoint)!r} do not belong to its config.json; these do not fit: "
            f"{', '.join(misfits)}. Export a checkpoint whose files were saved together."
        )
    average = take_average(trained, checkpoint)
    ledger = ledger_of(trained.config)
    exports = exports_of(trained)
    stock, run = changes.apply(exports[""], _run_so_far(checkpoint) | pruning_of(exports[""]))
    exports[""] = stock
    # the run's root has the tokenizer when the checkpoint was saved without one
    source = checkpoint if (checkpoint / "tokenizer.json").is_file() else checkpoint.parent
    for place, exported in exports.items():
        save_stock(exported, folder / place)
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / place / name)
        if place:
            verify(folder / place, exported)
    if recipe := recipe_of(checkpoint):
        shutil.copyfile(recipe, folder / RECIPE)
    verify(folder, stock)
    model = {"objective": objective_of(trained.config), "training_class": training_class.__name__}
    run |= {"average": average} if average else {}
    run |= {"ledger": ledger, "model": model | facts_of(stock)}
    write_json(folder / "run.json", run)
    model_card(run).save(folder / "README.md")


def _run_so_far(checkpoint: Path) -> dict[str, Any]:
    """Returns the record of the run up to this checkpoint, from the run's folder and the trainer's state."""
    root, run = checkpoint.resolve().parent, {}
    if (root / "run.json").is_file():
        run = read_json(root / "run.json")
    elif recipe := recipe_of(checkpoint):
        run = {"recipe": read_recipe(recipe)}
    if (checkpoint / "trainer_state.json").is_file():
        state = read_json(checkpoint / "trainer_state.json")
        totals = state.get("stateful_callbacks", {}).get("ClockCallback", {}).get("attributes", {})
        names = [field.name for field in fields(Clock)]
        clock = {"steps": state["global_step"]} | {key: value for key, value in totals.items() if key in names}
        if run.get("clock", {}).get("steps") != clock["steps"]:
            # the totals and the evaluation of the finished run are not those of this earlier point
            run = {key: value for key, value in run.items() if key not in OF_THE_END}
            run |= {"clock": clock, "history": state["log_history"]}
    return run | {"exported_from": f"{root.name}/{checkpoint.name}"}


def to_bert(stock: PreTrainedModel) -> BertModel:
    """Returns the encoder of a stock ELECTRA as a BERT without pooler: same parameters, names and outputs.

    Raises `EffptError` for another architecture, or an embedding size that is not the hidden size.
    """
    encoder = stock.base_model
    if isinstance(encoder, BertModel):
        return encoder
    if not isinstance(encoder, ElectraModel):
        raise EffptError(f"A `{type(encoder).__name__}` cannot be exported as a BERT; leave `as_bert` out.")
    sizes = encoder.config.embedding_size, encoder.config.hidden_size
    if sizes[0] != sizes[1]:
        raise EffptError(
            f"The encoder has embeddings of {sizes[0]} projected to {sizes[1]}, which a BERT does not have; leave "
            "`as_bert` out, or pre-train with `model.embedding_size` equal to the hidden size."
        )
    with torch.device("meta"):
        bert = BertModel(BertConfig(**bert_settings(encoder.config)), add_pooling_layer=False)
    fill(bert, encoder)
    return bert


def verify(folder: str | os.PathLike, model: PreTrainedModel) -> None:
    """Reads `folder` back with `model`'s class and compares the weights.

    Raises `EffptError` if a parameter is missing, unexpected or different, or the tokenizer exceeds the vocabulary.
    """
    loaded, report = type(model).from_pretrained(folder, output_loading_info=True, **pooling_of(model))
    misfits = {kind: {*report[kind]} - {*model.__dict__.get(EXTRA, {})} for kind in MISFITS}
    faults = [f"{kind} {sorted(names)}" for kind, names in misfits.items() if names]
    written = loaded.state_dict()
    faults += [
        f"different {name}"
        for name, value in model.state_dict().items()
        if name in written and not torch.allclose(written[name], value.cpu(), rtol=0, atol=0, equal_nan=True)
    ]
    if faults:
        raise EffptError(f"The export of `{type(model).__name__}` does not load back: {'; '.join(faults)}.")
    if (Path(folder) / "tokenizer.json").is_file():
        tokens, vocabulary = len(AutoTokenizer.from_pretrained(folder)), model.config.vocab_size
        if tokens > vocabulary:
            raise EffptError(
                f"The tokenizer has {tokens} tokens but the model only {vocabulary} embeddings: it is not the "
                "tokenizer this model was trained with. Put the right one beside the checkpoint; nothing was saved."
            )
