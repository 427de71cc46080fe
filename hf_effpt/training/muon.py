"""Muon for the matrices of a model's layers, with AdamW for all its other parameters."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from transformers.utils.generic import strtobool

from hf_effpt.core.anatomy import encoders_of, layers_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest
from hf_effpt.core.settings import In, check_settings
from hf_effpt.core.width import sides_of

MUON = "muon"  # value of `training.optim`
# Of x ← a·x + b·x³ + c·x⁵ on singular values, whose slope at zero is large; also those of `torch.optim.Muon`.
COEFFICIENTS = 3.4445, -4.7750, 2.0315
EPSILON = 1e-7

FOREACH: Any = torch  # its functions of lists of tensors have private names, although it documents them
# How settings are read from text.
READ: dict[str, Callable[[str], Any]] = {
    "momentum": float,
    "nesterov": lambda text: bool(strtobool(text)),
    "ns_steps": int,
    "rms": float,
}


@dataclass(frozen=True)
class MuonSettings:
    """Settings in `training.optim_args`, such as `momentum=0.9,nesterov=false`.

    Args:
        momentum (`float`, *optional*, defaults to 0.95): weight of the running average of gradients.
        nesterov (`bool`, *optional*, defaults to `True`): if `True`, mix the gradient into the average once more.
        ns_steps (`int`, *optional*, defaults to 5): Newton-Schulz iterations.
        rms (`float`, *optional*, defaults to 0.2): root mean square of an update, over the learning rate. By default
            that of AdamW in mid-training (Liu et al., 2025); in its first steps AdamW's is nearer to 1.

    Raises:
        EffptError: for a value that is impossible.
    """

    name: ClassVar[str] = "training.optim_args"

    momentum: Annotated[float, In("[0, 1)")] = 0.95
    nesterov: bool = True
    ns_steps: Annotated[int, In("[1, 100)")] = 5
    rms: Annotated[float, In("(0, 10)")] = 0.2

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def parse(cls, text: str | None) -> "MuonSettings":
        """Reads `momentum=0.95,ns_steps=5`; raises an `EffptError` for other settings than those of this class."""
        given: dict[str, Any] = {}
        for part in (text or "").split(",") if text else ():
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or key not in READ:
                hint = nearest(key, list(READ))
                raise EffptError(f"`{cls.name}` has {part.strip()!r}, which is no setting of Muon: {hint}")
            with suppress(ValueError):  # else it stays a text, which is refused
                value = READ[key](value)
            given[key] = value
        return cls(**given)


def muon_arguments(args: Any) -> dict[str, Any]:
    """Arguments of [`Muon`] from [`EffptTrainingArguments`]."""
    betas = args.adam_beta1, args.adam_beta2
    adam = {"lr": args.learning_rate, "betas": betas, "eps": args.adam_epsilon, "fused": True}
    return adam | asdict(MuonSettings.parse(args.optim_args))


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al., 2024) for groups of matrices and AdamW for the other groups.

    The update of a matrix is the running average of its gradients with all singular values brought near 1, times
    rms·√(longer side): with `rms` 0.2 its root mean square is about that of AdamW, so that one learning rate and one
    weight decay serve both (Liu et al., 2025). It then equals that of [`torch.optim.Muon`] with
    `adjust_lr_fn="match_rms_adamw"`, but matrices of one shape are multiplied together, whichever side is longer.
    Products are in bfloat16 on a GPU that has it, else in float32.

    A group's `matrices` is the number of matrices, one above the other, that each of its weights consists of; each of
    them is updated as a matrix of its own. 0, the default, is AdamW.

    Args:
        params: parameters, or groups of them.
        lr, betas, eps, weight_decay, fused (*optional*): as in [`torch.optim.AdamW`]; groups of matrices ignore
            `betas`, `eps` and `fused`.
        momentum, nesterov, ns_steps, rms (*optional*): as in [`MuonSettings`].
    """

    _step_supports_amp_scaling = False  # a scaler of fp16 has to undo its scale before: averages are over steps
    flops = 0.0  # of matrix products since they were last charged
    found_inf: Tensor | None = None  # above 0 if this step changes nothing, as fused AdamW has it

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        rms: float = 0.2,
        fused: bool | None = None,
    ) -> None:
        own = {"matrices": 0, **asdict(MuonSettings(momentum, nesterov, ns_steps, rms))}
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
        self.__dict__.pop("_step_supports_amp_scaling", None)  # set by fused kernels
        self.defaults |= own
        for group in self.param_groups:
            for name, value in own.items():
                group.setdefault(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # AdamW's own looks for a step count in every state, to convert those of old versions; matrices have none.
        torch.optim.Optimizer.__setstate__(self, state)

    def _init_group(self, group: dict[str, Any], *lists: Any, **kwargs: Any) -> Any:
        # AdamW's `step` asks here for the parameters of each group. It gets no matrices: those are updated now.
        if not group["matrices"]:
            return super()._init_group(group, *lists, **kwargs)
        if weights := [weight for weight in group["params"] if weight.grad is not None]:
            self._update(weights, **group)
        return False

    def _update(
        self, weights: list[Tensor], lr: float, weight_decay: float, momentum: float, nesterov: bool, ns_steps: int,
        rms: float, matrices: int, **others: Any,
    ) -> None:  # fmt: skip
        """Updates weights of shape `(matrices·rows, columns)`."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        gradients: list[Any] = [weight.grad for weight in weights]
        averages = [self.state[weight]["momentum_buffer"] for weight in weights]
        keep: Any = 1 - lr * weight_decay
        if (skips := self.found_inf) is not None:  # then averages move towards themselves, by nothing
            skips = skips > 0
            gradients = [torch.where(skips, old, new) for old, new in zip(averages, gradients, strict=True)]
            keep = torch.where(skips, 1.0, keep)
        FOREACH._foreach_lerp_(averages, gradients, 1 - momentum)
        directions = FOREACH._foreach_lerp(gradients, averages, momentum) if nesterov else averages
        FOREACH._foreach_mul_(weights, keep)
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for pair in zip(weights, directions, strict=True):
            lying = [_lying(tensor, matrices) for tensor in pair]
            alike[tuple(lying[0].shape)].append((lying[0], lying[1]))
        for pairs in alike.values():
            _, short, long = pairs[0][0].shape
            together_NSL = torch.cat([direction for _, direction in pairs])
            updates_NSL = orthogonalized(together_NSL.to(precision_on(together_NSL.device)), ns_steps)
            self.flops += len(updates_NSL) * newton_schulz_flops(short, long, ns_steps)
            updates_NSL = updates_NSL.to(together_NSL.dtype)
            updates = (updates_NSL if skips is None else torch.where(skips, 0.0, updates_NSL)).split(matrices)
            FOREACH._foreach_add_([weight for weight, _ in pairs], updates, alpha=-lr * rms * long**0.5)

    def take_flops(self) -> float:
        """FLOPs of matrix products of the steps since the last call."""
        taken, self.flops = self.flops, 0.0
        return taken


def _lying(tensor: Tensor, matrices: int) -> Tensor:
    """View of a weight's matrices, of shape `(matrices, shorter side, longer side)`."""
    apart = tensor.view(matrices, tensor.shape[0] // matrices, tensor.shape[1])
    return apart.mT if apart.shape[1] > apart.shape[2] else apart


def precision_on(device: torch.device) -> torch.dtype:
    """Type of the numbers that matrices are multiplied in: bfloat16 is many times slower where it is emulated."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def orthogonalized(matrices_NSL: Tensor, steps: int) -> Tensor:
    """Matrices with the same singular vectors and singular values near 1 (about 0.7 to 1.2 after 5 steps).

    Newton-Schulz iteration of the fifth order, of matrices that are no longer in their second dimension than in their
    third.
    """
    a, b, c = COEFFICIENTS
    x_NSL = matrices_NSL / torch.linalg.vector_norm(matrices_NSL, dim=(1, 2), keepdim=True).clamp(min=EPSILON)
    for _ in range(steps):
        gram_NSS = torch.bmm(x_NSL, x_NSL.mT)
        factor_NSS = torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=b, alpha=c)
        x_NSL = torch.baddbmm(x_NSL, factor_NSS, x_NSL, beta=a)
    return x_NSL


def newton_schulz_flops(short: int, long: int, steps: int) -> float:
    """FLOPs of [`orthogonalized`] for one matrix with these sides."""
    return steps * (4.0 * short * short * long + 2.0 * short**3)


def body_matrices(model: Any) -> dict[Tensor, int]:
    """Weights that Muon updates, each with the number of matrices that it consists of.

    They are those of attention and feed-forward blocks in all layers, also of a generator. In ModernBERT one weight
    holds query, key and value, and one input and gate. Embeddings, heads, poolers and what methods add are left out.
    """
    layers = [layer for encoder in encoders_of(model.backbone) for layer in layers_of(encoder).children()]
    return {side.linear.weight: side.blocks for layer in layers for side in sides_of(layer)}


def give_matrices(optimizer: Muon, model: Any) -> None:
    """Moves the weights of [`body_matrices`] to groups of their own, with the weight decay that they have.

    There is a group for each number of matrices in a weight, even if none of its weights is trained, so that the
    number of groups stays.
    """
    found = body_matrices(model)
    for number in sorted({*found.values()}):
        own: list[Tensor] = []
        decay = 0.0
        for group in optimizer.param_groups:
            if moved := [weight for weight in group["params"] if found.get(weight) == number]:
                own += moved
                decay = group["weight_decay"]
                group["params"] = [weight for weight in group["params"] if found.get(weight) != number]
        optimizer.add_param_group({"params": own, "matrices": number, "weight_decay": decay})
