"""Mixins of the training models: methods on a stock class and export back to one; the forward on masked text."""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import BertModel, PreTrainedModel

from hf_effpt.core.depth import PRUNING, first_layers, flatten, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.head_inputs import HeadInputs
from hf_effpt.core.method import Method
from hf_effpt.core.padding import real_tokens
from hf_effpt.core.registry import build_methods
from hf_effpt.core.snapshot import Snapshot, tied_to_others
from hf_effpt.core.undriven import watch
from hf_effpt.core.width import resize, widen

from .configuration_effpt import settings_of
from .encoder_inputs import encoder_inputs
from .kept_heads import EXTRA, FROM_HUB, KeptHeads, keep_heads
from .kept_heads import NAME as KEPT
from .pruned_bert import PrunedBertConfig
from .pruned_modernbert import PrunedModernBertConfig
from .resizing import refuse_snapshot, resize_parts


def _is_undefined(tensor: Tensor) -> bool:
    """`True` for a tensor of a model that is being loaded whose values are not among the loaded weights."""
    return not tensor.is_meta and not getattr(tensor, "_is_hf_initialized", False)


class EffptMixin:
    """Adds methods to a stock `PreTrainedModel` class; placed before it in the bases.

    Without methods, outputs, gradients, parameter names and random numbers are those of the stock class.
    """

    stock_class: ClassVar[type[PreTrainedModel]]
    narrow_class: ClassVar[type[PreTrainedModel] | None] = None  # the class it exports to with narrower layers
    config: Any
    _keys_to_ignore_on_load_missing: Any
    _keys_to_ignore_on_load_unexpected: Any
    pretrains: ClassVar[bool] = False  # `True` if it learns from masked text, `False` if from the labels of a task
    main_loss_name: ClassVar[str | None] = None  # the metric that judges a model whose loss has several parts
    training_only: ClassVar[tuple[str, ...]] = ()  # prefixes of parameters and buffers that are not exported
    continued = False  # `True` if its weights were trained elsewhere, on rows of a length that it does not know
    start_cost: Any = None  # of the values that a new model begins with, for its first run to pay
    accepts_loss_kwargs = False  # the stock loss is a micro-batch mean, which the Trainer divides by the accumulation

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        methods = build_methods(config.methods, config)
        checkpointing = getattr(config, "gradient_checkpointing", False)  # the first part that is built takes it out
        self._without_ledger = getattr(config, "layer_order", None) is None
        super().__init__(config, *args, **kwargs)
        self.complete(config)
        if config.layer_widths is not None:
            resize(self.backbone, config.layer_widths)
        if not self._without_ledger:
            stack_of(self.backbone)  # layers run in the order of the configuration, with methods or without
        if getattr(config, "kept_heads", None):
            self.kept_heads = KeptHeads(config.kept_heads)
        self.methods: list[Method] = methods
        for method in methods:
            method.inject(self.backbone)
        if checkpointing:
            self._checkpoint_layers()
        self.snapshot: Snapshot | None = None
        self.keep_snapshot()
        if methods:
            watch(self)

    def _checkpoint_layers(self) -> None:
        """Enables gradient checkpointing of all parts, whichever of them has it already."""
        for part in self.modules():
            if isinstance(part, PreTrainedModel):
                part.disable_input_require_grads()
        kind = "activation" if hasattr(self, "activation_checkpointing_enable") else "gradient"  # its older name
        getattr(self, f"{kind}_checkpointing_enable")()

    @classmethod
    def is_custom_code(cls) -> bool:
        """`False`: parameters are initialized as in the stock class, also where a module initializes its children."""
        return False

    def complete(self, config: Any) -> None:
        """Adds modules to the stock architecture, before methods are injected."""

    def initialize_weights(self) -> None:
        """Initializes like the stock class; modules of methods reset their parameters that loaded weights lack.

        Buffers of methods that they lack and no module resets are zero: loading leaves them without values.
        """
        super().initialize_weights()
        for module in self.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and name not in module._non_persistent_buffers_set and _is_undefined(buffer):
                    buffer.zero_()
        for module in self.modules():
            if (reset_missing_parameters := getattr(module, "reset_missing_parameters", None)) is not None:
                reset_missing_parameters()

    def keep_snapshot(self) -> None:
        """Adds a snapshot if a method may rewind the weights, and removes it once none may."""
        if not any(method.needs_snapshot for method in self.methods):
            self.snapshot = None
        elif self.snapshot is None:
            self.snapshot = Snapshot(self)
            # A new run takes its own snapshot, so weights without one are complete.
            self._keys_to_ignore_on_load_missing = {*(self._keys_to_ignore_on_load_missing or ()), r"^snapshot\."}
            # Checkpoints of older versions may hold a tied tensor twice.
            twice = {rf"^snapshot\.{re.escape(name)}$" for name in tied_to_others(self)}
            self._keys_to_ignore_on_load_unexpected = {*(self._keys_to_ignore_on_load_unexpected or ()), *twice}

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resizes the tables as in the stock class, and those of modules of methods that `resize_vocabulary`.

        Raises an `EffptError` if methods may rewind the weights to a snapshot that is taken.
        """
        known, step = self.config.vocab_size, pad_to_multiple_of or 1
        if -(-(new_num_tokens or known) // step) * step != known:
            refuse_snapshot(self, "the vocabulary")
        table = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        resize_parts(self)
        return table

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads like the stock class; methods `adopt` weights that do not come from a training model.

        Heads of a published checkpoint that have no place in the model are kept for its export.
        """
        told = kwargs.pop("output_loading_info", False)
        model, report = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if cls.pretrains and (names := sorted(report["unexpected_keys"])):
            source = args[0] if args else kwargs["pretrained_model_name_or_path"]
            keep_heads(model, source, names, **{key: kwargs[key] for key in FROM_HUB if key in kwargs})
        model.after_loading()
        return (model, report) if told else model

    def after_loading(self) -> None:
        """Adapts the model to weights that were loaded into it."""
        if self._without_ledger:
            self.continued = True
            for method in self.methods:
                method.adopt(self.backbone)

    def add_method(self, name: str, **settings: Any) -> None:
        """Adds a method to an existing model.

        Raises an `EffptError` if the model has it already, a setting is invalid, or it conflicts with another method.
        """
        if name in self.config.methods:
            raise EffptError(f"The model has the method `{name}` already; set it in `config.methods` instead.")
        ledger = {**self.config.methods, name: settings}
        self.methods = build_methods(ledger, self.config)
        self.config.methods = ledger
        next(method for method in self.methods if method.name == name).inject(self.backbone)
        watch(self)
        self.keep_snapshot()

    def enable_input_require_grads(self) -> None:
        """Lets gradients reach the outputs of the embeddings as in the stock class, unless nothing needs them.

        Only reentrant checkpointing does. Else layers below all that learns would run backward for nothing.
        """
        savings = [m.__dict__["_gradient_checkpointing_func"] for m in self.modules() if recomputes(m)]
        if not savings or any(getattr(saving, "keywords", {}).get("use_reentrant", True) for saving in savings):
            super().enable_input_require_grads()

    @property
    def backbone(self) -> nn.Module:
        """The encoder that methods act on and that is exported."""
        return self.base_model

    def export(self, dense: bool = False) -> PreTrainedModel:
        """A model without methods, with the same outputs in evaluation mode, at the present depth.

        It is a stock model. Only a model with narrower layers becomes one of [`PrunedBertConfig`] or
        [`PrunedModernBertConfig`], with code of its own. If `dense`, or if there is no such class, it is a stock model
        of the full width with zeros in the place of removed weights. Weights are the present ones, after a run
        with `training.average` the last; the average is exported in `with trainer.average.applied()`.
        """
        plain = copy.deepcopy(self)
        plain.snapshot = None
        for method in plain.methods:
            method.eject(plain.backbone)
        flatten(plain.backbone)
        if plain.config.layer_widths is not None and (dense or not self.narrow_class):
            widen(plain.backbone)
        plain.before_export()
        with torch.device("meta"):
            stock = self.stock_class_of(plain.config)(plain.config.stock())
        fill(stock, plain, self.stock_name)
        stock.__dict__[PRUNING] = plain.backbone.__dict__.get(PRUNING)
        if (kept := getattr(plain, KEPT, None)) is not None:
            stock.__dict__[EXTRA] = kept.tensors()
        return stock

    @classmethod
    def stock_class_of(cls, config: Any) -> type[PreTrainedModel]:
        """The class that a model of this configuration exports to; a stock one unless its layers are narrower."""
        return cls.narrow_class if cls.narrow_class and config.layer_widths is not None else cls.stock_class

    def stock_name(self, name: str) -> str | None:
        """The name of a parameter or buffer in the exported model; `None` if it is not exported."""
        return None if name.startswith((*self.training_only, f"{KEPT}.")) else name

    def before_export(self) -> None:
        """Turns the parameters of a copy into those of the stock model; called before they are exported."""

    def extra_exports(self) -> dict[str, PreTrainedModel]:
        """Further stock models to export, by folder name."""
        return {}

    def mean_pool(self, batch: Mapping[str, Tensor], layers: int | None = None) -> Tensor:
        """Mean vector of each row of a batch over its tokens without padding, in fp32, of shape `(batch_size, size)`.

        Only the first `layers` run, by default all; 0 averages the word embeddings.
        """
        ids_BL = batch["input_ids"]
        if layers == 0:
            vectors_BLD = self.backbone.get_input_embeddings()(ids_BL)
        else:
            with first_layers(self.backbone, layers):
                vectors_BLD = self.backbone(return_dict=True, **encoder_inputs(self, batch)).last_hidden_state
        real_BL = real_tokens(ids_BL, batch.get("attention_mask"), batch.get("document_ids"))
        share_BL = real_BL.float() / real_BL.sum(dim=1, keepdim=True).clamp(min=1)
        return (share_BL[:, :, None] * vectors_BLD.float()).sum(dim=1)

    @staticmethod
    def count_items(batch: Mapping[str, Tensor]) -> Tensor | None:
        """Number of labels of a micro-batch, over which the loss is averaged; `None` without labels."""
        labels = batch.get("labels")
        return None if labels is None else (labels != -100).sum()

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics of a log entry or an evaluation, from sums over its batches."""
        return {}

    def floor(self, metrics: Mapping[str, float], unigram_floor: float | None) -> float | None:
        """Held-out loss of a model that knows nothing of the context of a token; `None` if unknown."""
        return metrics.get("floor")

    def cost_signature(self) -> str:
        """Text that is equal for models whose steps take the same time with the same layers."""
        return ""


class PretrainingMixin(EffptMixin):
    """An [`EffptMixin`] for models that learn from masked text; each computes its losses in `_learn`."""

    pretrains = True
    accepts_loss_kwargs = True  # losses are divided by `num_items_in_batch`, the number of the whole step

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        loss_weight_inputs: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the stock forward without `labels`; with them, computes the loss of a masked batch.

        A BERT then returns no logits; models with a generator return a [`JointOutput`].

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as in the stock class.
            labels (`Tensor` of shape `(batch_size, sequence_length)`): original ids at masked positions, -100
                elsewhere.
            masked_positions (`Tensor` of shape `(batch_size, masked)`, *optional*): positions of the labels. They
                keep shapes static and avoid a wait for the device; entries whose label is -100 are ignored, and those
                that repeat another.
            document_ids (`Tensor` of shape `(batch_size, sequence_length)`, *optional*): the document of each token
                within its row, from 1, and 0 for padding; a document attends to itself only, with positions from 0.
            num_items_in_batch (`Tensor` or `int`, *optional*): masked tokens of the whole optimizer step, by which
                the summed loss is divided, by default those of this batch; with a generator a tensor of shape `(2,)`,
                the numbers of masked positions and of tokens, which divide the losses over each.
            loss_weight_inputs (`Tensor` of shape `(batch_size,)` or `(batch_size, masked)`, *optional*): passed to
                methods that weight the main loss token by token.
        """
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "labels": labels,
            "masked_positions": masked_positions,
            "document_ids": document_ids,
            "num_items_in_batch": num_items_in_batch,
            "loss_weight_inputs": loss_weight_inputs,
            **kwargs,
        }
        return_dict = kwargs.get("return_dict")
        if labels is None:
            return self._without_labels(super().forward(**encoder_inputs(self, batch), return_dict=return_dict))
        output = self._learn(batch)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _without_labels(self, output: Any) -> Any:
        """The output of `forward` without `labels`, from the stock one."""
        return output

    def _learn(self, batch: Mapping[str, Any]) -> Any:
        """The output of `forward`, from its arguments by name, with `labels`."""
        raise NotImplementedError

    def head_inputs(
        self, batch: Mapping[str, Tensor], layers: int | None = None, of_generator: bool = False
    ) -> HeadInputs:
        """The outputs of an encoder where it predicts, on its training input, and the head above them.

        Args:
            batch (`Mapping[str, Tensor]`): arguments of `forward`, with `labels`.
            layers (`int`, *optional*): number of layers of that encoder to run, from the first; by default all.
            of_generator (`bool`, *optional*, defaults to `False`): if `True`, use the generator, which predicts
                tokens, instead of the main model.

        Raises:
            EffptError: if `of_generator` of a model without one, or if logits of the main model cannot be compared.
        """
        raise NotImplementedError


def recomputes(module: nn.Module) -> bool:
    """`True` if `module` computes its activations anew in the backward pass instead of keeping them."""
    return bool(module.__dict__.get("gradient_checkpointing"))


def pruning_of(stock: PreTrainedModel) -> dict[str, Any]:
    """The entry of `run.json` about layers that a method left out of an export, if it did."""
    found = stock.__dict__.get(PRUNING)
    return {PRUNING: found} if found else {}


def dense_of(exported: PreTrainedModel) -> PreTrainedModel:
    """An exported model as a stock one of the full width, with zeros for removed weights."""
    if not isinstance(exported.config, PrunedBertConfig | PrunedModernBertConfig):
        return exported
    plain = copy.deepcopy(exported)
    widen(plain.base_model)
    stock_class: Any = next(cls for cls in type(exported).__mro__ if cls.__module__.startswith("transformers.models."))
    config = stock_class.config_class(**settings_of(plain.config, "layer_widths", "auto_map"))
    with torch.device("meta"):
        stock = stock_class(config, **pooling_of(plain))
    fill(stock, plain)
    if EXTRA in exported.__dict__:
        stock.__dict__[EXTRA] = exported.__dict__[EXTRA]
    return stock


def pooling_of(model: nn.Module) -> dict[str, bool]:
    """Keyword arguments with which the class of `model` builds a pooler only if `model` has one."""
    return {"add_pooling_layer": False} if isinstance(model, BertModel) and model.pooler is None else {}


def facts_of(exported: PreTrainedModel) -> dict[str, Any]:
    """The entries of `run.json` about the architecture of an exported model."""
    facts = {"stock_class": type(exported).__name__, "parameters": exported.num_parameters()}
    pooler = getattr(exported.base_model, "pooler", None)
    if pooler is not None or any("pooler" in name for name in exported.__dict__.get(EXTRA, ())):
        facts["pooler"] = True
    widths = getattr(exported.config, "layer_widths", None)
    return facts if widths is None else facts | {"layer_widths": widths}


def exports_of(model: Any) -> dict[str, PreTrainedModel]:
    """The exports of a training model by subfolder; the main model's is the root, `""`."""
    return {"": model.export(), **model.extra_exports()}


def fill(stock: PreTrainedModel, source: nn.Module, name_of: Callable[[str], str | None] = lambda name: name) -> None:
    """Fills a stock model on the meta device, in place, with the parameters and buffers of `source`, not copied.

    `name_of` maps the name of a tensor of `source` to its name in `stock`, or to `None` to leave it out.
    """
    state = {new: tensor for name, tensor in source.state_dict().items() if (new := name_of(name)) is not None}
    stock.load_state_dict(state, strict=True, assign=True)
    stock.tie_weights()
    for name, buffer in source.named_buffers():
        new = name_of(name)
        if new is not None and new not in state:  # no state dict holds it
            owner, _, leaf = new.rpartition(".")
            setattr(stock.get_submodule(owner), leaf, buffer)
    stock.generation_config = None
    stock.eval()
