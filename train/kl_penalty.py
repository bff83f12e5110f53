"""How far a policy is from its reference, estimated token by token from two log-probs, and what that costs.

Of a token that the policy p sampled, with reference q, the divergence is KL(p || q), the mean of log p - log q over p.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

LIMIT = 20.0
"""Log ratios count this far inside an exponential: e^20 is 5e8, e^89 no float32 any more."""


def k1(log_probs: Tensor, reference: Tensor) -> Tensor:
    """log p - log q, in nats: unbiased, negative where the reference finds the token more likely. Shapes: all equal.

    Source: Schulman 2020 ("Approximating KL divergence"), for this and the next two.
    """
    return _wide(log_probs) - _wide(reference)


def k2(log_probs: Tensor, reference: Tensor) -> Tensor:
    """(log p - log q)^2 / 2, in nats: biased, by a sixth of the mean cube of log p - log q where that is small.

    Shapes: all equal.
    """
    return k1(log_probs, reference).square() / 2


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """q/p - 1 - log(q/p), in nats: unbiased, and never negative. Shapes: all equal."""
    ratio = -k1(log_probs, reference)
    # expm1: near 0 the result is the square of the log ratio, which e^x - 1 rounds away.
    return torch.expm1(ratio.clamp(-LIMIT, LIMIT)) - ratio


def estimate(name: Literal["k1", "k2", "k3"], log_probs: Tensor, reference: Tensor) -> Tensor:
    """The estimator of that name."""
    return {"k1": k1, "k2": k2, "k3": k3}[name](log_probs, reference)


class KlController:
    """The weight of the divergence in the reward, steered so that the divergence comes to a target.

    `coef`: the weight as it is now. `target`: nats a response; 0 keeps the weight. `horizon`: responses over which an
    error of 20% or more changes the weight by 20%.
    Source: Ziegler et al. 2019, section 2.2; the paper's K_beta is responses / horizon in its code.
    """

    def __init__(self, coef: float, *, target: float = 0.0, horizon: float) -> None:
        self.coef = coef
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, responses: int) -> None:
        """Take in the mean divergence, in nats a response, of so many responses."""
        if not self.target:
            return
        error = max(-0.2, min(kl / self.target - 1, 0.2))
        # No more than one horizon's worth at a time: at five the weight would reach 0 and stay there.
        self.coef *= 1 + error * min(responses / self.horizon, 1.0)


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
