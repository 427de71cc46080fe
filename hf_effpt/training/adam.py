"""The optimizer that BERT and ELECTRA were published with: AdamW without bias correction."""

import math
from typing import Any

import torch


class UncorrectedAdamW(torch.optim.AdamW):
    """AdamW that takes its averages as they are, though they begin at zero (Clark et al., 2020, `optimization.py`).

    m ← β₁·m + (1 - β₁)·g, v ← β₂·v + (1 - β₂)·g², p ← p - lr·(m / (√v + ε) + decay·p). With betas of 0.9 and 0.999,
    the 10th update of a parameter is 6.5 times that of corrected Adam, the 100th 3.2 times, the 1000th 1.26 times. A
    long warm-up hides it at the start of a run, but not in layers that are added later.

    Arguments are those of [`torch.optim.AdamW`], but for `amsgrad`.
    """

    def _init_group(self, group: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        # The corrections are 1 - β^step, which infinitely many steps leave at 1; the stock kernels do the rest,
        # fused or not.
        for parameter in group["params"]:
            if parameter.grad is not None and not (state := self.state[parameter]):
                on_device = group["fused"] or group["capturable"]
                device = parameter.device if on_device else torch.device("cpu")  # where the stock class keeps it
                state["step"] = torch.tensor(math.inf, dtype=torch.float32, device=device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return super()._init_group(group, *args, **kwargs)
