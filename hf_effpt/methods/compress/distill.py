"""The teacher of a compressed model: the large one as it was right before the first cut.

B batch, L row length, D hidden size.
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_effpt.core.anatomy import (
    layer_types_of,
    layers_of,
    outside_layers,
    pooler_of,
    rotary_base_of,
    set_rotary_base,
)
from hf_effpt.core.depth import stack_of
from hf_effpt.core.gates import GatedLinear
from hf_effpt.core.ledger import archive_events
from hf_effpt.core.padding import real_tokens
from hf_effpt.core.width import resize, running_widths, widths_of

NAME = "teacher"  # attribute of the backbone, and key in its event: the widths of the teacher's layers
TYPES = "teacher_types"  # key in its event: the kinds of attention of the teacher's layers
BASE = "teacher_rotary_base"  # key in its event: the base of the teacher's rotary positions, if it has them
FOR_USERS = ("output_hidden_states", "output_attentions")  # further outputs that a caller may ask of the backbone


class Teacher(nn.Module):
    """Frozen earlier state of a backbone, whose last hidden states the backbone's are compared with in training.

    It is part of the backbone, so that checkpoints hold it, and its weights are buffers. It always runs in evaluation
    mode, without notes or dropped layers. `widths` are the heads and neurons of each of its layers, and `types` their
    kinds of attention if there are several.
    """

    is_work: ClassVar[bool] = True  # its hook is no onlooker: FLOPs are counted with it

    def __init__(self, backbone: Any, widths: Sequence[Sequence[int]], types: Sequence[str] | None = None) -> None:
        super().__init__()
        self.widths, self.types = [list(layer) for layer in widths], types
        self.encoder: Any = _stock_encoder(backbone, widths, types).eval()
        self.term: Tensor | None = None  # of the last forward pass, until it is taken

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "term": None}  # a copy of the model has had no forward, and graphs cannot be copied

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)

    def attach(self, backbone: Any) -> None:
        """Makes this the teacher of `backbone`, whose last layer then computes all positions in training."""
        setattr(backbone, NAME, self)
        self._handle = backbone.register_forward_hook(self.compare, with_kwargs=True)
        stack_of(backbone).read_whole = True

    def detach(self, backbone: Any) -> None:
        """Removes the teacher; `read_whole` stays, since another reader may need all positions."""
        self._handle.remove()
        delattr(backbone, NAME)

    @torch.no_grad()
    def resize_vocabulary(self, size: int) -> None:
        """Gives further tokens of a longer vocabulary, unknown to the teacher, the mean of its word embeddings."""
        table = self.encoder.get_input_embeddings()
        known_VD = table.weight[:size]
        more = known_VD.float().mean(dim=0).to(known_VD.dtype).expand(size - len(known_VD), -1)
        table.weight, table.num_embeddings = torch.cat([known_VD, more]), size
        self.encoder.config.vocab_size = size

    @torch.no_grad()
    def take_weights(self, backbone: Any) -> None:
        """Copies the weights of the layers of `backbone` that run, with gates folded in."""
        own = [*outside_layers(self.encoder), *layers_of(self.encoder).children()]
        layers = stack_of(backbone)
        for part, theirs in zip(own, [*outside_layers(backbone), *(layers[i] for i in layers.order)], strict=True):
            _copy_tensors(part, theirs)

    def compare(self, backbone: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook: sets `term` to the distance of the outputs from the teacher's on the same inputs."""
        if not backbone.training:
            return
        kwargs = {name: value for name, value in kwargs.items() if name not in FOR_USERS}
        with torch.no_grad():
            wanted_BLD = self.encoder(*args, **kwargs)[0]
        ids_BL = args[0] if args else kwargs.get("input_ids")
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        real_BL = real_tokens(wanted_BLD, mask, input_ids=ids_BL, pad=backbone.config.pad_token_id)
        self.term = distance(output[0], wanted_BLD, real_BL)

    def take_term(self) -> Tensor | None:
        """Returns the term of the last forward pass in training, and forgets it."""
        term, self.term = self.term, None
        return term


def distance(hidden_BLD: Tensor, wanted_BLD: Tensor, real_BL: Tensor) -> Tensor:
    """Mean squared difference of hidden states over real tokens, a scalar in fp32."""
    squared_BL = (hidden_BLD.float() - wanted_BLD.float()).square().mean(dim=2)
    return (squared_BL * real_BL).sum() / real_BL.sum().clamp(min=1)


def teach(backbone: Any) -> dict[str, Any]:
    """Makes the present state of `backbone` its teacher; returns the facts by which it is built again."""
    order, types = stack_of(backbone).order, layer_types_of(backbone.config)
    facts: dict[str, Any] = {NAME: running_widths(backbone)}
    if types:
        facts[TYPES] = [types[index] for index in order]
    if (base := rotary_base_of(backbone.config)) is not None:
        facts[BASE] = base
    teacher = Teacher(backbone, facts[NAME], facts.get(TYPES))
    teacher.take_weights(backbone)
    teacher.attach(backbone)
    return facts


def teach_again(backbone: Any) -> None:
    """Builds the teacher named in the configuration of `backbone`; its weights are still to be loaded."""
    for event in reversed(backbone.config.events or []):
        if NAME in event:
            teacher = Teacher(backbone, event[NAME], event.get(TYPES))
            if BASE in event and event[BASE] != rotary_base_of(backbone.config):  # the backbone's has changed since
                set_rotary_base(teacher.encoder, event[BASE])
            teacher.attach(backbone)
            return


def teacher_of(backbone: Any) -> Teacher | None:
    """Teacher of `backbone`; `None` if it has none."""
    return getattr(backbone, NAME, None)


def dismiss(backbone: Any) -> None:
    """Removes the teacher from `backbone` and from its configuration."""
    if (teacher := teacher_of(backbone)) is not None:
        teacher.detach(backbone)
        archive_events(backbone.config, (NAME, TYPES, BASE))


def _stock_encoder(backbone: Any, widths: Sequence[Sequence[int]], types: Sequence[str] | None) -> nn.Module:
    """Stock encoder with layers of these widths, whose tensors are buffers: constants, or zeros to be loaded."""
    config = copy.deepcopy(backbone.config)
    config.num_hidden_layers, config.layer_order, config.layer_widths = len(widths), None, None
    if types is not None:
        config.layer_types = list(types)
    # A backbone is a stock encoder with other layers, or of a class that names the stock class it stands for.
    stock_class = getattr(type(backbone), "stock_class", type(backbone))
    with torch.device("meta"):
        encoder: Any = stock_class(config)
    if pooler_of(encoder) is not None:
        encoder.pooler = None
    if widths_of(encoder) != [list(layer) for layer in widths]:
        resize(encoder, widths)
    like = next(backbone.parameters())
    for module in encoder.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            delattr(module, name)
            module.register_buffer(name, torch.zeros(parameter.shape, dtype=like.dtype, device=like.device))
    for part, theirs in zip(outside_layers(encoder), outside_layers(backbone), strict=True):
        _copy_tensors(part, theirs, constants=True)
    return encoder


def _copy_tensors(part: nn.Module, theirs: nn.Module, constants: bool = False) -> None:
    """Copies tensors into a module of the same shape; if `constants`, only those that no checkpoint holds."""
    for path, module in part.named_modules():
        source: Any = theirs.get_submodule(path)
        for name in [*module._buffers]:
            if constants and name not in module._non_persistent_buffers_set:
                continue
            tensor = getattr(source, name)
            if isinstance(source, GatedLinear) and name == "weight":
                tensor = source.__dict__["gates"].gated(source)
            elif isinstance(source, nn.Embedding):  # the table may compute more than it holds
                tensor = source(torch.arange(len(tensor), device=tensor.device))
            module._buffers[name] = tensor.detach().clone()
