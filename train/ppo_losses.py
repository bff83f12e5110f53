"""The losses of PPO's actor and critic, as pure functions of the tokens learned from.

Shapes: N tokens of any responses, in any order, none of them padding. Each loss is a sum over tokens: the caller
divides by the number of tokens of the whole minibatch, so that the parts of a minibatch add up to it. In nats, computed
in at least float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from train.kl_penalty import LIMIT


@dataclass(frozen=True)
class PolicyTerms:
    """The actor's loss and what it saw; all but `loss` are without gradients.

    `loss`, (): the sum over tokens. `clip_fraction`, (): the number of tokens at which the clip binds, that is, which
    teach nothing. `approx_kl`, (): the sum over tokens of an estimate of KL(old || new). `ratio`, (N,): new over old
    probability.
    """

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor
    ratio: Tensor


@dataclass(frozen=True)
class ValueTerms:
    """The critic's loss, (), the sum over tokens; and the number of tokens, (), at which the clip binds."""

    loss: Tensor
    clip_fraction: Tensor


def policy_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, cliprange: float) -> PolicyTerms:
    """The sum of max(-A r, -A clip(r, 1 - c, 1 + c)), r the ratio of new to old probability. Shapes: all (N,).

    The clip binds where the ratio has gone further than c in the advantage's own direction: up where it is positive,
    down where it is negative. On the other side the loss is whole, so that a step too far the wrong way is undone.
    Source: Schulman et al. 2017, equation 7; `approx_kl` is k3 of Schulman 2020 with old and new exchanged.
    """
    log_ratio = (_wide(log_probs) - _wide(old_log_probs)).clamp(-LIMIT, LIMIT)
    ratio = log_ratio.exp()
    whole = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    seen = log_ratio.detach()
    return PolicyTerms(
        loss=torch.maximum(whole, clipped).sum(),
        clip_fraction=(clipped > whole).sum().detach(),
        approx_kl=(torch.expm1(seen) - seen).sum(),
        ratio=ratio.detach(),
    )


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float) -> ValueTerms:
    """The sum of max((v - R)^2, (clip(v, old - c, old + c) - R)^2) / 2; c = 0 does not clip. Shapes: all (N,).

    The clip binds where a value further than c from the old one is closer to its return than the clipped value is.
    Source: the code of Schulman et al. 2017 (OpenAI baselines, ppo2).
    """
    values, old_values = _wide(values), _wide(old_values)
    whole = (values - returns).square()
    if not cliprange_value:
        return ValueTerms(whole.sum() / 2, torch.zeros((), device=values.device))
    clipped = (values.clamp(old_values - cliprange_value, old_values + cliprange_value) - returns).square()
    return ValueTerms(torch.maximum(whole, clipped).sum() / 2, (clipped > whole).sum().detach())


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - var(returns - values) / var(returns): 1 where values are right but for a constant, 0 where they say nothing.

    Shapes: both (N,). 0 where the returns are all the same, or there are none.
    """
    returns = returns.detach().double()
    whole = _spread(returns)
    return 1 - _spread(returns - values.detach().double()) / whole if whole else 0.0


def _spread(values: Tensor) -> float:
    """The sum of squares around the mean, exactly 0 of equal numbers: the mean of these may be rounded off them."""
    lead = values - values[:1]
    return float((lead - lead.mean()).square().sum()) if len(lead) else 0.0


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
