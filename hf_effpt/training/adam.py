"""Optimizer of the published BERT and ELECTRA: AdamW without bias correction."""

import math
from typing import Any

import torch


class UncorrectedAdamW(torch.optim.AdamW):
    """AdamW without bias correction of its running averages (Clark et al., 2020, `optimization.py`).

    m ← β₁·m + (1 - β₁)·g, v ← β₂·v + (1 - β₂)·g², p ← p - lr·(m / (√v + ε) + decay·p). With betas 0.9 and 0.999,
    update 10 of a parameter is 6.5 times that of Adam, update 100 3.2 times, update 1000 1.26 times. A long warm-up
    hides this, except in layers added later. Takes the arguments of [`torch.optim.AdamW`] but `amsgrad`.
    """

    def _init_group(self, group: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        # An infinite step makes the corrections 1 - β^step equal to 1 in all stock kernels, fused or not.
        for parameter in group["params"]:
            if parameter.grad is not None and not (state := self.state[parameter]):
                on_device = group["fused"] or group["capturable"]
                device = parameter.device if on_device else torch.device("cpu")  # as in the stock class
                state["step"] = torch.tensor(math.inf, dtype=torch.float32, device=device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return super()._init_group(group, *args, **kwargs)
