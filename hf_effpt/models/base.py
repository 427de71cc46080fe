"""What every training model has: its methods put in, the backbone they act on, and the way back to a stock model."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel

from hf_effpt.core.depth import first_layers, flatten
from hf_effpt.core.errors import EffptError
from hf_effpt.core.ledger import PRUNING
from hf_effpt.core.method import Method
from hf_effpt.core.registry import build_methods
from hf_effpt.core.snapshot import Snapshot
from hf_effpt.core.width import resize, widen

from .pruned_bert import PrunedBertConfig


class EffptMixin:
    """Adds methods to a stock `PreTrainedModel` class; placed before it in the bases.

    With no methods, outputs, gradients, parameter names and the use of random numbers are those of the stock class.
    """

    stock_class: ClassVar[type[PreTrainedModel]]
    _keys_to_ignore_on_load_missing: Any
    pretrains: ClassVar[bool] = False  # whether it learns from masked text, and not from labels of a task
    main_loss_name: ClassVar[str | None] = None  # of a model whose loss has parts, the figure that it is judged by
    training_only: ClassVar[tuple[str, ...]] = ()  # beginnings of the names of what is not exported
    # What methods learn in steps too small for half precision, whatever the rest is loaded in.
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["width_gates", "gates", "masks.scores"]
    exports_narrow: ClassVar[bool] = False  # whether there is a class for what it exports with narrower layers

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        methods = build_methods(config.methods, config)
        self._without_ledger = getattr(config, "layer_order", None) is None
        super().__init__(config, *args, **kwargs)
        self.complete(config)
        if config.layer_widths is not None:
            resize(self.backbone, config.layer_widths)
        self.methods: list[Method] = methods
        for method in methods:
            method.inject(self.backbone)
        self.snapshot: Snapshot | None = None
        self.keep_snapshot()

    def complete(self, config: Any) -> None:
        """Adds what the model has besides its stock architecture, before methods are put in."""

    def initialize_weights(self) -> None:
        """As in the stock class; what a method has put in draws itself where the weights that are loaded lack it."""
        super().initialize_weights()
        for module in self.modules():
            if (reset_missing_parameters := getattr(module, "reset_missing_parameters", None)) is not None:
                reset_missing_parameters()

    def keep_snapshot(self) -> None:
        """Has the model keep a copy of its weights for as long as a method may rewind them."""
        if not any(method.needs_snapshot for method in self.methods):
            self.snapshot = None
        elif self.snapshot is None:
            # What selection has learned of the rows is true of them whatever the weights are.
            self.snapshot = Snapshot(self, without=("selector.",))
            # A copy that a new run makes of its own weights is not missing from those of others.
            self._keys_to_ignore_on_load_missing = {*(self._keys_to_ignore_on_load_missing or ()), r"^snapshot\."}

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in the stock class; weights that no run with the model's methods has left are taken as they are."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model._without_ledger:
            for method in model.methods:
                method.adopt(model.backbone)
        return loaded

    def add_method(self, name: str, **settings: Any) -> None:
        """Switches on a further method of an existing model.

        Raises:
            EffptError: if the model has it already, its settings are impossible, or it conflicts with another method.
        """
        if name in self.config.methods:
            raise EffptError(f"The model has the method `{name}` already; set it in `config.methods` instead.")
        ledger = {**self.config.methods, name: settings}
        self.methods = build_methods(ledger, self.config)
        self.config.methods = ledger
        next(method for method in self.methods if method.name == name).inject(self.backbone)
        self.keep_snapshot()

    @property
    def backbone(self) -> nn.Module:
        """The encoder that methods act on and that is exported."""
        return self.base_model

    def export(self, dense: bool = False) -> PreTrainedModel:
        """A model with the same function in evaluation mode, at the present depth, every method taken out.

        It is a stock one, but where layers have been made narrower: then it is one of [`PrunedBertConfig`], which
        brings its own code, unless it is to be `dense`, or has no such class: a stock model of the full width, with
        zeros for what has been cut away.
        """
        plain = copy.deepcopy(self)
        plain.snapshot = None
        for method in plain.methods:
            method.eject(plain.backbone)
        flatten(plain.backbone)
        if plain.config.layer_widths is not None and (dense or not self.exports_narrow):
            widen(plain.backbone)
        plain.before_export()
        with torch.device("meta"):
            stock = self.stock_class_of(plain.config)(plain.config.stock())
        fill(stock, plain, self.stock_name)
        stock.__dict__[PRUNING] = plain.backbone.__dict__.get(PRUNING)
        return stock

    @classmethod
    def stock_class_of(cls, config: Any) -> type[PreTrainedModel]:
        """The stock class that a model of this configuration exports to."""
        return cls.stock_class

    def stock_name(self, name: str) -> str | None:
        """The name that a parameter or buffer has in the exported model; `None` if it is only for training."""
        return None if name.startswith(self.training_only) else name

    def before_export(self) -> None:
        """Makes the parameters of a copy those of the stock model."""

    def extra_exports(self) -> dict[str, PreTrainedModel]:
        """Stock models that are exported besides, by the name of their folder."""
        return {}

    def mean_pool(self, batch: Mapping[str, Tensor], layers: int | None = None) -> Tensor:
        """A vector for each row, of shape `(batch_size, size)`: the mean over its tokens, without padding, in fp32.

        Args:
            batch (`Mapping[str, Tensor]`): `input_ids`, and what else the collator makes of rows.
            layers (`int`, *optional*): mean of what: 0, of the table of words at the tokens, and nothing else is
                computed; more, of the outputs of so many layers, the first; by default of those of the whole encoder.
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
        """What the loss of a micro-batch is a mean over: the number of its labels."""
        labels = batch.get("labels")
        return None if labels is None else (labels != -100).sum()

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What a log entry or an evaluation says of the model, from the sums that its batches left in the tally."""
        return {}

    def floor(self, metrics: Mapping[str, float], unigram_floor: float | None) -> float | None:
        """What the held-out loss has to get below to show that anything was learned of the text."""
        return metrics.get("floor")

    def cost_signature(self) -> str:
        """What of the model, besides its layers, decides the time of a step."""
        return ""


def pruning_of(stock: PreTrainedModel) -> dict[str, Any]:
    """What `run.json` says of layers that a method has left out of an export."""
    found = stock.__dict__.get(PRUNING)
    return {PRUNING: found} if found else {}


def dense_of(exported: PreTrainedModel) -> PreTrainedModel:
    """An exported model with narrower layers as a stock one of the full width; any other as it is."""
    if not isinstance(exported.config, PrunedBertConfig):
        return exported
    plain = copy.deepcopy(exported)
    widen(plain.base_model)
    left_out = ("model_type", "architectures", "transformers_version", "layer_widths", "auto_map")
    config = BertConfig(**{key: value for key, value in plain.config.to_dict().items() if key not in left_out})
    stock_class = next(cls for cls in type(exported).__mro__ if cls.__module__ == BertModel.__module__)
    with torch.device("meta"):
        stock = stock_class(config, **pooling_of(plain))
    fill(stock, plain)
    return stock


def pooling_of(model: nn.Module) -> dict[str, bool]:
    """What the constructor of an encoder has to be told, so that it has a pooler where `model` has one."""
    return {"add_pooling_layer": False} if isinstance(model, BertModel) and model.pooler is None else {}


def facts_of(exported: PreTrainedModel) -> dict[str, Any]:
    """What `run.json` says of the architecture of an exported model."""
    facts = {"stock_class": type(exported).__name__, "parameters": exported.num_parameters()}
    widths = getattr(exported.config, "layer_widths", None)
    return facts | ({} if widths is None else {"layer_widths": widths})


def exports_of(model: Any) -> dict[str, PreTrainedModel]:
    """What a training model exports to, by the place in the folder; the main model's is the root."""
    return {"": model.export(), **model.extra_exports()}


def fill(stock: PreTrainedModel, source: nn.Module, name_of: Callable[[str], str | None] = lambda name: name) -> None:
    """Gives a stock model, still without storage, the parameters and buffers of `source`.

    Args:
        name_of (`Callable`, *optional*): the name in `stock` of a tensor of `source`, or `None` if it has none there.
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


# What of a batch is for the loss, or how it is given back, and not for the encoder.
NOT_ENCODED = ("labels", "masked_positions", "num_items_in_batch", "loss_weight_inputs", "return_dict")


def encoder_inputs(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the encoder of a model is given of a masked batch; documents are kept apart."""
    inputs = {name: value for name, value in batch.items() if name not in NOT_ENCODED}
    document_ids = inputs.pop("document_ids", None)
    if document_ids is not None:
        attention = model.config._attn_implementation
        inputs["attention_mask"], inputs["position_ids"] = isolate_documents(document_ids, attention, model.dtype)
    return inputs


def real_tokens(like_BL: Tensor, attention_mask: Tensor | None, document_ids: Tensor | None) -> Tensor:
    """Where a row has tokens and no padding, of the shape of `like_BL`."""
    if document_ids is not None:
        return document_ids > 0
    if attention_mask is not None:
        return attention_mask == 1
    return torch.ones_like(like_BL, dtype=torch.bool)


def isolate_documents(document_ids_BL: Tensor, attention: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mask and positions that keep the documents packed in a row apart, as if each stood in a row of its own.

    B batch, L row length.

    Args:
        document_ids_BL (`Tensor` of shape `(batch_size, sequence_length)`): number of the document within the row,
            rising from 1; 0 for padding, which attends to padding only.
        attention (`str`): the attention implementation; `eager` adds its mask to the scores, the others take booleans.
        dtype (`torch.dtype`): of an additive mask.

    Returns:
        The mask of shape `(batch_size, 1, sequence_length, sequence_length)` and position ids from 0 in each document.
    """
    mask_B1LL = document_ids_BL[:, None, :, None] == document_ids_BL[:, None, None, :]
    if attention == "eager":
        mask_B1LL = torch.zeros_like(mask_B1LL, dtype=dtype).masked_fill_(~mask_B1LL, torch.finfo(dtype).min)
    index_L = torch.arange(document_ids_BL.shape[1], device=document_ids_BL.device)
    starts_BL = torch.ones_like(document_ids_BL, dtype=torch.bool)
    starts_BL[:, 1:] = document_ids_BL[:, 1:] != document_ids_BL[:, :-1]
    first_BL = torch.where(starts_BL, index_L, 0).cummax(dim=1).values
    return mask_B1LL, index_L - first_BL
